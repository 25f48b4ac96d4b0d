//! The arrival and the end of a request.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::request_flow::{Action, Effects, End, ErrorAnswer, Event};
use pointsman_domain::{
    Advised, Deadline, Decision, Facts, OutcomeSubject, Plan, QueueShare, RequestFlow,
    RequestResult, RequestView as _, Trace,
};
use pointsman_openai::Request;

use super::World;
use super::in_flight::{InFlightRequest, Kept, RequestStage, with_output_limit};
use crate::engine::{RequestKey, TokenUsage};
use crate::observe::{Attempt, FinishedRequest};
use crate::traffic::SimRequest;

impl World<'_> {
    /// Serves a request that arrives now: decides about it, and starts the first attempt.
    pub(super) fn serve(&mut self, mut sim: SimRequest) {
        self.totals.accepted += 1;
        let number = self.totals.accepted;
        let id = sim.id.get_or_insert_with(|| format!("sim-{number}").into()).as_ref().to_owned();
        let config = self.config.fleet;
        let mut flow = RequestFlow::new(Deadline::new(config.deadline), &config.limits);
        let class_prefix = self.writer.class_prefix(&sim);
        let request = match self.accept(&sim, id) {
            Ok(request) => request,
            Err(reason) => {
                let effects = flow.on(Event::Refused, self.age(&sim));
                return self.finish_unrouted(&sim, &flow, &effects, &reason);
            }
        };
        let tenant = sim.tenant.as_deref();
        let share = tenant.and_then(|tenant| config.weights.get(tenant));
        let share = share.map(|weight| QueueShare { weight: *weight, ..QueueShare::default() });
        let mut share = share.unwrap_or_default();
        if let Some(constraint) = request.constraint() {
            share.priority = constraint.clamp_priority(share.priority);
        }
        let accepted = Event::Accepted { tenant, share };
        drop(flow.on(accepted, self.age(&sim)));
        let original_estimate = request.info().prompt_tokens;
        let (request, kept, effects) = self.decide(&sim, &request, &mut flow);
        if matches!(effects.action, Action::End(_)) {
            return self.finish_unrouted(&sim, &flow, &effects, "");
        }
        let client_leaves_at =
            sim.client_timeout.map_or(Duration::MAX, |timeout| sim.at.saturating_add(timeout));
        let key = self.in_flight.insert(InFlightRequest {
            sim,
            request,
            sent: None,
            served: None,
            flow,
            stage: RequestStage::BetweenAttempts,
            client_leaves_at,
            timer: None,
            usage: TokenUsage::default(),
            is_streaming: false,
            class_prefix,
            original_estimate,
            kept,
        });
        self.totals.max_in_flight = self.totals.max_in_flight.max(self.in_flight.len());
        self.carry_out(key, effects, "");
    }

    fn age(&self, sim: &SimRequest) -> Duration {
        self.now.saturating_sub(sim.at)
    }

    /// Returns the HTTP request, or why it is invalid.
    fn accept(&mut self, sim: &SimRequest, id: String) -> Result<Request, String> {
        let request = self.writer.write(sim, id).map_err(|error| error.to_string())?;
        let (model, endpoint) = (request.model(), request.info().endpoint);
        if self.topology.candidates_for(model, endpoint).next().is_none() {
            return Err(format!("no lane serves model `{model}` at {}", endpoint.label()));
        }
        let Some(constraint) = self.config.fleet.guards.for_request(&request) else {
            return Ok(request);
        };
        let mut lanes = self.topology.candidates_for(model, endpoint);
        if lanes.all(|lane| constraint.objection(&self.topology, lane).is_some()) {
            return Err(format!("guards `{}` leave no lane", constraint.names()));
        }
        Ok(request.with_constraint(Some(constraint)))
    }

    /// Asks the policies and decides. Returns the request with the policies' edits, of which those
    /// that cannot be applied are dropped, as in the gateway.
    fn decide(
        &mut self,
        sim: &SimRequest,
        request: &Request,
        flow: &mut RequestFlow,
    ) -> (Request, Kept, Effects) {
        let fleet = self.fleet_view_for(request);
        let facts = self.facts(request, sim.at, flow.attempt_count());
        let advisor = self.advisor.advisor();
        let Advised { merged, edited, watch: _ } =
            advisor.advise(&facts, &fleet, &mut Trace::off());
        let has_recovery = advisor.has_recovery();
        let kept = Kept {
            notes: advisor.kept_notes(&merged),
            lanes_left: merged.lanes.iter().map(|(lane, _)| *lane).collect(),
        };
        let decision = Plan::from_advice(&merged, &fleet, &self.config.fleet.limits);
        let first = match &decision {
            Decision::Route(plan) => plan.steps.first().map(|step| step.lane),
            Decision::Reject(..) | Decision::NoLane(_) => None,
        };
        self.observer.decided(sim, first, &merged.by);
        let effects = flow.on(Event::Decided { decision, has_recovery }, self.age(sim));
        let edited = edited.and_then(Request::from_view);
        let edited = edited.unwrap_or_else(|| request.apply(&merged.edits).0);
        let edited = with_output_limit(edited);
        (edited, kept, effects)
    }

    /// Returns the facts that policies receive after this many attempts.
    pub(super) fn facts(&self, request: &Request, arrived_at: Duration, attempt: u32) -> Facts {
        let age = self.now.saturating_sub(arrived_at);
        Facts {
            request: Arc::new(request.clone()),
            now_ms: self.now_ms(),
            seed: Facts::seed(request.id()),
            age,
            attempt,
            time_left: Some(Deadline::new(self.config.fleet.deadline).left(age)),
            lanes_left: None,
        }
    }

    /// Removes a request together with its timer.
    pub(super) fn remove(&mut self, key: RequestKey) -> Option<InFlightRequest> {
        let request = self.in_flight.remove(key)?;
        if let Some(timer) = request.timer {
            self.timers.remove(&(timer, key));
        }
        Some(request)
    }

    /// Reports the end of a request without any attempt.
    fn finish_unrouted(
        &mut self,
        sim: &SimRequest,
        flow: &RequestFlow,
        effects: &Effects,
        reason: &str,
    ) {
        if let Action::End(end) = &effects.action {
            self.report_end(sim, flow, TokenUsage::default(), end, reason);
            self.continue_session(sim);
        }
    }

    /// Reports the end of a request that has been removed from the in-flight requests.
    pub(super) fn finish_request(&mut self, ended: &InFlightRequest, end: &End, reason: &str) {
        self.report_end(&ended.sim, &ended.flow, ended.usage, end, reason);
        if self.advisor.advisor().observes_outcomes() {
            let notes = ended.kept.notes.clone();
            let subject = OutcomeSubject {
                request_id: ended.request.id().into(),
                tenant: ended.sim.tenant.clone(),
                model: ended.request.model().into(),
                topology: self.topology.generation(),
                prompt_tokens: ended.original_estimate,
                notes,
            };
            if let Some(outcome) = ended.flow.outcome(subject) {
                self.outcomes.push(outcome, self.now);
            }
        }
        self.continue_session(&ended.sim);
    }

    fn report_end(
        &mut self,
        sim: &SimRequest,
        flow: &RequestFlow,
        usage: TokenUsage,
        end: &End,
        reason: &str,
    ) {
        let attempts: Vec<Attempt> = flow.attempts().copied().collect();
        let queues = flow.attempts().map(|attempt| attempt.queue).sum();
        let successful = flow.attempts().last().filter(|_| end.result.is_success());
        let reason = reason_for_people(end, reason);
        self.observer.ended(&FinishedRequest {
            request: sim,
            result: end.result,
            at: self.now,
            wait: successful.map_or(queues, |attempt| attempt.begun + attempt.queue),
            first_byte: flow.ttft(),
            attempts: &attempts,
            cached_tokens: usage.cached,
            output_tokens: usage.generated,
            reason: reason.as_deref(),
        });
        self.count(end.result);
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

/// Returns why a request was rejected or failed. `failure` describes the last failure.
fn reason_for_people(end: &End, failure: &str) -> Option<String> {
    match (&end.answer, end.result) {
        (Some(ErrorAnswer::Rejected { policy: Some(policy), rejection }), _) => {
            Some(format!("rejected by {policy}: {}", rejection.message))
        }
        (Some(ErrorAnswer::Rejected { policy: None, rejection }), _) => {
            Some(rejection.message.clone())
        }
        (Some(ErrorAnswer::NoLane(reason)), _) => Some(reason.to_string()),
        (Some(ErrorAnswer::Refused | ErrorAnswer::Failed | ErrorAnswer::Stopping), _)
        | (None, RequestResult::Error | RequestResult::Rejected) => Some(failure.to_owned()),
        (None, RequestResult::Answered | RequestResult::FellBack | RequestResult::ClientGone) => {
            None
        }
    }
}
