//! The handle to all lanes, and the tasks behind it.

mod start;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, LaneHint, Ticket};
use pointsman_domain::{FleetView, LaneId, PrefixIndex, SlotRequest};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::{SharedActor, Statuses, SupervisorTasks};
use crate::conversations::Conversations;
use crate::engine_log::EngineLogs;
use crate::handover::PausedFleet;
use crate::history::{LaneHistory, LaneTransition};
use crate::lease::Lease;
use crate::measurements::{Measurements, MemoryReport};
use crate::message::{Grant, Mailbox, Message};
use crate::peers::Peers;
use crate::process::StateDir;
use crate::reconfigure::LaneChange;
use crate::spec::FleetSpec;
use crate::status::LaneStatus;
use crate::switches::{FinishedSwitch, SwitchObserver};

/// A handle to all lanes. Clones share the same lanes.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(crate) mailbox: Mailbox,
    actor: Arc<SharedActor>,
    view: watch::Receiver<Arc<FleetView>>,
    pub(crate) statuses: watch::Receiver<Statuses>,
    prefixes: Arc<PrefixIndex>,
    tickets: Arc<AtomicU64>,
    started: Instant,
    conversations: Conversations,
    pub(crate) logs: EngineLogs,
    measurements: Measurements,
    history: LaneHistory,
    switches: SwitchObserver,
    host_id: Arc<str>,
    peers: Peers,
}

/// The tasks of a fleet. Dropping them aborts the tasks and kills the engines without a grace
/// period.
#[derive(Debug)]
pub struct FleetTasks {
    mailbox: Mailbox,
    pub(crate) supervisors: SupervisorTasks,
    actor: Arc<SharedActor>,
    actor_task: JoinSet<()>,
    stop: CancellationToken,
    state_dir: StateDir,
    conversations: Conversations,
}

impl Fleet {
    /// Takes up another configuration of lanes, groups and rules, at once and as a whole. Returns
    /// what has changed when the new topology is published; engines restart and end after that.
    /// Requests in flight finish as they were granted. The configuration has to be valid; its state
    /// directory, its keeper and its machine are ignored.
    pub async fn reconfigure(&self, new: FleetSpec) -> BTreeMap<String, LaneChange> {
        let (reply, response) = oneshot::channel();
        // Fails only if the actor has ended: nothing changes then.
        self.mailbox.send(Message::Reconfigure { spec: Box::new(new), reply }).ok();
        response.await.unwrap_or_default()
    }

    /// Returns the random text by which other hosts know this process.
    pub fn host_id(&self) -> &str {
        &self.host_id
    }

    /// Returns the other hosts that are watched, because of lanes that are theirs or by others who
    /// share the connections.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Returns the current state of the lanes.
    pub fn view(&self) -> Arc<FleetView> {
        self.actor.refresh();
        Arc::clone(&self.view.borrow())
    }

    /// Returns the index of the prompts that the lanes have served. Leases keep it up to date.
    pub fn prefix_index(&self) -> &PrefixIndex {
        &self.prefixes
    }

    /// Returns the saved conversations of all lanes.
    pub fn conversations(&self) -> &Conversations {
        &self.conversations
    }

