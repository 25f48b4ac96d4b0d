//! Short ways to say common things.

use crate::{
    Advice, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, LaneScore, Note, OnTimeout, Permille,
    QueueAdvice, Rejection, Scalar, Triggers,
};

impl Advice {
    /// No opinion.
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

    /// Only these lanes will do.
    #[must_use]
    pub fn only(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Only(lanes.into()), ..Self::any() }
    }

    /// All lanes but these will do.
    #[must_use]
    pub fn avoiding(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Avoid(lanes.into()), ..Self::any() }
    }

    /// These lanes, best first.
    #[must_use]
    pub fn ordered(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Ordered(lanes.into()), ..Self::any() }
    }

    /// Scores from 0 to 1000; lanes that are not named get 0 and stay allowed.
    #[must_use]
    pub fn scores(scores: impl IntoIterator<Item = (LaneId, Permille)>) -> Self {
        let scores = scores.into_iter().map(|(lane, score)| LaneScore { lane, score }).collect();
        Self { lanes: LaneAdvice::Scores(scores), ..Self::any() }
    }

    /// Refuse the request: an HTTP status from 400 to 499 or 503, a code for programs, and a sentence for people.
    #[must_use]
    pub fn refuse(status: u16, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        let reject = Some(Rejection { status, code, message, retry_after_s: None });
        Self { reject, ..Self::any() }
    }

    /// A refusal that says when to come again.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u32) -> Self {
        if let Some(rejection) = &mut self.reject {
            rejection.retry_after_s = Some(seconds);
        }
        self
    }

    /// With the reason that people are shown.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Self {
        self.note("why", Scalar::Text(why.into()))
    }

    /// With a note for the decision log.
    #[must_use]
    pub fn note(mut self, key: &str, value: Scalar) -> Self {
        self.notes.push(Note { key: key.into(), value });
        self
    }

    /// With these lanes to fall back to, in order, after any failure.
    #[must_use]
    pub fn falling_back_to(mut self, lanes: impl IntoIterator<Item = LaneId>) -> Self {
        let steps = lanes.into_iter().map(FallbackStep::plain).collect();
        self.fallback =
            Some(FallbackAdvice { on: default_triggers(), steps, first_token_ms: None });
        self
    }

    /// With a longest wait in the queue, after which the request falls back.
    #[must_use]
    pub fn waiting_at_most(mut self, ms: u32) -> Self {
        self.queue = Some(QueueAdvice {
            max_wait_ms: Some(ms),
            ..self.queue.take().unwrap_or_else(in_queue)
        });
        self
    }

    /// With a priority in the queue; higher goes first, 0 is normal.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.queue = Some(QueueAdvice { priority, ..self.queue.take().unwrap_or_else(in_queue) });
        self
    }
}

impl FallbackStep {
    /// A lane, with nothing to change for it.
    #[must_use]
    pub fn plain(lane: LaneId) -> Self {
        Self { lane, edits: Vec::new() }
    }
}

/// A place in the queue as it is without advice.
fn in_queue() -> QueueAdvice {
    QueueAdvice { priority: 0, flow: None, max_wait_ms: None, on_timeout: OnTimeout::FallBack }
}

/// Every event that can move a request on.
#[must_use]
pub fn default_triggers() -> Triggers {
    Triggers::all()
}
