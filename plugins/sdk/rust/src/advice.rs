//! Constructors and builder methods for [`Advice`].

use crate::{
    Advice, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneId, LaneScore, Metric,
    MetricWeight, Note, OnTimeout, Permille, QueueAdvice, Rejection, Scalar, Switching, Triggers,
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

    /// Creates advice that lets the host score the lanes by weighted metrics, with weights from
    /// -1000 to 1000.
    #[must_use]
    pub fn blend(weights: impl IntoIterator<Item = (Metric, i32)>) -> Self {
        let weight = |(metric, weight)| MetricWeight { metric, weight };
        let weights = weights.into_iter().map(weight).collect();
        Self { lanes: LaneAdvice::Blend(weights), ..Self::any() }
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

    /// Adds a note for the decision log: a boolean, an integer or a text.
    #[must_use]
    pub fn with_note(mut self, key: &str, value: impl Into<Scalar>) -> Self {
        self.notes.push(Note { key: key.into(), value: value.into() });
        self
    }

    /// Adds a hint. The policy has to list the key in [`Policy::HINTS`](crate::Policy::HINTS).
    #[must_use]
    pub fn with_hint(mut self, key: &str, value: impl Into<Scalar>) -> Self {
        self.hints.push(Note { key: key.into(), value: value.into() });
        self
    }

    /// Sets the fallbacks, in order, for all triggers: lanes, or steps with edits.
    #[must_use]
    pub fn with_fallback(self, steps: impl IntoIterator<Item = impl Into<FallbackStep>>) -> Self {
        self.with_fallback_on(Triggers::all(), steps)
    }

    /// Sets the fallbacks, in order, for these triggers.
    #[must_use]
    pub fn with_fallback_on(
        mut self,
        on: Triggers,
        steps: impl IntoIterator<Item = impl Into<FallbackStep>>,
    ) -> Self {
        let steps = steps.into_iter().map(Into::into).collect();
        self.fallback = Some(FallbackAdvice { on, steps, first_token_ms: None });
        self
    }

    /// Sets the timeout for the first byte of the response in milliseconds. Has no effect on advice
    /// without fallbacks.
    #[must_use]
    pub fn with_first_token_ms(mut self, ms: u32) -> Self {
        if let Some(fallback) = &mut self.fallback {
            fallback.first_token_ms = Some(ms);
        }
        self
    }

    /// Sets the maximum wait in the queue in milliseconds, and what happens then.
    #[must_use]
    pub fn with_max_wait(mut self, ms: u32, on_timeout: OnTimeout) -> Self {
        let queue = self.queue_mut();
        (queue.max_wait_ms, queue.on_timeout) = (Some(ms), on_timeout);
        self
    }

    /// Sets the maximum wait in the queue, after which the request falls back.
    #[deprecated(note = "use `with_max_wait(ms, OnTimeout::FallBack)`")]
    #[must_use]
    pub fn with_max_wait_ms(mut self, ms: u32) -> Self {
        self.queue_mut().max_wait_ms = Some(ms);
        self
    }

    /// Sets the queue priority. Higher goes first, 0 is normal.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.queue_mut().priority = priority;
        self
    }

    /// Sets the flow. Flows of the same priority share capacity fairly.
    #[must_use]
    pub fn with_flow(mut self, flow: impl Into<String>) -> Self {
        self.queue_mut().flow = Some(flow.into());
        self
    }

    /// Sets whether lanes may be switched for this request.
    #[must_use]
    pub fn with_switching(mut self, switching: Switching) -> Self {
        self.switching = Some(switching);
        self
    }

    /// Adds edits of the request.
    #[must_use]
    pub fn with_edits(mut self, edits: impl IntoIterator<Item = Edit>) -> Self {
        self.edits.extend(edits);
        self
    }

    /// Returns the queue advice, which begins as one that has the same effect as none.
    fn queue_mut(&mut self) -> &mut QueueAdvice {
        self.queue.get_or_insert(QueueAdvice {
            priority: 0,
            flow: None,
            max_wait_ms: None,
            on_timeout: OnTimeout::FallBack,
        })
    }
}

impl From<LaneId> for FallbackStep {
    fn from(lane: LaneId) -> Self {
        Self::new(lane)
    }
}

impl From<bool> for Scalar {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<i64> for Scalar {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for Scalar {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u32> for Scalar {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl FallbackStep {
    /// Creates a fallback to a lane, without edits.
    #[must_use]
    pub fn new(lane: LaneId) -> Self {
        Self { lane, edits: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_set_their_part_of_the_advice() {
        let edited = FallbackStep { edits: vec![Edit::SetModel("m".into())], ..2.into() };
        let advice = Advice::blend([(Metric::EstWait, 700), (Metric::Cost, -300)])
            .with_flow("all")
            .with_max_wait(5, OnTimeout::Reject)
            .with_priority(-3)
            .with_switching(Switching::WhenIdle)
            .with_edits([Edit::CapOutputTokens(7)])
            .with_edits([Edit::RemoveField("/n".into())])
            .with_note("session", "s1")
            .with_note("lane", 4_u32)
            .with_hint("h", true)
            .with_fallback([1.into(), edited.clone()])
            .with_first_token_ms(900);
        let LaneAdvice::Blend(weights) = &advice.lanes else { panic!("{advice:?}") };
        assert_eq!(weights[1], MetricWeight { metric: Metric::Cost, weight: -300 });
        let queue = advice.queue.unwrap();
        assert_eq!((queue.priority, queue.flow.as_deref()), (-3, Some("all")));
        assert_eq!((queue.max_wait_ms, queue.on_timeout), (Some(5), OnTimeout::Reject));
        assert_eq!(advice.switching, Some(Switching::WhenIdle));
        assert_eq!(advice.edits.len(), 2);
        let text = |key: &str, value| Note { key: key.into(), value };
        assert_eq!(
            advice.notes,
            [text("session", Scalar::Text("s1".into())), text("lane", Scalar::Int(4))]
        );
        assert_eq!(advice.hints, [text("h", Scalar::Flag(true))]);
        let fallback = advice.fallback.unwrap();
        assert_eq!((fallback.on, fallback.first_token_ms), (Triggers::all(), Some(900)));
        assert_eq!(fallback.steps, [FallbackStep::new(1), edited]);
        let none = Advice::any().with_fallback_on(Triggers::OVERLOADED, [3]).fallback.unwrap();
        assert_eq!((none.on, none.steps[0].lane), (Triggers::OVERLOADED, 3));
    }
}
