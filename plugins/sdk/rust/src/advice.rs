//! Short ways to say common things.

use crate::{Advice, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, Note, Scalar, Triggers};

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

    /// These lanes, best first.
    #[must_use]
    pub fn ordered(lanes: impl Into<Vec<LaneId>>) -> Self {
        Self { lanes: LaneAdvice::Ordered(lanes.into()), ..Self::any() }
    }

    /// With the reason that people are shown.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.notes.push(Note { key: "why".into(), value: Scalar::Text(why.into()) });
        self
    }

    /// With these lanes to fall back to, in order, after any failure.
    #[must_use]
    pub fn falling_back_to(mut self, lanes: impl IntoIterator<Item = LaneId>) -> Self {
        let steps = lanes.into_iter().map(|lane| FallbackStep { lane, edits: Vec::new() }).collect();
        self.fallback = Some(FallbackAdvice { on: default_triggers(), steps, first_token_ms: None });
        self
    }
}

/// Every event that can move a request on.
#[must_use]
pub fn default_triggers() -> Triggers {
    Triggers::all()
}
