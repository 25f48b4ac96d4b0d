//! Ends the engines that are left when the keeper ends.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::proc;
use crate::process::record::Record;
use crate::process::tracker::{ProcessTracker, Provenance, describe};

/// The maximum time that the keeper tries to end the engines.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between attempts.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Ends these engines concurrently, and returns the processes that survived.
pub(super) fn end_all(engines: Vec<Record>) -> Vec<String> {
    let mut trackers: Vec<ProcessTracker> = engines
        .into_iter()
        .map(|record| ProcessTracker::new(record, Provenance::Reported))
        .collect();
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let mut survivors = Vec::new();
        trackers.retain_mut(|tracker| {
            let Some(alive) = tracker.alive() else {
                // No process is alive, so this only cleans up.
                return tracker.end(Duration::ZERO, Duration::ZERO).is_err();
            };
            tracker.signal_all(&alive, Signal::KILL);
            survivors.push(describe(&alive));
            true
        });
        if trackers.is_empty() || Instant::now() >= deadline {
            return survivors;
        }
        proc::pause(POLL_INTERVAL);
    }
}
