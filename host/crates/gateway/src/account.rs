//! Promise 1, kept by construction: every accepted request ends in exactly one way.
//!
//! ```text
//!   accepted = answered + fell back and answered + explicit error + client gone + in flight
//! ```
//!
//! [`Accepted`] is made when a request is taken in and counts its end exactly once: explicitly, or on drop, which is
//! what happens to it when hyper abandons the request because the client left.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pointsman_domain::{AttemptResult, FleetView, LaneId, Outcome, RequestView as _, Trace};
use pointsman_openai::{Request, Usage};
use tokio::time::Instant;

use crate::Decider;
use crate::metrics::{End, GatewayMetrics};
use crate::recording::Recording;

/// One accepted request, until it has ended.
#[derive(Debug)]
pub(crate) struct Accepted {
    metrics: Arc<GatewayMetrics>,
    endpoint: &'static str,
    since: Instant,
    lane: Option<Arc<str>>,
    tries: u32,
    /// Another lane than the first one is being tried.
    moved: bool,
    ended: bool,
    /// What is told at the end, where somebody learns from it or it is recorded. Boxed, because requests that wait are many.
    lesson: Option<Box<Lesson>>,
}

/// The outcome as far as it is known, and whoever learns from it.
#[derive(Debug)]
struct Lesson {
    outcome: Outcome,
    learner: Option<Decider>,
    recording: Option<Recording>,
    /// Since when it has been waiting for a slot.
    waits: Option<Instant>,
}

impl Accepted {
    pub(crate) fn new(metrics: Arc<GatewayMetrics>, endpoint: &'static str) -> Self {
        metrics.accepted.inc();
        metrics.in_flight.inc();
        let since = Instant::now();
        Self {
            metrics,
            endpoint,
            since,
            lane: None,
            tries: 0,
            moved: false,
            ended: false,
            lesson: None,
        }
    }

    /// It was decided. Whoever decided hears of the end, if it learns; a recording is handed over then.
    pub(crate) fn decided(
        &mut self,
        decider: &Decider,
        request: &Request,
        fleet: &FleetView,
        recording: Option<Recording>,
    ) {
        let learner = decider.learns().then(|| Arc::clone(decider));
        if learner.is_none() && recording.is_none() {
            return;
        }
        let outcome = Outcome {
            request_id: request.id().into(),
            tenant: request.tenant().map(Arc::from),
            model: request.model().into(),
            lane: LaneId(0),
            topology: fleet.topology.generation(),
            ended: AttemptResult::Other,
            tries: 0,
            queue: Duration::ZERO,
            ttft: Duration::ZERO,
            total: Duration::ZERO,
            prompt_tokens: request.figures().prompt_tokens,
            cached_tokens: 0,
            output_tokens: 0,
        };
        self.lesson = Some(Box::new(Lesson { outcome, learner, recording, waits: None }));
    }

    /// Does anybody want to know more than that it has ended?
    pub(crate) fn is_learned_from(&self) -> bool {
        self.lesson.as_ref().is_some_and(|lesson| {
            lesson.learner.is_some() || lesson.recording.as_ref().is_some_and(Recording::is_certain)
        })
    }

    /// For what policies are asked after the decision.
    pub(crate) fn trace(&self) -> Trace {
        let recorded = self.lesson.as_ref().is_some_and(|lesson| lesson.recording.is_some());
        if recorded { Trace::on() } else { Trace::off() }
    }

    /// What came of [`Accepted::trace`].
    pub(crate) fn consulted(&mut self, trace: Trace) {
        if let Some(recording) = self.recording() {
            recording.consulted(trace.into_consulted());
        }
    }

    fn recording(&mut self) -> Option<&mut Recording> {
        self.lesson.as_mut()?.recording.as_mut()
    }

    /// Time since the request was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// A lane is being tried: first of all, it waits for a slot there.
    pub(crate) fn tries(&mut self, id: LaneId, lane: &str) {
        // The same lane may be asked once more, which is no falling back.
        self.moved |= self.lane.as_deref().is_some_and(|before| before != lane);
        self.lane = Some(lane.into());
        self.tries += 1;
        if let Some(lesson) = &mut self.lesson {
            lesson.outcome.lane = id;
            lesson.waits = Some(Instant::now());
            if let Some(recording) = &mut lesson.recording {
                recording.tries(id, self.since.elapsed());
            }
        }
    }

    /// It has a slot, or was refused one.
    pub(crate) fn waited(&mut self) {
        if let Some(lesson) = &mut self.lesson
            && let Some(since) = lesson.waits.take()
        {
            let waited = since.elapsed();
            lesson.outcome.queue += waited;
            if let Some(recording) = &mut lesson.recording {
                recording.waited(waited);
            }
        }
    }

    /// The try under way has failed; 0 stands for no status.
    pub(crate) fn try_failed(&mut self, result: AttemptResult, status: u16) {
        let age = self.age();
        if let Some(recording) = self.recording() {
            recording.answers(status);
            recording.tried(result, age);
        }
    }

    /// How often a lane was tried.
    pub(crate) fn tried(&self) -> u32 {
        self.tries
    }

    /// The first byte of the answer goes out.
    pub(crate) fn first_byte(&mut self, status: StatusCode) {
        let age = self.age();
        self.metrics.first_byte_seconds.observe(age.as_secs_f64());
        if let Some(lesson) = &mut self.lesson {
            lesson.outcome.ttft = age;
            if let Some(recording) = &mut lesson.recording {
                recording.answers(status.as_u16());
            }
        }
    }

    /// The engine said how many tokens it was; zeros where it did not.
    pub(crate) fn used(&mut self, usage: Usage) {
        if let Some(Lesson { outcome, .. }) = self.lesson.as_deref_mut() {
            if usage.prompt_tokens > 0 {
                outcome.prompt_tokens = usage.prompt_tokens;
            }
            outcome.cached_tokens = usage.cached_tokens;
            outcome.output_tokens = usage.completion_tokens;
        }
    }

    /// The whole answer went out.
    pub(crate) fn answered(&mut self) {
        self.end(if self.moved { End::FellBack } else { End::Answered }, AttemptResult::Ok);
    }

    /// The client got an explicit error, because the last try ended so.
    pub(crate) fn failed(&mut self, last: AttemptResult) {
        self.end(End::Error, last);
    }

    fn end(&mut self, end: End, last: AttemptResult) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.waited();
        let total = self.age();
        self.metrics.ended(self.endpoint, self.lane.as_deref().unwrap_or(""), end, total);
        let Some(lesson) = self.lesson.take() else { return };
        let Lesson { outcome, learner, recording, .. } = *lesson;
        let outcome = Outcome { ended: last, tries: self.tries, total, ..outcome };
        // Of a request that no lane was tried for there is nothing to be learned: it was refused.
        if let Some(learner) = learner.filter(|_| self.tries > 0) {
            learner.ended(&outcome);
        }
        if let Some(recording) = recording {
            recording.ended(end.into(), last, outcome);
        }
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.end(End::ClientGone, AttemptResult::ClientGone);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn asking_a_lane_once_more_is_no_falling_back() {
        for (lanes, outcome) in [
            (["a", "a"], "pointsman_answered_total 1"),
            (["a", "b"], "pointsman_fell_back_total 1"),
        ] {
            let mut registry = Registry::default();
            let mut accepted = Accepted::new(GatewayMetrics::register(&mut registry), "chat");
            lanes.into_iter().for_each(|lane| accepted.tries(LaneId(0), lane));
            assert_eq!(accepted.tried(), 2);
            accepted.answered();
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            assert!(text.contains(outcome), "{lanes:?}: {text}");
        }
    }
}
