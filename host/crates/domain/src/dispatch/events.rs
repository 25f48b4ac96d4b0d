//! Events that the dispatcher handles and effects that it requests.

use std::time::Duration;

use super::lane_mode::LaneMode;
use super::metrics::Report;
use super::problem::Problem;
use super::remote_lane::RemoteLane;
use crate::advice::Switching;
use crate::facts::fnv1a_chain;
use crate::fleet_view::{LaneId, LaneState};

/// A request for a slot. Numbered by the source of the events; a number is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// The number of an engine's run. A lease of an earlier generation does not count against the slots
/// of a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

/// A flow: requests that take turns with other flows of the same priority. Usually a tenant, or
/// named by a policy. This is a hash of the name; names with the same hash share one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowId(pub u64);

impl FlowId {
    /// Returns the flow with this name.
    pub fn from_name(name: &str) -> Self {
        let hash = fnv1a_chain([name.as_bytes()], name.len(), 1);
        Self(hash.first().copied().unwrap_or_default())
    }
}

/// An event for the dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request asks for a slot of a lane.
    Arrived(Enqueue),
    /// The client of this ticket disconnected. Ignored if the ticket has ended.
    Cancelled(Ticket),
    /// A lease was released.
    Released {
        /// Lane of the lease.
        lane: LaneId,
        /// Generation of the lease.
        generation: Generation,
        /// Flow of the request.
        flow: FlowId,
        /// Report on the request.
        report: Report,
    },
    /// An event of a lane's engine. Ignored if the engine's state does not allow it: such an event
    /// comes from an earlier generation.
    Engine {
        /// The lane.
        lane: LaneId,
        /// The event.
        news: EngineEvent,
    },
    /// What another host says of a lane. Its first [`EngineEvent::Ready`] follows the first of
    /// these.
    Remote {
        /// The lane.
        lane: LaneId,
        /// What the other host says.
        remote: RemoteLane,
    },
    /// A hint about a lane; replaces the previous one.
    Hinted {
        /// The lane.
        lane: LaneId,
        /// The hint; `None` to withdraw it.
        hint: Option<LaneHint>,
        /// When the hint expires.
        until: Duration,
    },
    /// Time has passed (see [`super::Dispatcher::next_wake`]).
    Tick,
    /// The host stops: waiting and new requests are rejected, and no lane is loaded.
    Closed,
}

/// An event of an engine. External engines only send `Ready` and `Lost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// The engine serves.
    Ready,
    /// The engine exited before it served, or could not be started; its processes are gone.
    LoadFailed(Problem),
    /// The engine exited or hangs and must get no requests. Its remains are being cleaned up;
    /// `Lost` or `LoadFailed` follows.
    Dying(Problem),
    /// The engine exited, or hung and was killed; its processes are gone.
    Lost(Problem),
    /// The engine was stopped as requested and its processes are gone, or it sleeps with its memory
    /// released.
    Stopped {
        /// True if the engine sleeps.
        asleep: bool,
    },
}

/// A policy's hint about a lane: the WIT's `wish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneHint {
    /// Load the lane soon, if memory allows.
    Load,
    /// The lane may be unloaded.
    Release,
    /// Do not unload the lane.
    Keep,
}

/// A request for a slot of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueue {
    /// Ticket of the request.
    pub ticket: Ticket,
    /// Lane that the request asks for.
    pub lane: LaneId,
    /// Priority; higher is served first.
    pub priority: i32,
    /// Flow that the request belongs to.
    pub flow: FlowId,
    /// The flow's share of slots, turns and queue places, relative to those of other flows. At
    /// least 1; the weight of a flow's newest request counts.
    pub weight: u32,
    /// When the wait ends.
    pub deadline: Duration,
    /// Whether lanes may be loaded or switched for the request.
    pub switching: Switching,
    /// True if the request has a fallback, which it uses rather than wait in vain.
    pub has_fallback: bool,
    /// True if the engine has the request already.
    pub has_begun: bool,
}

/// An effect that the dispatcher requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The request has a slot.
    Grant {
        /// Ticket of the request.
        ticket: Ticket,
        /// Lane of the slot.
        lane: LaneId,
        /// Generation of the lane's engine.
        generation: Generation,
        /// Flow of the request, for [`Event::Released`].
        flow: FlowId,
        /// How long the request waited.
        waited: Duration,
    },
    /// The request gets no slot of this lane.
    Reject {
        /// Ticket of the request.
        ticket: Ticket,
        /// Why.
        refusal: AcquireError,
    },
    /// Start or wake the lane's engine. Answered by [`EngineEvent::Ready`] or
    /// [`EngineEvent::LoadFailed`].
    Load(LaneId),
    /// Stop the lane's engine, which has no leases. Answered by [`EngineEvent::Stopped`].
    Unload {
        /// The lane.
        lane: LaneId,
        /// True if the engine must not sleep instead, because the memory that a sleeper holds is
        /// needed.
        fully: bool,
    },
    /// Abort the leases of this generation with an explicit error, because the lane has been
    /// draining for too long.
    Abort {
        /// The lane.
        lane: LaneId,
        /// The generation.
        generation: Generation,
    },
    /// A switch is complete.
    Switched(SwitchReport),
}

