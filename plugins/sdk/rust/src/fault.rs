//! Reports of panics. A panic is a trap, of which the host learns no more than that. The hook tells
//! it the message and the location before: the host takes the last report of a call as the cause of
//! its failure.

#[cfg(target_arch = "wasm32")]
use crate::Level;
#[cfg(target_arch = "wasm32")]
use crate::generated::bindings::pointsman::policy::log;

/// Lets panics from now on be reported.
#[cfg(target_arch = "wasm32")]
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = match payload.downcast_ref::<&str>() {
            Some(message) => message,
            None => payload.downcast_ref::<String>().map_or("panic", String::as_str),
        };
        let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
        log::write(Level::Error, &report(message, file, line));
    }));
}

/// Returns the log line that reports a fault to the host.
#[cfg(any(target_arch = "wasm32", test))]
fn report(message: &str, file: &str, line: u32) -> String {
    let message = message.replace(['\t', '\n', '\r'], " ");
    format!("pointsman:fault/1\t{file}\t{line}\t{message}")
}

#[cfg(test)]
mod tests {
    use super::report;

    #[test]
    fn report_has_location_and_message_as_fields() {
        let line = report("a\tb\nc", "src/lib.rs", 7);
        assert_eq!(line, "pointsman:fault/1\tsrc/lib.rs\t7\ta b c");
    }
}
