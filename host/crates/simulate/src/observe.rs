//! The events that a simulation reports while it runs.

use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
pub use pointsman_domain::{Attempt, RequestResult};
use pointsman_domain::{EngineState, LaneId, PolicyRef};
use pointsman_report::{Collector, EndedRequest};

use crate::traffic::SimRequest;

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct FinishedRequest<'a> {
    /// The request.
    pub request: &'a SimRequest,
    /// How the request ended.
    pub result: RequestResult,
    /// When the request ended.
    pub at: Duration,
    /// The time from arrival to the slot of the lane that served the request, or the total time in
    /// queues if none did.
    pub wait: Duration,
    /// The time from arrival to the first byte of the response.
    pub first_byte: Option<Duration>,
    /// The attempts in order.
    pub attempts: &'a [Attempt],
    /// Prompt tokens that the engine had in its prefix cache.
    pub cached_tokens: u32,
    /// Response tokens that were generated, also by an aborted response.
    pub output_tokens: u32,
    /// Why the request was rejected or failed, for people.
    pub reason: Option<&'a str>,
}

/// A receiver of the events of a run. Times never decrease.
pub trait Observer {
    /// Called when a request was decided, with the lane of the first attempt and the policies that
    /// contributed to the decision.
    fn decided(&mut self, _: &SimRequest, _first: Option<LaneId>, _by: &[PolicyRef]) {}
    /// Called when a request was granted a slot.
    fn granted(&mut self, _at: Duration, _: &SimRequest, _lane: LaneId) {}
    /// Called when a request has ended.
    fn ended(&mut self, _: &FinishedRequest<'_>) {}
    /// Called when an engine has changed its state.
    fn engine(&mut self, _at: Duration, _lane: LaneId, _: EngineState) {}
    /// Called when the number of requests that wait for a lane, or that hold its slots, has
    /// changed.
    fn load(&mut self, _at: Duration, _lane: LaneId, _waiting: usize, _running: u32) {}
    /// Called when a switch is complete.
    fn switched(&mut self, _at: Duration, _: &SwitchReport) {}
}

impl Observer for Collector {
    fn decided(&mut self, request: &SimRequest, _first: Option<LaneId>, by: &[PolicyRef]) {
        self.arrived(request.at, usize::from(request.class.0), by);
    }

    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        self.ended(&EndedRequest {
            arrived_at: ended.request.at,
            class: usize::from(ended.request.class.0),
            tenant: ended.request.tenant.as_ref(),
            prompt_tokens: ended.request.prompt_tokens,
            result: ended.result,
            at: ended.at,
            wait: ended.wait,
            first_byte: ended.first_byte,
            attempts: ended.attempts,
            cached_tokens: ended.cached_tokens,
            output_tokens: ended.output_tokens,
            reason: ended.reason,
        });
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        self.engine(at, lane, state);
    }

    fn load(&mut self, at: Duration, lane: LaneId, waiting: usize, running: u32) {
        self.load(at, lane, waiting, running);
    }

    fn switched(&mut self, _: Duration, report: &SwitchReport) {
        self.switched(report);
    }
}
