//! Events that a request's flow handles, and effects that it requests from its driver.

use std::time::Duration;

use super::failure::EngineFailure;
use crate::advice::Rejection;
use crate::attempts::{QueueShare, SlotRequest};
use crate::dispatch::AcquireError;
use crate::endpoint::Endpoint;
use crate::fleet_view::FleetView;
use crate::outcome::{AttemptResult, FailureReport, Recovered, RequestResult, TokenCounts};
use crate::plan::{Decision, NoLaneReason};
use crate::policy_ref::PolicyRef;

/// An event of one request. An event that the state of the flow does not allow is ignored, because
/// it crossed another one.
#[derive(Debug)]
pub enum Event<'a> {
    /// The request is valid, and a lane serves its model.
    Accepted {
        /// Tenant of the request, which is its flow unless a policy names another one.
        tenant: Option<&'a str>,
        /// What the host grants to the request in the queues.
        share: QueueShare,
    },
    /// The request is invalid, or no lane serves its model.
    Refused,
    /// The host has answered the request itself, without a lane.
    Served,
    /// The host has decided about the request: the result of [`Action::Advise`].
    Decided {
        /// The decision.
        decision: Decision,
        /// True if the advisor that decided handles failed attempts.
        has_recovery: bool,
    },
    /// The request has a slot: a result of [`Action::Acquire`].
    Granted {
        /// The lane's limit of the time to the first byte of a stream.
        first_byte_timeout: Duration,
        /// True if the request asks for a stream, after the edits of the step.
        is_streaming: bool,
    },
    /// The request gets no slot: a result of [`Action::Acquire`].
    Denied(&'a AcquireError),
    /// The head and the first byte of a response have arrived, or the whole of an empty one: a
    /// result of [`Action::Send`].
    FirstByte {
        /// HTTP status of the response.
        status: u16,
    },
    /// The engine failed: a result of [`Action::Send`], or the end of a response.
    Failed(EngineFailure),
    /// The whole response was passed on.
    Completed,
    /// The engine has reported the token counts of its response.
    Usage(TokenCounts),
    /// The policies have decided what follows a failed attempt: the result of [`Action::Recover`].
    Recovered {
        /// What the policies request, and which of them.
        recovered: Recovered,
        /// The fleet by now.
        fleet: &'a FleetView,
        /// The endpoint of the request, which the lane of a policy has to serve.
        endpoint: Endpoint,
    },
    /// The host stops and its drain timeout has expired, or the operator cancels the request.
    Stopping,
    /// The client disconnected.
    ClientGone,
}

/// The effects of one event, in the order of the fields. There is at most one of each kind, so that
/// nothing is allocated.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// What the request gives back to the dispatcher.
    pub release: Option<Release>,
    /// Why the attempt that a policy requested is not made, for the log.
    pub ignored_retry: Option<&'static str>,
    /// What the driver does next.
    pub action: Action,
}

/// What a request gives back to the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Its place in the queue: the request does not wait any more.
    Ticket,
    /// Its lease.
    Lease(LeaseEnd),
    /// The lease of this event, which was granted to a request that did not wait any more.
    Unused,
}

/// How a lease ends, as it is reported to the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseEnd {
    /// The engine failed the request.
    pub failed: bool,
    /// The connection to the engine is lost.
    pub severed: bool,
}

/// What the driver of a request does next.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Wait for the next event.
    #[default]
    Wait,
    /// Ask the policies, and decide.
    Advise,
    /// Ask the dispatcher for a slot. This begins an attempt.
    Acquire(SlotRequest),
    /// Send the request to the engine and await the first byte of the response for this time. If
    /// there is none by then, [`EngineFailure::FirstByteTimeout`] follows.
    Send {
        /// Maximum time to the first byte.
        timeout: Duration,
    },
    /// Ask the advisor that decided what follows a failed attempt.
    Recover(FailureReport),
    /// Pass the response on to the client as it arrives. After an attempt that an engine declined,
    /// it is the response that was kept.
    Respond,
    /// The request has ended: send the error response, if there is one, and report the outcome.
    End(End),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The end, as it is counted.
    pub result: RequestResult,
    /// The result that policies learn: that of the last attempt, unless a policy or the host ended
    /// the request.
    pub last: AttemptResult,
    /// The error response to send. `None` if an engine's response has begun or the client is gone.
    pub answer: Option<ErrorAnswer>,
}

/// The error response to a request of which nothing was sent to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorAnswer {
    /// The request is invalid, or no lane serves its model.
    Refused,
    /// A policy rejects the request.
    Rejected {
        /// The policy; `None` if the advisor names none.
        policy: Option<PolicyRef>,
        /// The rejection.
        rejection: Rejection,
    },
    /// No lane can serve the request now.
    NoLane(NoLaneReason),
    /// The last attempt failed.
    Failed,
    /// The host stops.
    Stopping,
}

impl From<Action> for Effects {
    fn from(action: Action) -> Self {
        Self { release: None, ignored_retry: None, action }
    }
}

impl Effects {
    pub(super) fn releasing(self, release: Release) -> Self {
        Self { release: Some(release), ..self }
    }
}