    /// Waits until `condition` holds for the current view, and returns that view. Pends forever
    /// once the fleet has been shut down.
    pub async fn wait_for(&self, condition: impl FnMut(&Arc<FleetView>) -> bool) -> Arc<FleetView> {
        self.actor.refresh();
        let mut view = self.view.clone();
        let found = view.wait_for(condition).await.map(|view| Arc::clone(&view));
        match found {
            Ok(view) => view,
            // The actor has ended, so the view cannot change any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns the status of each lane, in the order of their ids, which may have gaps.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.actor.refresh();
        self.statuses.borrow().iter().map(|status| status.borrow().clone()).collect()
    }

    /// Returns what the memory of the lanes, their groups and the machine was when it was measured
    /// last, some seconds ago.
    pub fn memory_report(&self) -> MemoryReport {
        self.measurements.report()
    }

    /// Returns the last changes of the states of lanes, oldest first.
    pub fn history(&self) -> Vec<LaneTransition> {
        self.history.list()
    }

    /// Calls a function with each load of a lane that ends from now on, which must not block. Only
    /// the first call has an effect.
    pub fn observe_switches(&self, observe: impl Fn(FinishedSwitch) + Send + Sync + 'static) {
        self.switches.set(observe);
    }

    /// Sets a hint to load, keep or release a lane for `duration`, replacing the previous hint;
    /// `None` removes it.
    pub fn hint(&self, lane: LaneId, hint: Option<LaneHint>, duration: Duration) {
        // Fails only if the actor has ended; a hint has no effect then.
        self.mailbox.send(Message::Hinted { lane, hint, duration }).ok();
    }

    /// Waits for a slot. Dropping the future cancels the request and leaves the queue.
    ///
    /// # Errors
    /// Returns the reason why the dispatcher rejected the request.
    pub async fn acquire(&self, request: SlotRequest) -> Result<Lease, AcquireError> {
        self.acquire_as(self.ticket(), request).await
    }

    /// Returns a new ticket.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits for a slot like [`Fleet::acquire`], with a ticket by which the place in the queue can
    /// be found.
    ///
    /// # Errors
    /// As those of [`Fleet::acquire`].
    pub async fn acquire_as(
        &self,
        ticket: Ticket,
        request: SlotRequest,
    ) -> Result<Lease, AcquireError> {
        self.enqueue(ticket, request)?.granted().await
    }

    /// Asks for a slot, after all requests that have asked before.
    pub(crate) fn enqueue(
        &self,
        ticket: Ticket,
        request: SlotRequest,
    ) -> Result<PendingLease, AcquireError> {
        let request = request.arrival(ticket, self.started.elapsed());
        let (reply, response) = oneshot::channel();
        if self.mailbox.send(Message::SlotRequest { request, reply }).is_err() {
            return Err(AcquireError::Closing);
        }
        let cancel = CancelOnDrop { mailbox: self.mailbox.clone(), ticket: Some(ticket) };
        Ok(PendingLease { response, cancel })
    }
}

/// A request for a slot that waits. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct PendingLease {
    response: oneshot::Receiver<Result<Grant, AcquireError>>,
    cancel: CancelOnDrop,
}

impl PendingLease {
    /// Waits for the slot.
    pub(crate) async fn granted(mut self) -> Result<Lease, AcquireError> {
        let result = (&mut self.response).await.unwrap_or(Err(AcquireError::Closing));
        self.cancel.ticket = None;
        result.map(Lease::new)
    }
}

impl FleetTasks {
    /// Announces that the host stops, so that no engine is kept if the host is killed before its
    /// end.
    pub fn announce_stop(&self) {
        self.state_dir.announce_stop();
    }

    /// Stops to dispatch requests, once no engine is being stopped or has to be; returns what
    /// another host has to know to go on.
    pub async fn pause(&self) -> Option<PausedFleet> {
        let (reply, paused) = oneshot::channel();
        // Fails only if the actor has ended.
        self.mailbox.send(Message::Pause { reply }).ok();
        paused.await.ok()
    }

    /// Waits until what is to be kept of conversations is written.
    pub async fn flush_conversations(&self) {
        self.conversations.flush().await;
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> &StateDir {
        &self.state_dir
    }

    /// Ends all supervisors. Another host has the engines.
    pub fn release(&self) {
        self.supervisors.abort_all();
    }

    /// Rejects all queued requests, stops all engines concurrently, and returns when none of their
    /// processes is left. In-flight responses are aborted: drain first.
    pub async fn shutdown(self) {
        self.announce_stop();
        // Fails only if the actor has ended; no request is queued then.
        self.mailbox.send(Message::Close).ok();
        self.stop.cancel();
        self.supervisors.join_all().await;
        self.conversations.flush().await;
    }
}

impl Drop for FleetTasks {
    fn drop(&mut self) {
        // The actor has a handle to these tasks, too.
        self.supervisors.abort_all();
        self.actor.end(&self.mailbox);
    }
}

#[derive(Debug)]
struct CancelOnDrop {
    mailbox: Mailbox,
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            // Fails only if the actor has ended, and its queue with it.
            self.mailbox.send(Message::Cancelled(ticket)).ok();
        }
    }
}
