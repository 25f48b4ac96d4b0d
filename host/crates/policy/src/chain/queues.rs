//! The bounded queues from requests to the background threads. Requests are never delayed: what
//! does not fit is dropped, and for shadows counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use pointsman_domain::Outcome;

use crate::chain::baseline::BaselineJob;
use crate::chain::shadow::{ShadowJob, evaluate_shadow};

/// Maximum queued jobs. Each holds a request in memory.
const MAX_SHADOW_QUEUE: usize = 256;
/// Maximum bytes of the bodies that queued jobs and the running one hold in memory together.
const MAX_QUEUED_BYTES: u64 = 32 << 20;
/// Maximum queued outcomes.
const MAX_OUTCOME_QUEUE: usize = 4096;

/// A call in the background.
#[derive(Debug)]
pub(crate) enum Job {
    Shadow(Box<ShadowJob>),
    Baseline(BaselineJob),
}

impl Job {
    pub(crate) fn run(self) {
        match self {
            Self::Shadow(job) => evaluate_shadow(*job),
            Self::Baseline(job) => job.run(),
        }
    }

    fn body_bytes(&self) -> u64 {
        match self {
            Self::Shadow(job) => job.facts.request.info().body_bytes,
            Self::Baseline(job) => job.body_bytes(),
        }
    }
}

/// A job in the queue.
#[derive(Debug)]
pub(crate) struct QueuedJob {
    job: Job,
    held: HeldBytes,
}

impl QueuedJob {
    pub(crate) fn run(self) {
        let Self { job, held } = self;
        job.run();
        drop(held);
    }
}

/// A part of the bytes that queued jobs may hold, which is given back when it is dropped.
#[derive(Debug)]
struct HeldBytes {
    // A counter without other data that it protects, so relaxed ordering suffices.
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl HeldBytes {
    /// Takes a part; `None` if less is left.
    fn take(total: &Arc<AtomicU64>, bytes: u64) -> Option<Self> {
        let add = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= MAX_QUEUED_BYTES);
        total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Self { total: Arc::clone(total), bytes })
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The ends of the queues that requests write to.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    jobs: SyncSender<QueuedJob>,
    /// Bytes of the bodies that jobs hold.
    held_bytes: Arc<AtomicU64>,
    outcomes: SyncSender<Outcome>,
}

/// The ends of the queues that the background threads read. They are closed once all [`Queues`] are
/// dropped.
#[derive(Debug)]
pub(crate) struct Inboxes {
    pub(crate) jobs: Receiver<QueuedJob>,
    pub(crate) outcomes: Receiver<Outcome>,
}

impl Queues {
    /// Creates empty queues.
    pub(crate) fn new() -> (Self, Inboxes) {
        let (jobs, job_inbox) = sync_channel(MAX_SHADOW_QUEUE);
        let (outcomes, outcome_inbox) = sync_channel(MAX_OUTCOME_QUEUE);
        let inboxes = Inboxes { jobs: job_inbox, outcomes: outcome_inbox };
        (Self { jobs, held_bytes: Arc::default(), outcomes }, inboxes)
    }

    /// Queues a job. Returns the job if the queue is full.
    fn queue(&self, job: Job) -> Option<Job> {
        let Some(held) = HeldBytes::take(&self.held_bytes, job.body_bytes()) else {
            return Some(job);
        };
        match self.jobs.try_send(QueuedJob { job, held }) {
            Ok(()) => None,
            Err(TrySendError::Full(queued) | TrySendError::Disconnected(queued)) => {
                Some(queued.job)
            }
        }
    }

    /// Queues a shadow job, or drops it if the queue is full.
    pub(crate) fn evaluate_shadow(&self, job: Box<ShadowJob>) {
        if let Some(Job::Shadow(job)) = self.queue(Job::Shadow(job)) {
            job.shadow.metrics().record_shadow("dropped");
            job.shadow.update_comparison(|comparison| comparison.dropped += 1);
        }
    }

    /// Queues a comparison with the version before. If the queue is full, the call does not count:
    /// otherwise clients could fill the queue to end a probation.
    pub(crate) fn compare_baseline(&self, job: BaselineJob) {
        drop(self.queue(Job::Baseline(job)));
    }

    /// Queues the outcome of a request.
    pub(crate) fn report_outcome(&self, outcome: &Outcome) {
        // Dropped if the queue is full: the contract allows that, and a request must not wait.
        self.outcomes.try_send(outcome.clone()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_queued_jobs_are_bounded_and_given_back() {
        let total = Arc::default();
        let most = HeldBytes::take(&total, MAX_QUEUED_BYTES - 1).unwrap();
        assert!(HeldBytes::take(&total, 2).is_none());
        assert!(HeldBytes::take(&total, u64::MAX).is_none());
        let rest = HeldBytes::take(&total, 1).unwrap();
        drop((most, rest));
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
