//! Explanations of exit statuses.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Offset of the exit codes with which a shell or a launcher passes a signal on.
const SIGNAL_OFFSET: i32 = 128;

/// The end of a process, explained.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// What the status means.
    pub(crate) text: String,
    /// The value of the metric's `reason` label.
    pub(crate) reason: String,
    /// The code of the kind of failure.
    pub(crate) code: &'static str,
}

/// The kinds of failures that a `reason` shows. All other ends have the code `engine_ended`.
const KINDS: [(&str, &str); 6] = [
    ("SIGILL", "illegal_instruction"),
    ("SIGBUS", "shared_memory_full"),
    ("SIGKILL", "killed"),
    ("exit-125", "container_failed"),
    ("exit-126", "program_not_executable"),
    ("exit-127", "program_not_found"),
];

/// Exit codes with a known meaning. Sources: argparse (2), POSIX shells (126, 127), podman and
/// docker (125), Python interrupted while vLLM initialises (130), vLLM's own tracebacks (1).
const CODES: [(i32, &str); 7] = [
    // Still a failure: vLLM also exits with 0 after a SIGTERM from another process.
    (0, "exit code 0: it ended without an error, but was not stopped by the host"),
    (1, "exit code 1: an error in the engine, see its last log lines"),
    (2, "exit code 2: often an invalid argument, see its last log lines"),
    (125, "exit code 125: the container tool failed before it started the engine"),
    (126, "exit code 126: the program is not executable"),
    (127, "exit code 127: the program was not found"),
    (130, "exit code 130: interrupted during initialisation"),
];

/// Signals: number, name and explanation.
const SIGNALS: [(i32, &str, &str); 15] = [
    (1, "SIGHUP", "SIGHUP, not sent by the host: its terminal was closed"),
    (2, "SIGINT", "SIGINT, not sent by the host"),
    (3, "SIGQUIT", "SIGQUIT, not sent by the host"),
    (4, "SIGILL", "SIGILL, illegal instruction: the binary was built for another CPU"),
    (
        5,
        "SIGTRAP",
        "SIGTRAP: an assertion in the engine or a library failed, see its last log lines",
    ),
    (6, "SIGABRT", "SIGABRT: the engine detected an internal error, see its last log lines"),
    (7, "SIGBUS", "SIGBUS: memory or /dev/shm is full, or a mapped model file was truncated"),
    (8, "SIGFPE", "SIGFPE: an arithmetic error in the engine, such as a division by zero"),
    (9, "SIGKILL", "SIGKILL: sent by a user, or by the kernel's out-of-memory killer"),
    (11, "SIGSEGV", "SIGSEGV: a segmentation fault in the engine or the GPU driver"),
    (13, "SIGPIPE", "SIGPIPE: it wrote to a closed pipe"),
    (15, "SIGTERM", "SIGTERM, not sent by the host"),
    (24, "SIGXCPU", "SIGXCPU: its CPU time limit was exceeded"),
    (25, "SIGXFSZ", "SIGXFSZ: its file size limit was exceeded"),
    (31, "SIGSYS", "SIGSYS: a sandbox blocked a system call"),
];

/// Returns an explanation of how a process ended.
pub(crate) fn explain(status: ExitStatus) -> Explanation {
    let (text, reason) = describe(status);
    let kind = KINDS.iter().find(|(known, _)| *known == reason);
    let code = kind.map_or("engine_ended", |(_, code)| code);
    Explanation { text, reason, code }
}

/// Returns an explanation and a value for a metric's `reason` label.
fn describe(status: ExitStatus) -> (String, String) {
    let code = status.code();
    let known = code.and_then(|code| CODES.iter().find(|row| row.0 == code));
    let signal = status
        .signal()
        .or_else(|| code.filter(|code| *code > SIGNAL_OFFSET).map(|code| code - SIGNAL_OFFSET));
    let named = signal.and_then(|signal| SIGNALS.iter().find(|row| row.0 == signal));
    match (known, named, code, signal) {
        // Exit code 130 is in both tables: the code explains more, the signal is the reason.
        (Some((_, explanation)), Some((_, name, _)), ..) => ((*explanation).into(), (*name).into()),
        (Some((code, explanation)), None, ..) => ((*explanation).into(), format!("exit-{code}")),
        (None, Some((_, name, explanation)), ..) => ((*explanation).into(), (*name).into()),
        (None, None, Some(code), _) => (format!("exit code {code}"), format!("exit-{code}")),
        (None, None, None, Some(signal)) => {
            (format!("signal {signal}"), format!("signal-{signal}"))
        }
        (None, None, None, None) => ("unknown exit status".into(), "unknown".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failures::FailureKind;

    #[test]
    fn exit_statuses_are_explained() {
        for (status, reason, part) in [
            (4, "SIGILL", "another CPU"),
            (132 << 8, "SIGILL", "another CPU"),
            (7, "SIGBUS", "/dev/shm"),
            (135 << 8, "SIGBUS", "/dev/shm"),
            (9, "SIGKILL", "out-of-memory"),
            (137 << 8, "SIGKILL", "out-of-memory"),
            (15, "SIGTERM", "not sent by the host"),
            (143 << 8, "SIGTERM", "not sent by the host"),
            (2, "SIGINT", "not sent by the host"),
            (130 << 8, "SIGINT", "during initialisation"),
            (0, "exit-0", "not stopped by the host"),
            (1 << 8, "exit-1", "last log lines"),
            (2 << 8, "exit-2", "invalid argument"),
            (126 << 8, "exit-126", "not executable"),
            (127 << 8, "exit-127", "not found"),
            (7 << 8, "exit-7", "exit code 7"),
            (200 << 8, "exit-200", "exit code 200"),
            (10, "signal-10", "signal 10"),
        ] {
            let explanation = explain(ExitStatus::from_raw(status));
            assert_eq!(explanation.reason, reason, "{status}: {explanation:?}");
            assert_eq!(FailureKind::with_code(explanation.code).code, explanation.code);
            assert!(explanation.text.contains(part), "{status}: {explanation:?}");
        }
    }
}
