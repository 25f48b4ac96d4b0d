//! The bounded queues from requests to the background threads. Requests are never delayed: what
//! does not fit is dropped, and for shadows counted.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use pointsman_domain::Outcome;

use crate::chain::baseline::BaselineJob;
use crate::chain::shadow::{ShadowJob, evaluate_shadow};

/// Maximum queued jobs. Each holds a request in memory.
const MAX_SHADOW_QUEUE: usize = 256;
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
}

/// The ends of the queues that requests write to.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    jobs: SyncSender<Job>,
    outcomes: SyncSender<Outcome>,
}

/// The ends of the queues that the background threads read. They are closed once all [`Queues`] are
/// dropped.
#[derive(Debug)]
pub(crate) struct Inboxes {
    pub(crate) jobs: Receiver<Job>,
    pub(crate) outcomes: Receiver<Outcome>,
}

impl Queues {
    /// Creates empty queues.
    pub(crate) fn new() -> (Self, Inboxes) {
        let (jobs, job_inbox) = sync_channel(MAX_SHADOW_QUEUE);
        let (outcomes, outcome_inbox) = sync_channel(MAX_OUTCOME_QUEUE);
        let inboxes = Inboxes { jobs: job_inbox, outcomes: outcome_inbox };
        (Self { jobs, outcomes }, inboxes)
    }

    /// Queues a shadow job, or drops it if the queue is full.
    pub(crate) fn evaluate_shadow(&self, job: Box<ShadowJob>) {
        if let Err(
            TrySendError::Full(Job::Shadow(job)) | TrySendError::Disconnected(Job::Shadow(job)),
        ) = self.jobs.try_send(Job::Shadow(job))
        {
            job.shadow.metrics().record_shadow("dropped");
            job.shadow.update_comparison(|comparison| comparison.dropped += 1);
        }
    }

    /// Queues a comparison with the version before. If the queue is full, the call does not count:
    /// otherwise clients could fill the queue to end a probation.
    pub(crate) fn compare_baseline(&self, job: BaselineJob) {
        self.jobs.try_send(Job::Baseline(job)).ok();
    }

    /// Queues the outcome of a request.
    pub(crate) fn report_outcome(&self, outcome: &Outcome) {
        // Dropped if the queue is full: the contract allows that, and a request must not wait.
        self.outcomes.try_send(outcome.clone()).ok();
    }
}
