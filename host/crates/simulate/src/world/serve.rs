//! The arrival and the end of a request: the counterpart of the gateway's `serve`.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    AttemptCursor, AttemptResult, Decision, Facts, Merged, Outcome, Plan, RequestView as _, Trace,
};
use pointsman_openai::Request;

use super::World;
use super::in_flight::{InFlightRequest, RequestStage};
use crate::engine::TokenUsage;
use crate::observe::{FinishedRequest, RequestResult};
use crate::traffic::SimRequest;

/// The end of a request that is not sent to any lane, with its reason.
type NotRouted = (RequestResult, String);

impl World<'_> {
    /// Serves a request that arrives now: decides about it, and starts the first attempt.
    pub(super) fn serve(&mut self, mut sim: SimRequest) {
        self.totals.accepted += 1;
        let number = self.totals.accepted;
        let id = sim.id.get_or_insert_with(|| format!("sim-{number}").into()).as_ref().to_owned();
        let class_prefix = self.writer.class_prefix(&sim);
        let decided = match self.writer.write(&sim, id) {
            Ok(request) => self.decide(&sim, &request).map(|(merged, plan)| {
                let estimate = request.info().prompt_tokens;
                (apply_edits(&request, &merged), plan, estimate)
            }),
            Err(error) => Err((RequestResult::Error, error.to_string())),
        };
        let routed = decided.and_then(|(request, plan, estimate)| {
            let cursor = AttemptCursor::new(plan, self.config.fleet.limits.max_steps);
            cursor
                .map(|cursor| (request, cursor, estimate))
                .ok_or_else(|| (RequestResult::Error, "the plan has no steps".to_owned()))
        });
        match routed {
            Ok((request, cursor, original_estimate)) => {
                let client_leaves_at = sim
                    .client_timeout
                    .map_or(Duration::MAX, |timeout| sim.at.saturating_add(timeout));
                let key = self.in_flight.insert(InFlightRequest {
                    sim,
                    request,
                    cursor,
                    stage: RequestStage::BetweenAttempts,
                    attempts: Vec::with_capacity(1),
                    fell_back: false,
                    client_leaves_at,
                    timer: None,
                    first_byte: None,
                    usage: TokenUsage::default(),
                    is_streaming: false,
                    class_prefix,
                    original_estimate,
                });
                self.totals.max_in_flight = self.totals.max_in_flight.max(self.in_flight.len());
                self.update_timer(key);
                self.start_attempt(key);
            }
            Err((result, reason)) => {
                self.observer.ended(&FinishedRequest {
                    request: &sim,
                    result,
                    at: self.now,
                    wait: Duration::ZERO,
                    first_byte: None,
                    attempts: &[],
                    cached_tokens: 0,
                    output_tokens: 0,
                    reason: Some(&reason),
                });
                self.count(result);
                self.continue_session(&sim);
            }
        }
    }

    fn decide(&mut self, sim: &SimRequest, request: &Request) -> Result<(Merged, Plan), NotRouted> {
        let fleet = self.fleet_view();
        if fleet.topology.candidates(request.model()).is_empty() {
            let reason = format!("no lane serves model `{}`", request.model());
            return Err((RequestResult::Error, reason));
        }
        let facts = self.facts(request, sim.at, 0);
        let merged = self.advisor.advisor().advise(&facts, &fleet, &mut Trace::off());
        let decision = Plan::from_advice(&merged, &fleet, &self.config.fleet.limits);
        let first = match &decision {
            Decision::Route(plan) => plan.steps.first().map(|step| step.lane),
            Decision::Reject(..) | Decision::NoLane(_) => None,
        };
        self.observer.decided(sim, first, &merged.by);
        match decision {
            Decision::Route(plan) => Ok((merged, plan)),
            Decision::Reject(policy, rejection) => {
                let reason = format!("rejected by {policy}: {}", rejection.message);
                Err((RequestResult::Rejected, reason))
            }
            Decision::NoLane(reason) => Err((RequestResult::Error, reason.to_string())),
        }
    }

    /// Returns the facts that policies receive after this many failed attempts.
    pub(super) fn facts(
        &self,
        request: &Request,
        arrived_at: Duration,
        failed_attempts: usize,
    ) -> Facts {
        Facts {
            request: Arc::new(request.clone()),
            now_ms: self.now_ms(),
            seed: Facts::seed(request.id()),
            age: self.now.saturating_sub(arrived_at),
            attempt: u32::try_from(failed_attempts).unwrap_or(u32::MAX),
        }
    }

    /// Reports the end of a request that has been removed from the in-flight requests.
    pub(super) fn finish(
        &mut self,
        ended: &mut InFlightRequest,
        result: RequestResult,
        last_attempt: AttemptResult,
        reason: Option<&str>,
    ) {
        if let Some(attempt) = ended.attempts.last_mut() {
            attempt.result = last_attempt;
        }
        let queues = ended.attempts.iter().map(|attempt| attempt.queue).sum();
        let successful = ended.attempts.last().filter(|_| result.is_success());
        let wait = successful
            .map_or(queues, |attempt| (attempt.begun + attempt.queue).saturating_sub(ended.sim.at));
        self.observer.ended(&FinishedRequest {
            request: &ended.sim,
            result,
            at: self.now,
            wait,
            first_byte: ended.first_byte,
            attempts: &ended.attempts,
            cached_tokens: ended.usage.cached,
            output_tokens: ended.usage.generated,
            reason,
        });
        self.count(result);
        if let Some(attempt) =
            ended.attempts.last().filter(|_| self.advisor.advisor().observes_outcomes())
        {
            // An engine only reports token counts at the end of a complete response.
            let is_complete = last_attempt == AttemptResult::Ok;
            let usage = if is_complete { ended.usage } else { TokenUsage::default() };
            let estimate = ended.request.info().prompt_tokens;
            let outcome = Outcome {
                request_id: ended.request.id().into(),
                tenant: ended.sim.tenant.clone(),
                model: ended.request.model().into(),
                lane: attempt.lane,
                topology: self.topology.generation(),
                ended: last_attempt,
                tries: u32::try_from(ended.attempts.len()).unwrap_or(u32::MAX),
                queue: queues,
                ttft: ended.first_byte.unwrap_or_default(),
                total: ended.age(self.now),
                prompt_tokens: if is_complete { ended.sim.prompt_tokens } else { estimate },
                cached_tokens: usage.cached,
                output_tokens: usage.generated,
            };
            self.outcomes.push(outcome, self.now);
        }
        self.continue_session(&ended.sim);
    }

    fn count(&mut self, result: RequestResult) {
        let totals = &mut self.totals;
        totals.ended_at = self.now;
        *match result {
            RequestResult::Answered => &mut totals.answered,
            RequestResult::FellBack => &mut totals.fell_back,
            RequestResult::Rejected => &mut totals.rejected,
            RequestResult::Error => &mut totals.errors,
            RequestResult::ClientGone => &mut totals.client_gone,
        } += 1;
    }

    /// Schedules the next request of the same client.
    fn continue_session(&mut self, sim: &SimRequest) {
        if let Some(next) = self.traffic.follow_up(sim, self.now) {
            self.schedule_follow_up(next);
        }
    }
}

/// Returns the request with the policies' edits. Edits that cannot be applied are dropped, as in
/// the gateway.
fn apply_edits(request: &Request, merged: &Merged) -> Request {
    if merged.edits.is_empty() { request.clone() } else { request.apply(&merged.edits).0 }
}
