//! The actor of a host that is being replaced: it pauses, and then lets the next host decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, Enqueue, FlowId, Generation, Ticket};
use pointsman_domain::{EngineState, LaneState};
use tokio::sync::oneshot;

use super::{Actor, Waiting};
use crate::driver::Target;
use crate::handover::{
    ForeignRequest, PausedFleet, PausedRequests, SlotMessage, SlotReply, Successor,
};
use crate::mailbox::Queue;
use crate::message::{Grant, Message};

impl Actor {
    /// Pauses until it is decided which host goes on. Returns the next one, or `None` if it is this
    /// one. Messages wait meanwhile.
    pub(super) async fn pause(&self, reply: oneshot::Sender<PausedFleet>) -> Option<Successor> {
        let now = self.started.elapsed();
        let (next, decided) = oneshot::channel();
        let requests = PausedRequests {
            leases: self.foreign(self.held.values(), now),
            waiting: self.foreign(self.waiting.values().map(|waiting| &waiting.request), now),
        };
        // If the caller does not want it any more, nothing is decided.
        reply.send(PausedFleet { requests, next }).ok();
        decided.await.ok()
    }

    /// Returns true if another host could go on with all engines: none is being stopped, or has to
    /// be because of the last change of the configuration.
    pub(super) fn is_settled(&self) -> bool {
        let state = |lane| self.dispatcher.engine_state(lane);
        let mut lanes = self.topology.lanes().iter();
        self.unsettled.is_empty()
            && !lanes.any(|lane| state(lane.id) == Some(EngineState::Stopping))
    }

    fn foreign<'a>(
        &self,
        requests: impl Iterator<Item = &'a Enqueue>,
        now: Duration,
    ) -> Vec<ForeignRequest> {
        let mut requests: Vec<&Enqueue> = requests.collect();
        requests.sort_by_key(|request| request.ticket.0);
        requests.iter().map(|request| ForeignRequest::new(request, &self.topology, now)).collect()
    }

    /// Passes on what requests of this host need to the next one, which decides.
    pub(super) async fn follow(mut self, messages: &Queue<Message>, successor: Successor) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let Successor { messages: sender, mut replies } = successor;
        let mut is_gone = false;
        loop {
            tokio::select! {
                message = messages.receive() => match message {
                    None => return,
                    Some(message) => {
                        if let Some(message) = self.pass_on(message, &mut waiting) {
                            is_gone |= sender.send(message).is_err();
                        }
                    }
                },
                reply = replies.recv(), if !is_gone => match reply {
                    Some(reply) => {
                        if let Some(unwanted) = self.take_reply(reply, &mut waiting) {
                            is_gone |= sender.send(unwanted).is_err();
                        }
                    }
                    None => is_gone = true,
                },
            }
            if is_gone {
                waiting.drain().for_each(|(_, waiting)| reject(waiting, not_serving()));
            }
        }
    }

    /// Returns what the next host has to know of a message.
    fn pass_on(
        &mut self,
        message: Message,
        waiting: &mut HashMap<Ticket, Waiting>,
    ) -> Option<SlotMessage> {
        match message {
            Message::SlotRequest { request, reply } => {
                waiting.insert(request.ticket, Waiting { reply, request });
                let now = self.started.elapsed();
                Some(SlotMessage::Acquire(ForeignRequest::new(&request, &self.topology, now)))
            }
            Message::Cancelled(ticket) => {
                waiting.remove(&ticket).map(|_| SlotMessage::Cancel { ticket: ticket.0 })
            }
            Message::Released { ticket, report, .. } => {
                self.held.remove(&ticket).map(|_| SlotMessage::release(ticket, &report))
            }
            Message::Close => {
                waiting.drain().for_each(|(_, waiting)| reject(waiting, AcquireError::Closing));
                None
            }
            // The next host has the engines, and its own configuration.
            Message::Engine { .. }
            | Message::EngineReport { .. }
            | Message::Learned { .. }
            | Message::PeerReport { .. }
            | Message::Commanded(_)
            | Message::QueuePositions { .. }
            | Message::Hinted { .. }
            | Message::Reconfigure { .. }
            | Message::Pause { .. } => None,
        }
    }

    /// Passes on an answer of the next host. Returns the release of a slot that no request wants
    /// any more.
    fn take_reply(
        &mut self,
        reply: SlotReply,
        waiting: &mut HashMap<Ticket, Waiting>,
    ) -> Option<SlotMessage> {
        match reply {
            SlotReply::Rejected { ticket, refusal } => {
                let found = waiting.remove(&Ticket(ticket));
                found.into_iter().for_each(|waiting| reject(waiting, refusal.clone().into()));
                None
            }
            SlotReply::Granted { ticket, port } => {
                let cancel = SlotMessage::Cancel { ticket };
                let ticket = Ticket(ticket);
                let Some(Waiting { reply, request }) = waiting.remove(&ticket) else {
                    return Some(cancel);
                };
                match self.foreign_grant(&request, port) {
                    Some(grant) => {
                        self.held.insert(ticket, request);
                        // If the request has been dropped, so is the grant, which frees the slot.
                        drop(reply.send(Ok(grant)));
                        None
                    }
                    None => {
                        drop(reply.send(Err(not_serving())));
                        Some(cancel)
                    }
                }
            }
        }
    }

    /// Returns a slot that the next host has granted, of the engine at this port.
    fn foreign_grant(&mut self, request: &Enqueue, port: Option<u16>) -> Option<Grant> {
        let handle = self.lanes.get_mut(request.lane.index())?;
        let is_known = |target: &Target| port.is_none() || target.port() == port;
        if !handle.target.as_deref().is_some_and(is_known) {
            let lane = self.spec.lanes.iter().find(|lane| *lane.name == *handle.name)?;
            handle.target = Some(lane.engine.0.target(port?).into());
        }
        if let Some(target) = handle.target.as_mut().filter(|target| target.conversations.is_some())
        {
            // The next host places conversations in the engine's slots.
            Arc::make_mut(target).conversations = None;
        }
        let lease = (Generation::default(), FlowId::default());
        self.slot_of(request.ticket, request.lane, lease, request.priority)
    }
}

fn reject(waiting: Waiting, error: AcquireError) {
    // Fails only if the request has been dropped.
    drop(waiting.reply.send(Err(error)));
}

/// The error of a request if the next host has ended.
fn not_serving() -> AcquireError {
    AcquireError::NotServing {
        state: LaneState::Down,
        reason: None,
        retry_in: Duration::from_secs(1),
    }
}
