//! A request comes: what the gateway's `serve` does with it, step by step.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    AttemptCursor, AttemptResult, Decision, Facts, Merged, Outcome, Plan, RequestView as _, Trace,
};
use pointsman_openai::Request;

use super::World;
use super::in_flight::{Live, Place};
use crate::engine::Used;
use crate::observe::{Ended, How};
use crate::traffic::Ask;

/// A request for which no lane is tried: how it ends, and why.
type Refused = (How, String);

impl World<'_> {
    /// A request comes: decide about it, and try the first lane of its plan.
    pub(super) fn comes(&mut self, mut ask: Ask) {
        self.books.accepted += 1;
        let number = self.books.accepted;
        let id = ask.id.get_or_insert_with(|| format!("sim-{number}").into()).as_ref().to_owned();
        let common = self.writer.common(&ask);
        let decided = match self.writer.write(&ask, id) {
            Ok(request) => self.decide(&ask, &request).map(|(merged, plan)| {
                let came_with = request.figures().prompt_tokens;
                (apply(&request, &merged), plan, came_with)
            }),
            Err(bad) => Err((How::Error, bad.to_string())),
        };
        let cursor = decided.and_then(|(request, plan, came_with)| {
            let cursor = AttemptCursor::new(plan, self.setting.fleet.limits.max_steps);
            cursor
                .map(|cursor| (request, cursor, came_with))
                .ok_or_else(|| (How::Error, "its plan has no step".to_owned()))
        });
        match cursor {
            Ok((request, cursor, came_with)) => {
                let leaves =
                    ask.patience.map_or(Duration::MAX, |patience| ask.at.saturating_add(patience));
                let key = self.crowd.add(Live {
                    ask,
                    request,
                    cursor,
                    place: Place::OnItsWay,
                    tries: Vec::with_capacity(1),
                    moved: false,
                    leaves,
                    limit: None,
                    first_byte: None,
                    used: Used::default(),
                    streams: false,
                    common,
                    came_with,
                });
                self.books.most_live = self.books.most_live.max(self.crowd.len());
                self.limit(key);
                self.try_lane(key);
            }
            Err((how, problem)) => {
                self.observer.ended(&Ended {
                    ask: &ask,
                    how,
                    at: self.now,
                    wait: Duration::ZERO,
                    first_byte: None,
                    tries: &[],
                    cached_tokens: 0,
                    output_tokens: 0,
                    problem: Some(&problem),
                });
                self.count(how);
                self.asks_again(&ask);
            }
        }
    }

    fn decide(&mut self, ask: &Ask, request: &Request) -> Result<(Merged, Plan), Refused> {
        let fleet = self.view();
        if fleet.topology.candidates(request.model()).is_empty() {
            return Err((
                How::Error,
                format!("no lane answers to the model `{}`", request.model()),
            ));
        }
        let facts = self.facts(request, ask.at, 0);
        let merged = self.deciders.advisor().advise(&facts, &fleet, &mut Trace::off());
        let decision = Plan::from_advice(&merged, &fleet, &self.setting.fleet.limits);
        let first = match &decision {
            Decision::Route(plan) => plan.steps.first().map(|step| step.lane),
            Decision::Reject(..) | Decision::NoLane(_) => None,
        };
        self.observer.decided(ask, first, &merged.by);
        match decision {
            Decision::Route(plan) => Ok((merged, plan)),
            Decision::Reject(policy, rejection) => {
                Err((How::Rejected, format!("{policy} refuses it: {}", rejection.message)))
            }
            Decision::NoLane(reason) => Err((How::Error, reason.to_string())),
        }
    }

    /// What the policies get to know now: the tries so far are the ones that failed.
    pub(super) fn facts(&self, request: &Request, came: Duration, tried: usize) -> Facts {
        Facts {
            request: Arc::new(request.clone()),
            now_ms: self.now_ms(),
            seed: Facts::seed(request.id()),
            age: self.now.saturating_sub(came),
            attempt: u32::try_from(tried).unwrap_or(u32::MAX),
        }
    }

    /// A request has ended, and is forgotten.
    pub(super) fn end(
        &mut self,
        live: &mut Live,
        how: How,
        last: AttemptResult,
        problem: Option<&str>,
    ) {
        if let Some(tried) = live.tries.last_mut() {
            tried.result = last;
        }
        let queues = live.tries.iter().map(|tried| tried.queue).sum();
        let last_try = live.tries.last().filter(|_| how.is_answer());
        let wait = last_try
            .map_or(queues, |tried| (tried.begun + tried.queue).saturating_sub(live.ask.at));
        self.observer.ended(&Ended {
            ask: &live.ask,
            how,
            at: self.now,
            wait,
            first_byte: live.first_byte,
            tries: &live.tries,
            cached_tokens: live.used.cached,
            output_tokens: live.used.written,
            problem,
        });
        self.count(how);
        if let Some(tried) = live.tries.last().filter(|_| self.deciders.advisor().learns()) {
            // Of an answer that broke off, the engine does not say how much it was.
            let used = if last == AttemptResult::Ok { live.used } else { Used::default() };
            let estimate = live.request.figures().prompt_tokens;
            let outcome = Outcome {
                request_id: live.request.id().into(),
                tenant: live.ask.tenant.clone(),
                model: live.request.model().into(),
                lane: tried.lane,
                topology: self.topology.generation(),
                ended: last,
                tries: u32::try_from(live.tries.len()).unwrap_or(u32::MAX),
                queue: queues,
                ttft: live.first_byte.unwrap_or_default(),
                total: live.age(self.now),
                prompt_tokens: if last == AttemptResult::Ok {
                    live.ask.prompt_tokens
                } else {
                    estimate
                },
                cached_tokens: used.cached,
                output_tokens: used.written,
            };
            self.lessons.add(outcome, self.now);
        }
        self.asks_again(&live.ask);
    }

    fn count(&mut self, how: How) {
        let books = &mut self.books;
        books.ended_at = self.now;
        *match how {
            How::Answered => &mut books.answered,
            How::FellBack => &mut books.fell_back,
            How::Rejected => &mut books.rejected,
            How::Error => &mut books.errors,
            How::ClientGone => &mut books.client_gone,
        } += 1;
    }

    /// What the same client asks next.
    fn asks_again(&mut self, ask: &Ask) {
        if let Some(next) = self.traffic.after(ask, self.now) {
            self.later(next);
        }
    }
}

/// The request with the edits of the policies, as far as they can be applied.
fn apply(request: &Request, merged: &Merged) -> Request {
    if merged.edits.is_empty() { request.clone() } else { request.apply(&merged.edits).0 }
}
