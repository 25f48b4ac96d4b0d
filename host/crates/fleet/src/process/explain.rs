//! How a process ended, in words.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// From here on an exit code is a signal that a shell or a launcher passed on: code minus this.
const SIGNAL_CODES: i32 = 128;

/// Exit codes that say more than their number. Sources: argparse (2), POSIX shells (126, 127), podman and docker (125),
/// Python interrupted while vLLM initialises (130), vLLM's own tracebacks (1).
const CODES: [(i32, &str); 7] = [
    // No end that nobody asked for is a good one: vLLM also ends with 0 after a SIGTERM from elsewhere.
    (0, "ended by itself without an error, which nobody asked for"),
    (1, "exit code 1, a failure of the engine's own: see its last lines"),
    (2, "exit code 2, often a wrong argument: see its last lines"),
    (125, "exit code 125: the container tool failed before the engine was started"),
    (126, "exit code 126: the program was found, but cannot be executed"),
    (127, "exit code 127: the program was not found"),
    (130, "interrupted during initialisation (exit code 130)"),
];

/// Signals with their names.
const SIGNALS: [(i32, &str, &str); 15] = [
    (1, "SIGHUP", "ended by SIGHUP, which did not come from us: its terminal went away"),
    (2, "SIGINT", "interrupted by SIGINT, which did not come from us"),
    (3, "SIGQUIT", "ended by SIGQUIT, which did not come from us"),
    (4, "SIGILL", "illegal instruction: the binary was built for another CPU"),
    (5, "SIGTRAP", "trap: an assertion in the engine or its libraries failed, see its last lines"),
    (6, "SIGABRT", "aborted: the engine found a fault of its own, see its last lines"),
    (
        7,
        "SIGBUS",
        "bus error: memory or /dev/shm is full, or a model file became shorter while it was mapped",
    ),
    (8, "SIGFPE", "arithmetic fault: a division by zero in the engine"),
    (9, "SIGKILL", "killed by SIGKILL: by hand, or by the kernel because memory ran out"),
    (11, "SIGSEGV", "segmentation fault: a fault in the engine or its driver"),
    (13, "SIGPIPE", "ended by SIGPIPE: it wrote to a pipe that nobody reads"),
    (15, "SIGTERM", "ended by SIGTERM, which did not come from us"),
    (24, "SIGXCPU", "ended by SIGXCPU: its limit of CPU time is used up"),
    (25, "SIGXFSZ", "ended by SIGXFSZ: a file of its grew beyond its limit"),
    (31, "SIGSYS", "ended by SIGSYS: a sandbox forbade a system call"),
];

/// How a process ended, as a sentence and as a word for a metric.
pub(crate) fn explain(status: ExitStatus) -> (String, String) {
    let code = status.code();
    let known = code.and_then(|code| CODES.iter().find(|row| row.0 == code));
    let signal = status
        .signal()
        .or_else(|| code.filter(|code| *code > SIGNAL_CODES).map(|code| code - SIGNAL_CODES));
    let named = signal.and_then(|signal| SIGNALS.iter().find(|row| row.0 == signal));
    match (known, named, code, signal) {
        // Code 130 is both: its sentence says more, its word is that of the signal.
        (Some((_, sentence)), Some((_, word, _)), ..) => ((*sentence).into(), (*word).into()),
        (Some((code, sentence)), None, ..) => ((*sentence).into(), format!("exit-{code}")),
        (None, Some((_, word, sentence)), ..) => ((*sentence).into(), (*word).into()),
        (None, None, Some(code), _) => (format!("exit code {code}"), format!("exit-{code}")),
        (None, None, None, Some(signal)) => {
            (format!("ended by signal {signal}"), format!("signal-{signal}"))
        }
        (None, None, None, None) => ("ended in an unknown way".into(), "unknown".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_explained() {
        for (status, reason, part) in [
            (4, "SIGILL", "another CPU"),
            (132 << 8, "SIGILL", "another CPU"),
            (7, "SIGBUS", "/dev/shm"),
            (135 << 8, "SIGBUS", "/dev/shm"),
            (9, "SIGKILL", "memory ran out"),
            (137 << 8, "SIGKILL", "memory ran out"),
            (15, "SIGTERM", "not come from us"),
            (143 << 8, "SIGTERM", "not come from us"),
            (2, "SIGINT", "not come from us"),
            (130 << 8, "SIGINT", "during initialisation"),
            (0, "exit-0", "nobody asked"),
            (1 << 8, "exit-1", "last lines"),
            (2 << 8, "exit-2", "wrong argument"),
            (126 << 8, "exit-126", "cannot be executed"),
            (127 << 8, "exit-127", "not found"),
            (7 << 8, "exit-7", "exit code 7"),
            (200 << 8, "exit-200", "exit code 200"),
            (10, "signal-10", "signal 10"),
        ] {
            let (sentence, word) = explain(ExitStatus::from_raw(status));
            assert!(word == reason && sentence.contains(part), "{status}: {word}, {sentence}");
        }
    }
}
