//! Background work of policies: evaluation of shadows, the hooks that observe outcomes, `on-tick`,
//! probation, and the replacement of used-up instances.
//!
//! ```text
//!   request ──job─────────> bounded queue ──> thread `policy-shadow`   shadows, and comparisons of
//!                                                                      versions on probation
//!           ──outcome─────> bounded queue ──> thread `policy-hooks`    on-complete and on-outcome
//!                                                                      in batches, on-tick,
//!                                                                      probation, instances
//! ```
//!
//! The threads do not own what they work for: they end once it is dropped.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use pointsman_domain::Outcome;

use crate::chain::queues::{Inboxes, QueuedJob};
use crate::limits::MAX_BATCH;

/// The interval at which outcomes are delivered, ticks are checked, probations are evaluated and
/// instances are replaced.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// The niceness of the thread that evaluates shadows.
const SHADOW_NICENESS: i32 = 10;

/// What the thread `policy-hooks` does at each heartbeat.
pub(crate) trait Heartbeat: Send + Sync {
    /// What is kept from one heartbeat to the next.
    type Memory: Default;

    /// Does the work that is due. `ended` are the outcomes since the last heartbeat; `now` is the
    /// time since the thread was started.
    fn heartbeat(&self, memory: &mut Self::Memory, ended: &[Outcome], now: Duration);
}

/// Starts the threads. They exit when `host` is dropped, or the inboxes are closed.
///
/// # Errors
/// If a thread cannot be spawned.
pub(crate) fn start<H: Heartbeat + 'static>(
    host: Weak<H>,
    inboxes: Inboxes,
) -> std::io::Result<()> {
    let Inboxes { jobs, outcomes } = inboxes;
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("policy-shadow").spawn(move || run_jobs(&jobs))?;
    thread("policy-hooks").spawn(move || run_hooks(&host, || next_batch(&outcomes)))?;
    Ok(())
}

fn run_jobs(jobs: &Receiver<QueuedJob>) {
    // Threads that serve requests have priority. On Linux, `nice` only affects the calling thread.
    if let Err(error) = rustix::process::nice(SHADOW_NICENESS) {
        tracing::debug!(%error, "failed to lower the priority of the shadow thread");
    }
    for job in jobs {
        job.run();
    }
}

/// Calls the host with each batch, until the host is dropped or the queue is closed.
fn run_hooks<H: Heartbeat>(host: &Weak<H>, next_batch: impl Fn() -> Option<Vec<Outcome>>) {
    let mut memory = H::Memory::default();
    let start = Instant::now();
    while let (Some(batch), Some(host)) = (next_batch(), host.upgrade()) {
        host.heartbeat(&mut memory, &batch, start.elapsed());
    }
}

/// Collects the outcomes of one heartbeat; `None` after the queue is closed.
fn next_batch(outcomes: &Receiver<Outcome>) -> Option<Vec<Outcome>> {
    let until = Instant::now() + HEARTBEAT;
    let mut batch = Vec::new();
    while batch.len() < MAX_BATCH {
        match outcomes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(outcome) => batch.push(outcome),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) if batch.is_empty() => return None,
            // The next call finds the queue empty.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

#[cfg(test)]
mod tests;
