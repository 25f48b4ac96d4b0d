//! What an SDK reports of an error that escaped from the code of a policy.
//!
//! A trap has no message, and the contract's errors have no place for a location. An SDK therefore
//! writes a line to the log before it traps or returns the error: level `error`, and
//! `pointsman:fault/1`, the file, the line, the message and the frames of the stack, separated by
//! tabs. A host without this module shows the line in its log.

use serde::Serialize;

/// The beginning of a log line that reports a fault.
const PREFIX: &str = "pointsman:fault/1\t";
/// Maximum length of a message, in bytes; a longer one is cut.
const MAX_MESSAGE_BYTES: usize = 512;
/// Maximum length of a file name and of a frame, in bytes; longer ones are cut.
const MAX_FRAME_BYTES: usize = 200;
/// Maximum number of frames; further ones are dropped.
const MAX_FRAMES: usize = 8;

/// An error that escaped from the code of a policy, with its location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// The message, at most 512 bytes without control characters.
    pub message: String,
    /// The source file, as the language names it.
    pub file: Option<String>,
    /// The line in the file, from 1.
    pub line: Option<u32>,
    /// At most eight frames of the stack, innermost first.
    pub stack: Vec<String>,
}

impl FaultReport {
    /// Reads a log line of level `error`. Returns `None` if it does not report a fault.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix(PREFIX)?.split('\t');
        let (file, line) = (fields.next()?, fields.next()?);
        let message = fields.next()?;
        Some(Self {
            message: printable(message, MAX_MESSAGE_BYTES),
            file: (!file.is_empty()).then(|| printable(file, MAX_FRAME_BYTES)),
            line: line.parse().ok().filter(|line| *line > 0),
            stack: fields
                .filter(|frame| !frame.is_empty())
                .take(MAX_FRAMES)
                .map(|frame| printable(frame, MAX_FRAME_BYTES))
                .collect(),
        })
    }
}

/// The message and the location, such as `KeyError: 'b' at policy.py:3`.
impl std::fmt::Display for FaultReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, " at {file}:{line}"),
            (Some(file), None) => write!(f, " at {file}"),
            (None, _) => Ok(()),
        }
    }
}

/// Returns the beginning of a text. Control characters could forge lines of the log.
fn printable(text: &str, max_bytes: usize) -> String {
    let cut = pointsman_domain::char_slice(text, 0, max_bytes);
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_message_location_and_stack() {
        let report = FaultReport::parse("pointsman:fault/1\tsrc/p.js\t3\tError: x\tf (a)\t\tg (b)");
        let report = report.unwrap();
        assert_eq!(report.to_string(), "Error: x at src/p.js:3");
        assert_eq!((report.file.as_deref(), report.line), (Some("src/p.js"), Some(3)));
        assert_eq!(report.stack, ["f (a)", "g (b)"]);
        let report = FaultReport::parse("pointsman:fault/1\t\tx\tno place").unwrap();
        assert_eq!((report.file, report.line, report.stack.len()), (None, None, 0));
    }

    #[test]
    fn report_is_bounded() {
        let long = "\u{1b}ä".repeat(10_000);
        let frames = format!("\t{long}").repeat(20);
        let report = FaultReport::parse(&format!("{PREFIX}{long}\t1\t{long}{frames}")).unwrap();
        assert!(report.message.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(report.stack.len(), MAX_FRAMES);
        let texts = report.stack.iter().chain(&report.file);
        assert!(texts.clone().all(|text| text.len() <= MAX_FRAME_BYTES));
        assert!(texts.chain([&report.message]).all(|text| !text.contains(char::is_control)));
    }

    #[test]
    fn other_lines_are_not_reports() {
        for line in [
            "",
            "hello",
            "pointsman:fault/1",
            "pointsman:fault/1\ta\t1",
            "pointsman:fault/2\ta\t1\tm",
        ] {
            assert_eq!(FaultReport::parse(line), None, "{line}");
        }
    }
}
