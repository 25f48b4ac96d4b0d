//! The responses that are kept, and those that are still executed in the background.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_openai::{Item, TurnRequest};
use pointsman_store::{Namespace, Store, StoreError, Table};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::turn::{Owner, Turn, TurnSlot};
use crate::error::RouteError;
use crate::shared_store::{SharedHosts, hex};

/// The name of the namespace.
const NAMESPACE: &str = "responses";

/// The beginning of every id.
const PREFIX: &str = "resp_";
/// Maximum length of an id.
const MAX_ID: usize = 80;

/// The limits of responses that are kept.
#[derive(Debug, Clone, Copy)]
pub struct ResponseLimits {
    /// Maximum size of one response with the input of its turn, in bytes.
    pub max_response: usize,
    /// Maximum size of all responses of a tenant in bytes.
    pub max_tenant_bytes: u64,
    /// Maximum size of all responses in bytes.
    pub max_bytes: u64,
    /// Maximum number of responses.
    pub max_entries: usize,
    /// Maximum age of a response.
    pub max_age: Duration,
    /// Maximum number of responses of a tenant that are executed in the background at a time.
    pub max_background: usize,
}

impl Default for ResponseLimits {
    fn default() -> Self {
        Self {
            max_response: 8 << 20,
            max_tenant_bytes: 256 << 20,
            max_bytes: 1 << 30,
            max_entries: 100_000,
            max_age: Duration::from_secs(30 * 24 * 3600),
            max_background: 16,
        }
    }
}

/// Returns the namespace of responses in the store.
pub fn response_namespace(limits: &ResponseLimits) -> Namespace {
    Namespace {
        name: NAMESPACE,
        max_entries: limits.max_entries,
        max_bytes: limits.max_bytes,
        max_owner_bytes: limits.max_tenant_bytes,
        max_value: limits.max_response,
        max_age: limits.max_age,
    }
}

/// A response as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) owner: Owner,
    pub(super) lane: Option<String>,
    pub(super) previous: Option<String>,
    pub(super) input: Vec<Item>,
    pub(super) response: Value,
}

impl Stored {
    pub(super) fn status(&self) -> &str {
        self.response.get("status").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns true for a response that has not ended, as far as the store knows.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.status(), "queued" | "in_progress")
    }
}

/// The responses of the host.
pub(crate) struct Responses {
    table: Option<Table<String, Stored>>,
    /// The responses that are executed in the background. Who removes one decides how it ends.
    live: Mutex<HashMap<String, Live>>,
    /// Their tasks.
    pub(super) tasks: TaskTracker,
    max_background: AtomicUsize,
    max_age: Duration,
    /// Other hosts, which may keep a response that this one does not have.
    shared: Option<SharedHosts>,
}

struct Live {
    owner: Owner,
    cancelled: CancellationToken,
}

impl Responses {
    pub(crate) fn new(store: &Store, limits: &ResponseLimits) -> Self {
        Self {
            table: store.table(NAMESPACE),
            live: Mutex::default(),
            tasks: TaskTracker::new(),
            max_background: AtomicUsize::new(limits.max_background),
            max_age: limits.max_age,
            shared: None,
        }
    }

    /// Returns the same responses, of which other hosts learn who keeps them.
    pub(crate) fn shared_with(self, shared: Option<SharedHosts>) -> Self {
        Self { shared, ..self }
    }

    /// Changes the maximum number of responses of a tenant in the background at a time.
    pub(crate) fn set_max_background(&self, max: usize) {
        self.max_background.store(max, Ordering::Relaxed);
    }

    /// Returns a response of this owner. `None` for an unknown id and for one of another owner.
    pub(super) async fn get(&self, id: &str, owner: &Owner) -> Result<Option<Stored>, RouteError> {
        let Some(table) = self.table.clone().filter(|_| is_valid(id)) else { return Ok(None) };
        let id = id.to_owned();
        let read = tokio::task::spawn_blocking(move || table.get(&id)).await;
        let read = read.map_err(|error| RouteError::Store(error.to_string()))?;
        let found = read.map_err(|error| RouteError::Store(full(&error)))?;
        Ok(found.filter(|stored| stored.owner == *owner))
    }

    /// Returns the name of the other host that keeps a response of this owner; `None` also if the
    /// store does not respond.
    pub(super) async fn host_of(&self, id: &str, owner: &Owner) -> Option<String> {
        let shared = self.shared.as_ref().filter(|_| is_valid(id))?;
        let host = shared.store.get(&shared_key(id, owner)).await.ok()??;
        // This host has had it, and does not any more.
        String::from_utf8(host).ok().filter(|host| **host != *shared.host)
    }

    /// Tells other hosts that this one keeps a response. Does not wait for that.
    fn tell(&self, turn: &Turn) {
        let Some(shared) = self.shared.clone() else { return };
        let (key, max_age) = (shared_key(&turn.id, &turn.owner), self.max_age);
        self.tasks.spawn(async move {
            let host = shared.host.as_bytes().to_vec();
            // If the store is away, other hosts do not know the response.
            shared.store.claim(&key, host, max_age).await.ok();
        });
    }

