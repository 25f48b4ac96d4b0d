//! Progress of steps that may take long, on standard error.

use std::io::IsTerminal as _;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::output::print_error;

/// How often a step that takes long says so.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(3);

/// Runs a step, and tells a person at a terminal from time to time that it is not done yet.
pub(crate) fn with_progress<T>(what: &str, step: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return step();
    }
    std::thread::scope(|scope| {
        let (done, finished) = channel::<()>();
        let report = move || {
            let start = Instant::now();
            while finished.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                print_error(format!("{what}: {} s", start.elapsed().as_secs()));
            }
        };
        scope.spawn(report);
        let result = step();
        drop(done);
        result
    })
}
