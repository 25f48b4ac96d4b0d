//! What happens to the dispatcher, and what it wants done.

use std::sync::Arc;
use std::time::Duration;

use super::figures::Report;
use crate::advice::Switching;
use crate::facts::fnv1a_chain;
use crate::fleet_view::{LaneId, LaneState};

/// One request that waits for a lane; numbered by whoever sends the events, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Number of an engine's life. A lease of an earlier life does not count against the slots of a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

/// Requests that share capacity fairly with other flows of the same priority: a tenant, or what a policy says. A hash of
/// its name; should two names have the same, they share one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowId(pub u64);

impl FlowId {
    /// The flow of this name.
    pub fn of(name: &str) -> Self {
        let hash = fnv1a_chain([name.as_bytes()], name.len(), 1);
        Self(hash.first().copied().unwrap_or_default())
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request wants a lane.
    Arrived(Enqueue),
    /// Whoever waited with this ticket is gone. Ignored if the ticket has ended.
    Cancelled(Ticket),
    /// A lease was given back.
    Released {
        /// Its lane.
        lane: LaneId,
        /// Its generation.
        generation: Generation,
        /// How the request went.
        report: Report,
    },
    /// News of a lane's engine. News that make no sense in the engine's state are ignored: they come from an earlier life.
    Engine {
        /// The lane.
        lane: LaneId,
        /// The news.
        news: EngineEvent,
    },
    /// A standing wish about a lane; replaces the one before it.
    Hinted {
        /// The lane.
        lane: LaneId,
        /// `None` takes the wish back.
        hint: Option<LaneHint>,
        /// When it lapses.
        until: Duration,
    },
    /// Time has passed (see [`super::Dispatcher::next_wake`]).
    Tick,
    /// The host stops: refuse everybody who waits and whoever comes, load nothing more.
    Closed,
}

/// What a lane's engine has to say. Engines of others only ever say `Ready` and `Lost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// It serves.
    Ready,
    /// It ended before it served, or could not be started; its processes are gone.
    LoadFailed(Arc<str>),
    /// It ended, or hangs: nobody is to be sent there. What is left of it is being ended; `Lost` or `LoadFailed` follows.
    Dying(Arc<str>),
    /// It ended, or hung and was killed; its processes are gone.
    Lost(Arc<str>),
    /// It was stopped as asked and nothing of it is left, or it sleeps without its memory.
    Stopped {
        /// It sleeps.
        asleep: bool,
    },
}

/// A standing wish about a lane, as in the WIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneHint {
    /// Have it loaded soon, if room allows.
    Load,
    /// It may be unloaded.
    Release,
    /// Do not unload it.
    Keep,
}

/// A request that wants a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueue {
    /// Its ticket.
    pub ticket: Ticket,
    /// The lane it wants.
    pub lane: LaneId,
    /// Higher goes first.
    pub priority: i32,
    /// With whom it shares its turn.
    pub flow: FlowId,
    /// When its wait ends.
    pub deadline: Duration,
    /// May lanes be loaded or exchanged for it.
    pub switching: Switching,
    /// It has somewhere else to go, and so goes there instead of waiting in vain.
    pub has_fallback: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The request has a slot now.
    Grant {
        /// Whose.
        ticket: Ticket,
        /// Of which lane.
        lane: LaneId,
        /// Of which life of its engine.
        generation: Generation,
        /// How long it waited.
        waited: Duration,
    },
    /// The request will get no slot of this lane.
    Reject {
        /// Whose.
        ticket: Ticket,
        /// Why.
        refusal: AcquireError,
    },
    /// Start the lane's engine, or wake it; answered by [`EngineEvent::Ready`] or [`EngineEvent::LoadFailed`].
    Load(LaneId),
    /// Stop the lane's engine, which has no lease left; answered by [`EngineEvent::Stopped`].
    Unload {
        /// The lane.
        lane: LaneId,
        /// Even if it could sleep: the memory that a sleeper holds is needed.
        fully: bool,
    },
    /// End the leases of this life with an explicit error: the lane has been draining for too long.
    Abort {
        /// The lane.
        lane: LaneId,
        /// The life.
        generation: Generation,
    },
    /// A switch is complete, and this is how long its parts took.
    Switched(SwitchReport),
}

/// How long the parts of a switch took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchReport {
    /// The lane that was loaded.
    pub target: LaneId,
    /// The lanes that were unloaded for it; none if there was room.
    pub victims: Vec<LaneId>,
    /// From the decision until the last victim had no lease.
    pub drain: Duration,
    /// From there until all of them were gone.
    pub stop: Duration,
    /// From there until the target served, which includes waiting for free memory.
    pub load: Duration,
    /// Somebody had waited for the longest time that the rules allow.
    pub overdue: bool,
}

/// Why a request got no slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The topology has no such lane.
    #[error("there is no such lane")]
    UnknownLane,
    /// The lane is down.
    #[error("the lane is {}{}", .state.label(), because(.reason.as_deref()))]
    NotServing {
        /// Its state.
        state: LaneState,
        /// What happened to its engine.
        reason: Option<Arc<str>>,
        /// When it may be back.
        retry_in: Duration,
    },
    /// The lane is not loaded, and the request may not change that.
    #[error("the lane is not loaded, and nothing may be loaded for this request")]
    NotLoaded,
    /// The lane's engine could not be loaded.
    #[error("the lane could not be loaded: {reason}")]
    LoadFailed {
        /// What happened, with the engine's last words.
        reason: Arc<str>,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// Too many of its requests failed of late.
    #[error("the lane fails too often at the moment")]
    Faulty {
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The lane's queue, or the queues together, have no room.
    #[error("{queued} requests wait already, which is the limit")]
    QueueFull {
        /// How many wait.
        queued: usize,
        /// Estimated time until there is room.
        retry_in: Duration,
    },
    /// It would have waited in vain, and has somewhere else to go.
    #[error("the lane would be ready for it in {} ms, which is too late", .estimate.as_millis())]
    TooLate {
        /// Estimated wait.
        estimate: Duration,
    },
    /// It waited for its longest time.
    #[error("waited {} ms without getting a slot", .waited.as_millis())]
    TimedOut {
        /// How long that was.
        waited: Duration,
        /// Estimated time until a slot would have been free.
        retry_in: Duration,
    },
    /// The host is stopping.
    #[error("the host is stopping")]
    Closing,
}

fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}
