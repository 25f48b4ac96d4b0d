//! The bounded queues from requests to the background threads. Requests are never delayed: what
//! does not fit is dropped, and for shadows counted.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use pointsman_domain::Outcome;

use crate::chain::shadow::ShadowJob;

/// Maximum queued shadow jobs. Each holds a request in memory.
const MAX_SHADOW_QUEUE: usize = 256;
/// Maximum queued outcomes.
const MAX_OUTCOME_QUEUE: usize = 4096;

/// The ends of the queues that requests write to.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    shadows: SyncSender<ShadowJob>,
    outcomes: SyncSender<Outcome>,
}

/// The ends of the queues that the background threads read. They are closed once all [`Queues`] are
/// dropped.
#[derive(Debug)]
pub(crate) struct Inboxes {
    pub(crate) shadows: Receiver<ShadowJob>,
    pub(crate) outcomes: Receiver<Outcome>,
}

impl Queues {
    /// Creates empty queues.
    pub(crate) fn new() -> (Self, Inboxes) {
        let (shadows, shadow_inbox) = sync_channel(MAX_SHADOW_QUEUE);
        let (outcomes, outcome_inbox) = sync_channel(MAX_OUTCOME_QUEUE);
        let inboxes = Inboxes { shadows: shadow_inbox, outcomes: outcome_inbox };
        (Self { shadows, outcomes }, inboxes)
    }

    /// Queues a shadow job, or drops it if the queue is full.
    pub(crate) fn evaluate_shadow(&self, job: ShadowJob) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.shadows.try_send(job)
        {
            job.shadow.metrics().record_shadow("dropped");
            job.shadow.update_comparison(|comparison| comparison.dropped += 1);
        }
    }

    /// Queues the outcome of a request.
    pub(crate) fn report_outcome(&self, outcome: &Outcome) {
        // Dropped if the queue is full: the contract allows that, and a request must not wait.
        self.outcomes.try_send(outcome.clone()).ok();
    }
}