/// The durations of the phases of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchReport {
    /// Lane that was loaded.
    pub target: LaneId,
    /// Lanes that were evicted for it; empty if memory was free.
    pub victims: Vec<LaneId>,
    /// Time from the decision until the last victim had no leases.
    pub drain: Duration,
    /// Time from then until all victims were unloaded.
    pub stop: Duration,
    /// Time from then until the target served, including the wait for free memory.
    pub load: Duration,
    /// True if a request had waited longer than
    /// [`Rules::starvation_timeout`](super::Rules::starvation_timeout).
    pub overdue: bool,
}

/// The reason why a request got no slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The topology does not have this lane.
    #[error("unknown lane")]
    UnknownLane,
    /// The operator has removed the lane. A request that is sent again is routed without it.
    #[error("the lane has been removed from the configuration; send the request again")]
    LaneRemoved,
    /// The operator lets the lane have no requests.
    #[error("the lane is {} by the operator", paused(*.0))]
    Paused(LaneMode),
    /// The lane is down.
    #[error("the lane is {}{}{}", .state.label(), cause_of(.reason.as_ref()), again(*.retry_in))]
    NotServing {
        /// State of the lane.
        state: LaneState,
        /// What happened to the engine.
        reason: Option<Problem>,
        /// Estimated time until the lane may serve again.
        retry_in: Duration,
    },
    /// The lane is not loaded and the request does not allow loading it.
    #[error("the lane is not loaded and the request does not allow loading it")]
    NotLoaded,
    /// The lane's engine could not be loaded.
    #[error("the lane could not be loaded: {}{}", .reason.for_clients(), again(*.retry_in))]
    LoadFailed {
        /// What happened.
        reason: Problem,
        /// Estimated time until the lane may serve.
        retry_in: Duration,
    },
    /// The lane's circuit breaker is open.
    #[error(
        "circuit breaker open for this lane: its engine failed several requests in a row{}",
        again(*.retry_in)
    )]
    CircuitOpen {
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// The lane's queue, or the total of all queues, is full.
    #[error("queue is full ({queued} requests){}", if_long(*.retry_in))]
    QueueFull {
        /// Number of requests waiting for the lane.
        queued: usize,
        /// Estimated time until the queue has space.
        retry_in: Duration,
    },
    /// The request would have waited beyond its deadline, and has a fallback.
    #[error("estimated wait of {} ms exceeds the deadline", .estimate.as_millis())]
    DeadlineTooEarly {
        /// Estimated wait.
        estimate: Duration,
    },
    /// The request exceeded its maximum wait.
    #[error("{}", timed_out(*.state, *.waited, *.retry_in))]
    TimedOut {
        /// State of the lane at the end of the wait.
        state: LaneState,
        /// How long the request waited.
        waited: Duration,
        /// Estimated time until a slot would have been free.
        retry_in: Duration,
    },
    /// The host is stopping.
    #[error("the host is stopping")]
    Closing,
}

fn paused(mode: LaneMode) -> &'static str {
    if mode == LaneMode::Draining { "drained" } else { mode.label() }
}

fn cause_of(problem: Option<&Problem>) -> String {
    problem.map(|problem| format!(": {}", problem.for_clients())).unwrap_or_default()
}

/// Returns when a lane may serve again, for the end of a message; nothing if that is not known.
pub fn again(retry_in: Duration) -> String {
    let is_known = !retry_in.is_zero() && retry_in < UNKNOWN;
    let text = || format!("; it may serve again in about {} s", whole_seconds(retry_in));
    is_known.then(text).unwrap_or_default()
}

/// Returns when a slot may be free if that takes longer than clients are asked to wait.
fn if_long(retry_in: Duration) -> String {
    let is_long = (Duration::from_secs(60)..UNKNOWN).contains(&retry_in);
    let text = || format!("; a slot may be free in about {} s", whole_seconds(retry_in));
    is_long.then(text).unwrap_or_default()
}

fn timed_out(state: LaneState, waited: Duration, retry_in: Duration) -> String {
    let waited = waited.as_millis();
    match state {
        LaneState::Starting => {
            let left = whole_seconds(retry_in);
            format!("the lane is still loading after a wait of {waited} ms, about {left} s left")
        }
        LaneState::Unloaded | LaneState::Draining | LaneState::Down => {
            format!("the lane is {} after a wait of {waited} ms{}", state.label(), again(retry_in))
        }
        LaneState::Ready | LaneState::Degraded => {
            format!("no free slot after waiting {waited} ms{}", if_long(retry_in))
        }
    }
}

/// Estimates from this on stand for an unknown time.
const UNKNOWN: Duration = Duration::from_secs(86_400);

/// Returns whole seconds, rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}
