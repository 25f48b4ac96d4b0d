//! The requests in flight, for operators: what each is doing, and how it is cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use pointsman_access::Identity;
use pointsman_domain::dispatch::Ticket;
use pointsman_domain::request_flow::Action;
use pointsman_domain::{Endpoint, LaneId, Topology};
use tokio_util::sync::CancellationToken;

/// All requests in flight. Clones share the requests.
#[derive(Debug, Clone)]
pub(crate) struct InFlightRequests {
    table: Arc<Mutex<Table>>,
    /// When cancelled, requests that are left get an error.
    abort: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    /// By arrival. Ids are chosen by clients, and may occur several times.
    requests: BTreeMap<u64, Arc<Entry>>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    id: String,
    endpoint: Endpoint,
    arrived: SystemTime,
    abort: CancellationToken,
    is_cancelled: AtomicBool,
    /// Events with content that the engine has sent so far.
    tokens: AtomicU64,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    identity: Option<Arc<Identity>>,
    model: Option<Arc<str>>,
    stage: Stage,
    lane: Option<(Arc<Topology>, LaneId)>,
    ticket: Option<Ticket>,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// Its body is being received and read.
    #[default]
    Receiving,
    /// The policies decide.
    Deciding,
    /// It waits for a slot.
    Queued,
    /// The engine has it, and has not responded yet.
    Processing,
    /// The response is passed on to the client.
    Responding,
}

impl Stage {
    /// Returns the name used on the admin API.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Deciding => "deciding",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Responding => "responding",
        }
    }
}

/// A request in flight, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestStatus {
    pub(crate) id: String,
    pub(crate) tenant: Option<String>,
    /// The name of the API key.
    pub(crate) key: Option<String>,
    pub(crate) endpoint: &'static str,
    pub(crate) model: Option<Arc<str>>,
    pub(crate) lane: Option<String>,
    pub(crate) stage: Stage,
    /// The ticket of the wait for a slot.
    pub(crate) ticket: Option<Ticket>,
    /// The time of its arrival.
    pub(crate) arrived: SystemTime,
    /// Tokens of the response so far, if it is a stream.
    pub(crate) tokens: Option<u64>,
}

impl InFlightRequests {
    /// Creates an empty list. All requests end with an error when `abort` is cancelled.
    pub(crate) fn new(abort: CancellationToken) -> Self {
        Self { table: Arc::default(), abort }
    }

    /// Adds a request that arrives now.
    pub(crate) fn enter(&self, id: &str, endpoint: Endpoint) -> InFlight {
        let entry = Arc::new(Entry {
            id: id.to_owned(),
            endpoint,
            arrived: SystemTime::now(),
            abort: self.abort.child_token(),
            is_cancelled: AtomicBool::new(false),
            tokens: AtomicU64::new(0),
            progress: Mutex::default(),
        });
        let mut table = self.table.lock();
        table.last += 1;
        let number = table.last;
        table.requests.insert(number, Arc::clone(&entry));
        InFlight { number, entry, table: Arc::clone(&self.table) }
    }

    /// Returns all requests, oldest first.
    pub(crate) fn list(&self) -> Vec<RequestStatus> {
        let entries: Vec<Arc<Entry>> = self.table.lock().requests.values().cloned().collect();
        entries.iter().map(|entry| entry.status()).collect()
    }

    /// Cancels all requests with this id, and returns their number. Their clients get an error.
    pub(crate) fn cancel(&self, id: &str) -> usize {
        let table = self.table.lock();
        let found = table.requests.values().filter(|entry| entry.id == id);
        found.map(|entry| entry.cancel()).count()
    }
}

impl Entry {
    fn status(&self) -> RequestStatus {
        let progress = self.progress.lock();
        let identity = progress.identity.as_ref();
        let tokens = self.tokens.load(Ordering::Relaxed);
        let lane = progress.lane.as_ref();
        RequestStatus {
            id: self.id.clone(),
            tenant: identity.and_then(|identity| identity.tenant.clone()),
            key: identity.map(|one| one.name.clone()).filter(|name| !name.is_empty()),
            endpoint: self.endpoint.label(),
            model: progress.model.clone(),
            lane: lane.map(|(topology, lane)| topology.name(*lane).to_owned()),
            stage: progress.stage,
            ticket: progress.ticket.filter(|_| progress.stage == Stage::Queued),
            arrived: self.arrived,
            tokens: (tokens > 0).then_some(tokens),
        }
    }

