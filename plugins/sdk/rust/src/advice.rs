//! Constructors and builder methods for [`Advice`].

use crate::{
    Advice, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, LaneScore, Note, OnTimeout, Permille,
    QueueAdvice, Rejection, Scalar, Triggers,
};

impl Advice {
    /// Creates advice without an opinion: every candidate is fine.
    #[must_use]
    pub fn any() -> Self {
        Self {
            reject: None,
            lanes: LaneAdvice::Any,
            switching: None,
            queue: None,
            fallback: None,
            edits: Vec::new(),
            notes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Creates advice that allows only these lanes.
    #[must_use]
    pub fn only(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Only(lanes.into()), ..Self::any() }
    }

    /// Creates advice that excludes these lanes.
    #[must_use]
    pub fn avoid(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Avoid(lanes.into()), ..Self::any() }
    }

    /// Creates advice that allows only these lanes and ranks them, best first.
    #[must_use]
    pub fn ordered(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Ordered(lanes.into()), ..Self::any() }
    }

    /// Creates advice with scores from 0 to 1000. Lanes without a score get 0 and stay allowed.
    #[must_use]
    pub fn scores(scores: impl IntoIterator<Item = (LaneId, Permille)>) -> Self {
        let scores = scores.into_iter().map(|(lane, score)| LaneScore { lane, score }).collect();
        Self { lanes: LaneAdvice::Scores(scores), ..Self::any() }
    }

    /// Creates a rejection: an HTTP status (400 to 499, or 503), a stable machine-readable code
    /// and a message for the client.
    #[must_use]
    pub fn reject(status: u16, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        let reject = Some(Rejection { status, code, message, retry_after_s: None });
        Self { reject, ..Self::any() }
    }

    /// Sets the `Retry-After` header of a rejection. Has no effect on other advice.
    #[must_use]
    pub fn with_retry_after_s(mut self, seconds: u32) -> Self {
        if let Some(rejection) = &mut self.reject {
            rejection.retry_after_s = Some(seconds);
        }
        self
    }

    /// Adds the reason shown to operators and clients, as the note `why`.
    #[must_use]
    pub fn with_reason(self, reason: impl Into<String>) -> Self {
        self.with_note("why", Scalar::Text(reason.into()))
    }

    /// Adds a note for the decision log.
    #[must_use]
    pub fn with_note(mut self, key: &str, value: Scalar) -> Self {
        self.notes.push(Note { key: key.into(), value });
        self
    }

    /// Sets the fallback lanes, in order, for all triggers.
    #[must_use]
    pub fn with_fallback(mut self, lanes: impl IntoIterator<Item = LaneId>) -> Self {
        let steps = lanes.into_iter().map(FallbackStep::new).collect();
        self.fallback = Some(FallbackAdvice { on: Triggers::all(), steps, first_token_ms: None });
        self
    }

    /// Sets the maximum wait in the queue, after which the request falls back.
    #[must_use]
    pub fn with_max_wait_ms(mut self, ms: u32) -> Self {
        self.queue = Some(QueueAdvice {
            max_wait_ms: Some(ms),
            ..self.queue.take().unwrap_or_else(default_queue)
        });
        self
    }

    /// Sets the queue priority. Higher goes first, 0 is normal.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.queue =
            Some(QueueAdvice { priority, ..self.queue.take().unwrap_or_else(default_queue) });
        self
    }
}

impl FallbackStep {
    /// Creates a fallback to a lane, without edits.
    #[must_use]
    pub fn new(lane: LaneId) -> Self {
        Self { lane, edits: Vec::new() }
    }
}

/// Returns queue advice that has the same effect as none.
fn default_queue() -> QueueAdvice {
    QueueAdvice { priority: 0, flow: None, max_wait_ms: None, on_timeout: OnTimeout::FallBack }
}
