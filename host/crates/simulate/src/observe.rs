//! The events that a simulation reports while it runs.

use std::time::Duration;

pub use pointsman_domain::RequestResult;
use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{AttemptResult, EngineState, LaneId};

use crate::traffic::SimRequest;

/// An attempt to serve a request on one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The lane.
    pub lane: LaneId,
    /// How the attempt ended.
    pub result: AttemptResult,
    /// When the attempt began.
    pub begun: Duration,
    /// How long the request waited for a slot.
    pub queue: Duration,
}

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
    fn decided(
        &mut self,
        _: &SimRequest,
        _first: Option<LaneId>,
        _by: &[pointsman_domain::PolicyRef],
    ) {
    }
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
