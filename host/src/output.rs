//! What commands print.

use std::io::{self, ErrorKind, Write as _};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Maximum time to print why the program fails. A reader that stalls must not keep it from ending.
const ERROR_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints text to standard output. A reader that goes away, such as `head`, is not an error: it has
/// seen enough.
///
/// # Errors
/// If writing fails for another reason, such as a full disk.
pub(crate) fn print(text: &str) -> Result<()> {
    print_while_read(text).map(drop)
}

/// Prints text like [`print()`], and returns false if the reader has gone away.
///
/// # Errors
/// As those of [`print()`].
pub(crate) fn print_while_read(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("failed to write to standard output"),
    }
}

/// Returns an error with its causes, on one line. A cause that the text before it names already is
/// left out.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.contains(&cause) => text,
        cause if text.is_empty() => cause,
        cause => format!("{text}: {cause}"),
    })
}

/// Prints a line to standard error, as far as there is a reader.
pub(crate) fn print_error(line: String) {
    let (done, printed) = channel();
    let print = move || {
        // Fails if the reader is gone; there is no other place to report errors.
        writeln!(io::stderr(), "{line}").ok();
        done.send(()).ok(); // Fails if the time is over.
    };
    if std::thread::Builder::new().spawn(print).is_ok() {
        printed.recv_timeout(ERROR_TIMEOUT).ok(); // Fails if the time is over.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_once() {
        let cause = || io::Error::from(ErrorKind::NotFound);
        let error = anyhow::Error::new(cause()).context("cannot connect");
        assert_eq!(with_causes(&error), format!("cannot connect: {}", cause()));
        let named =
            anyhow::Error::new(cause()).context(format!("no host ({}); start one", cause()));
        assert_eq!(with_causes(&named), format!("no host ({}); start one", cause()));
    }
}