    fn cancel(&self) {
        // Before the token, whose holders then find the reason.
        self.is_cancelled.store(true, Ordering::Release);
        self.abort.cancel();
    }
}

/// The entry of one request, which is removed on drop.
#[derive(Debug)]
pub(crate) struct InFlight {
    number: u64,
    entry: Arc<Entry>,
    table: Arc<Mutex<Table>>,
}

impl InFlight {
    /// Returns the id of the request.
    pub(crate) fn id(&self) -> &str {
        &self.entry.id
    }

    /// Returns the model that the request asks for; `None` if it has not been read.
    pub(crate) fn model(&self) -> Option<Arc<str>> {
        self.entry.progress.lock().model.clone()
    }

    /// Returns the token that is cancelled when the operator cancels the request, and when the host
    /// aborts what is left.
    pub(crate) fn abort(&self) -> &CancellationToken {
        &self.entry.abort
    }

    /// Returns true if the operator has cancelled the request.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.entry.is_cancelled.load(Ordering::Acquire)
    }

    /// Notes who sent the request.
    pub(crate) fn identify(&self, identity: &Arc<Identity>) {
        self.entry.progress.lock().identity = Some(Arc::clone(identity));
    }

    /// Notes the model that the request asks for.
    pub(crate) fn set_model(&self, model: &str) {
        self.entry.progress.lock().model = Some(model.into());
    }

    /// Notes the ticket of the wait for a slot.
    pub(crate) fn set_ticket(&self, ticket: Ticket) {
        self.entry.progress.lock().ticket = Some(ticket);
    }

    /// Notes the tokens of the response so far.
    pub(crate) fn set_tokens(&self, tokens: u64) {
        self.entry.tokens.store(tokens, Ordering::Relaxed);
    }

    /// Notes what the request does next.
    pub(crate) fn follow(
        &self,
        action: &Action,
        topology: Option<&Arc<Topology>>,
        lane: Option<LaneId>,
    ) {
        let stage = match action {
            Action::Advise => Stage::Deciding,
            Action::Acquire(_) => Stage::Queued,
            Action::Send { .. } => Stage::Processing,
            Action::Respond => Stage::Responding,
            Action::Wait | Action::Recover(_) | Action::End(_) => return,
        };
        let mut progress = self.entry.progress.lock();
        progress.stage = stage;
        progress.lane = topology.cloned().zip(lane);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.table.lock().requests.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_are_listed_until_they_end_and_cancelled_by_id() {
        let host = CancellationToken::new();
        let requests = InFlightRequests::new(host.clone());
        let first = requests.enter("a", Endpoint::ChatCompletions);
        let second = requests.enter("b", Endpoint::Completions);
        let also_b = requests.enter("b", Endpoint::Completions);
        second.set_model("m");
        second.follow(&Action::Send { timeout: Duration::ZERO }, None, None);
        second.set_tokens(7);
        let listed = requests.list();
        let ids: Vec<&str> = listed.iter().map(|request| request.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "b"]);
        assert_eq!(listed[0].stage, Stage::Receiving);
        assert_eq!((listed[1].stage, listed[1].tokens), (Stage::Processing, Some(7)));
        assert_eq!(listed[1].model.as_deref(), Some("m"));
        assert_eq!((requests.cancel("b"), requests.cancel("c")), (2, 0));
        assert!(second.is_cancelled() && also_b.is_cancelled() && second.abort().is_cancelled());
        assert!(!first.is_cancelled() && !first.abort().is_cancelled());
        drop((second, also_b));
        assert_eq!(requests.list().len(), 1);
        host.cancel();
        assert!(first.abort().is_cancelled() && !first.is_cancelled(), "the host stops");
    }
}
