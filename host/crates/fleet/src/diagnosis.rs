//! Why a program of an engine failed, outside of a load.

use std::process::ExitStatus;

use crate::failures::{FailureKind, recognise};
use crate::process::explain;

/// Why a program failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kind of failure.
    pub kind: &'static FailureKind,
    /// What happened, for people.
    pub cause: String,
}

/// Returns why a program ended with this status, as far as its output shows it; `None` if it
/// succeeded.
pub fn diagnose(status: ExitStatus, output: &str) -> Option<Diagnosis> {
    if status.success() {
        return None;
    }
    let explanation = explain(status);
    // The highest certainty, and of equal ones the first line: later lines are consequences.
    let found = output.lines().filter_map(recognise).rev().max_by_key(|(_, certainty)| *certainty);
    // The signal of an illegal instruction says more than lines that precede it.
    let kind = match found {
        Some((kind, _)) if explanation.code == "engine_ended" => kind,
        Some(_) | None => FailureKind::with_code(explanation.code),
    };
    let cause = match kind.code == explanation.code {
        true => explanation.text,
        false => format!("{}: {}", explanation.text, kind.cause),
    };
    Some(Diagnosis { kind, cause })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn status_and_output_show_the_cause() {
        let code = |status: i32, output: &str| {
            diagnose(ExitStatus::from_raw(status), output).map(|found| found.kind.code)
        };
        assert_eq!(code(0, "out of memory"), None);
        assert_eq!(code(132 << 8, ""), Some("illegal_instruction"));
        assert_eq!(code(4, "No module named 'x'"), Some("illegal_instruction"));
        let log = "no such file\nImportError: libcudart.so.12: cannot open shared object file\n\
                   RuntimeError: No HIP GPUs are available";
        assert_eq!(code(1 << 8, log), Some("software_missing"));
        assert_eq!(code(1 << 8, "?"), Some("engine_ended"));
    }
}
