//! The requests of the host before, which this one decides about.

use std::collections::HashMap;
use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, Report};
use pointsman_domain::{SlotRequest, Switching};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::{AbortHandle, JoinSet};

use crate::fleet::Fleet;
use crate::handover::{ForeignRequest, PausedRequests, SlotMessage, SlotReply};
use crate::lease::Lease;

/// Maximum time for which a lease of the host before waits to be counted as a slot in use.
const MAX_HELD: Duration = Duration::from_secs(24 * 3600);

/// The requests of the host before: those that have a slot, and those that wait for one.
#[derive(Debug)]
pub struct Predecessor {
    fleet: Fleet,
    replies: UnboundedSender<SlotReply>,
    /// Requests that wait, by ticket.
    waiting: HashMap<u64, Waiting>,
    waits: JoinSet<(u64, Result<Lease, AcquireError>)>,
    leases: HashMap<u64, Lease>,
}

#[derive(Debug)]
struct Waiting {
    wait: AbortHandle,
    /// The request has a slot already.
    is_held: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.wait.abort();
    }
}

impl Fleet {
    /// Counts the leases of the host before as slots in use, and queues its waiting requests,
    /// before all requests of this host that come later. Must be called within a runtime.
    pub fn succeed(
        &self,
        paused: PausedRequests,
        replies: UnboundedSender<SlotReply>,
    ) -> Predecessor {
        let (waiting, waits, leases) = Default::default();
        let fleet = self.clone();
        let mut predecessor = Predecessor { fleet, replies, waiting, waits, leases };
        for request in &paused.leases {
            predecessor.queue(request, true);
        }
        for request in &paused.waiting {
            predecessor.queue(request, false);
        }
        predecessor
    }
}

impl Predecessor {
    /// Decides about the requests of the host before until its messages end.
    pub async fn serve(mut self, mut messages: UnboundedReceiver<SlotMessage>) {
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(ended) = self.waits.join_next() => {
                    // An error is that of a wait that was aborted.
                    if let Ok((ticket, result)) = ended {
                        self.settle(ticket, result);
                    }
                }
            }
        }
    }

    fn handle(&mut self, message: SlotMessage) {
        match message {
            SlotMessage::Acquire(request) => self.queue(&request, false),
            SlotMessage::Cancel { ticket } => {
                self.waiting.remove(&ticket);
                self.leases.remove(&ticket);
            }
            SlotMessage::Release { ticket, first_byte_ms, failed, severed } => {
                self.waiting.remove(&ticket);
                if let Some(lease) = self.leases.remove(&ticket) {
                    let first_byte = first_byte_ms.map(Duration::from_millis);
                    lease.end(Report { first_byte, failed, severed, ..Report::default() });
                }
            }
        }
    }

    /// Queues a request, or a lease, which is served before all others.
    fn queue(&mut self, request: &ForeignRequest, is_held: bool) {
        let ticket = request.ticket;
        let view = self.fleet.view();
        let Some(lane) = view.topology.find(&request.lane) else {
            return if !is_held {
                self.reject(ticket, AcquireError::LaneRemoved)
            };
        };
        let mut slot = request.slot_request(lane);
        if is_held {
            let (priority, switching) = (i32::MAX, Switching::Never);
            slot = SlotRequest { priority, switching, max_wait: MAX_HELD, ..slot };
        }
        match self.fleet.enqueue(self.fleet.ticket(), slot) {
            Err(_) if is_held => {}
            Err(error) => self.reject(ticket, error),
            Ok(pending) => {
                let wait = self.waits.spawn(async move { (ticket, pending.granted().await) });
                self.waiting.insert(ticket, Waiting { wait, is_held });
            }
        }
    }

    fn settle(&mut self, ticket: u64, result: Result<Lease, AcquireError>) {
        // A grant that is not wanted any more frees its slot.
        let Some(waiting) = self.waiting.remove(&ticket) else { return };
        match result {
            Ok(lease) => {
                if !waiting.is_held {
                    let port = lease.port();
                    self.reply(SlotReply::Granted { ticket, port });
                }
                self.leases.insert(ticket, lease);
            }
            // The lane is gone: there are no slots to count.
            Err(_) if waiting.is_held => {}
            Err(error) => self.reject(ticket, error),
        }
    }

    fn reject(&self, ticket: u64, error: AcquireError) {
        self.reply(SlotReply::Rejected { ticket, refusal: error.into() });
    }

    fn reply(&self, reply: SlotReply) {
        // Fails only if the host before has ended.
        self.replies.send(reply).ok();
    }
}
