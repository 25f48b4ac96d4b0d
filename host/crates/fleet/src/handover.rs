//! What two hosts tell each other while one takes over the lanes of the other.
//!
//! ```text
//!   old host                                 new host
//!   pause: nothing is dispatched
//!       ──────── leases, waiting requests ──────>   each lease is a slot in use
//!       ──────── acquire, cancel, release ──────>   one dispatcher decides
//!       <──────── granted, rejected ─────────────
//! ```
//!
//! The old host goes on with its requests in flight, and those that wait ask the new host for a
//! slot: so slots are not used twice, and a switch waits for the streams of the old host.

mod refusal;

use std::time::Duration;

use pointsman_domain::dispatch::{Enqueue, FlowId, Report, Ticket};
use pointsman_domain::{LaneId, SlotRequest, Switching, Topology};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

pub use self::refusal::Refusal;

/// A request for a slot, of another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRequest {
    /// Distinguishes it from other requests of its host.
    pub ticket: u64,
    /// The name of the lane.
    pub lane: String,
    /// Priority; higher is served first.
    pub priority: i32,
    /// Flow for fair sharing among requests of the same priority.
    pub flow: u64,
    /// The flow's share, relative to those of other flows.
    pub weight: u32,
    /// Maximum wait in milliseconds.
    pub max_wait_ms: u64,
    /// Whether lanes may be loaded or switched for the request.
    pub switching: Switching,
    /// True if the request can fall back to another lane.
    pub has_fallback: bool,
}

impl ForeignRequest {
    pub(crate) fn new(request: &Enqueue, topology: &Topology, now: Duration) -> Self {
        let max_wait = request.deadline.saturating_sub(now).as_millis();
        Self {
            ticket: request.ticket.0,
            lane: topology.name(request.lane).to_owned(),
            priority: request.priority,
            flow: request.flow.0,
            weight: request.weight,
            max_wait_ms: u64::try_from(max_wait).unwrap_or(u64::MAX),
            switching: request.switching,
            has_fallback: request.has_fallback,
        }
    }

    pub(crate) fn slot_request(&self, lane: LaneId) -> SlotRequest {
        SlotRequest {
            lane,
            priority: self.priority,
            flow: FlowId(self.flow),
            // The dispatcher divides by it.
            weight: self.weight.max(1),
            max_wait: Duration::from_millis(self.max_wait_ms),
            switching: self.switching,
            has_fallback: self.has_fallback,
            has_begun: false,
        }
    }
}

/// The requests of a host that has stopped to dispatch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedRequests {
    /// Those that have a slot.
    pub leases: Vec<ForeignRequest>,
    /// Those that wait for one, in the order of their arrival.
    pub waiting: Vec<ForeignRequest>,
}

/// What a host asks the next one about its requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SlotMessage {
    /// A request waits for a slot.
    Acquire(ForeignRequest),
    /// The request does not wait any more.
    Cancel {
        /// The request.
        ticket: u64,
    },
    /// The request has ended.
    Release {
        /// The request.
        ticket: u64,
        /// Time from the grant to the first byte of the response in milliseconds, if there was one.
        first_byte_ms: Option<u64>,
        /// True if the engine failed the request.
        failed: bool,
        /// True if the connection to the engine broke.
        severed: bool,
    },
}

impl SlotMessage {
    pub(crate) fn release(ticket: Ticket, report: &Report) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self::Release {
            ticket: ticket.0,
            first_byte_ms: report.first_byte.map(ms),
            failed: report.failed,
            severed: report.severed,
        }
    }
}

/// What the next host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SlotReply {
    /// The request has a slot.
    Granted {
        /// The request.
        ticket: u64,
        /// The port of the engine; `None` if the host does not run it.
        port: Option<u16>,
    },
    /// The request gets no slot of this lane.
    Rejected {
        /// The request.
        ticket: u64,
        /// Why.
        refusal: Refusal,
    },
}

/// A fleet that has stopped to dispatch: requests wait, leases stay. Dropping it goes on.
#[derive(Debug)]
pub struct PausedFleet {
    /// Its requests.
    pub requests: PausedRequests,
    pub(crate) next: oneshot::Sender<Successor>,
}

/// The dispatcher of another host, which decides from now on.
#[derive(Debug)]
pub struct Successor {
    /// Tells it what the requests of this host need.
    pub messages: UnboundedSender<SlotMessage>,
    /// What it answers. Once this has ended, requests are rejected.
    pub replies: UnboundedReceiver<SlotReply>,
}

impl PausedFleet {
    /// Lets another host decide about all slots from now on.
    pub fn hand_over(self, successor: Successor) {
        // Fails only if the actor has ended, and the requests with it.
        self.next.send(successor).ok();
    }
}