    /// Registers a response that is executed in the background, and stores that it is pending.
    pub(super) fn begin(&self, turn: &Turn) -> Result<(), RouteError> {
        let mut live = self.live.lock();
        let of_tenant = live.values().filter(|live| live.owner.tenant == turn.owner.tenant);
        let max = self.max_background.load(Ordering::Relaxed);
        if of_tenant.count() >= max {
            return Err(RouteError::TooManyBackground { max });
        }
        let (owner, cancelled) = (turn.owner.clone(), turn.cancelled.clone());
        live.insert(turn.id.clone(), Live { owner, cancelled });
        drop(live);
        let mut response = turn.initial.clone();
        response["status"] = "in_progress".into();
        if let Err(error) = self.put(turn, None, response) {
            self.live.lock().remove(&turn.id);
            return Err(RouteError::Store(full(&error)));
        }
        Ok(())
    }

    /// Returns true if a response is executed in the background now.
    pub(super) fn is_live(&self, id: &str) -> bool {
        self.live.lock().contains_key(id)
    }

    /// Ends the execution of a background response, if it is not over.
    pub(super) fn cancel(&self, id: &str) -> bool {
        let removed = self.live.lock().remove(id);
        removed.inspect(|live| live.cancelled.cancel()).is_some()
    }

    /// Forgets a background response whose request has failed before its client knew the id.
    pub(super) fn abandon(&self, turn: &Turn) {
        self.cancel(&turn.id);
        self.remove(&turn.id);
    }

    pub(super) fn remove(&self, id: &str) -> bool {
        self.table.as_ref().is_some_and(|table| table.remove(&id.to_owned()))
    }

    /// Stores a response that is complete, unless the client does not want that or has cancelled
    /// it. What cannot be stored is not said to be.
    pub(super) fn complete(&self, slot: &TurnSlot, response: &mut Value) {
        let Some(turn) = slot.turn().filter(|turn| turn.is_stored) else { return };
        if turn.is_background && self.live.lock().remove(&turn.id).is_none() {
            return;
        }
        let Err(error) = self.put(turn, slot.lane(), response.clone()) else { return };
        let reason = full(&error);
        tracing::warn!(event = "response_not_stored", error = %reason, "response was not stored");
        response["store"] = false.into();
        if turn.is_background {
            let failed = failed(turn.initial.clone(), "server_error", &reason);
            self.put(turn, slot.lane(), failed).ok();
        }
    }

    /// Stores another state of a response.
    pub(super) fn update(&self, id: &str, stored: &Stored) {
        let Some(table) = &self.table else { return };
        // What is lost is counted by the store.
        table.put(&id.to_owned(), number_of(&stored.owner), stored).ok();
    }

    fn put(&self, turn: &Turn, lane: Option<&str>, response: Value) -> Result<(), StoreError> {
        let Some(table) = &self.table else { return Err(StoreError::Closed) };
        let stored = Stored {
            owner: turn.owner.clone(),
            lane: lane.map(str::to_owned),
            previous: turn.previous.clone(),
            input: turn.input.clone(),
            response,
        };
        table.put(&turn.id, number_of(&turn.owner), &stored)?;
        self.tell(turn);
        Ok(())
    }
}

impl fmt::Debug for Responses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responses").field("live", &self.live.lock().len()).finish_non_exhaustive()
    }
}

fn is_valid(id: &str) -> bool {
    id.starts_with(PREFIX) && id.len() <= MAX_ID
}

/// Returns the key under which hosts know who keeps a response. Only the owner of the response
/// learns that.
fn shared_key(id: &str, owner: &Owner) -> String {
    let tenant = owner.tenant.as_deref().unwrap_or_default();
    let digest = Sha256::new_with_prefix(owner.key.to_be_bytes()).chain_update(tenant);
    format!("response/{id}/{}", hex(&digest.finalize()[..16]))
}

/// Returns a response that has failed.
pub(super) fn failed(mut response: Value, code: &str, message: &str) -> Value {
    response["status"] = "failed".into();
    response["error"] = json!({ "code": code, "message": message });
    response
}

/// Returns a new id, which cannot be guessed.
pub(super) fn new_id() -> String {
    // 74 random bits, after the time.
    format!("{PREFIX}{}", uuid::Uuid::now_v7().simple())
}

/// Returns the id of the response that has an item with an id that the host has made.
pub(super) fn response_of(item: &str) -> Option<String> {
    let (_, rest) = item.split_once('_')?;
    let suffix = rest.get(..32).filter(|_| rest.len() > 32)?;
    Some(format!("{PREFIX}{suffix}"))
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Returns the owner of the bytes in the store: the tenant.
fn number_of(owner: &Owner) -> u64 {
    let Some(tenant) = &owner.tenant else { return 0 };
    let digest: [u8; 32] = Sha256::digest(tenant.as_bytes()).into();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns an error with its causes.
fn full(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Returns what is stored of a request, except for its input.
pub(super) fn initial(request: &TurnRequest, id: &str) -> Value {
    request.response(id, "queued", now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_name_their_response() {
        let id = new_id();
        let suffix = id.strip_prefix(PREFIX).unwrap();
        assert_eq!(response_of(&format!("msg_{suffix}00")), Some(id.clone()));
        for other in [id.as_str(), "msg_1", "x", ""] {
            assert_eq!(response_of(other), None, "{other}");
        }
    }
}
