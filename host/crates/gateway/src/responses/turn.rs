//! A turn: what the host keeps of a request for a response until the response is complete.

use std::sync::{Arc, OnceLock};

use pointsman_openai::Item;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::remote_turn::RemoteTurn;
use crate::forwarded::Client;

/// One turn of a conversation.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The id of the response.
    pub(crate) id: String,
    pub(super) owner: Owner,
    pub(super) is_stored: bool,
    pub(super) is_background: bool,
    /// The response that this one follows.
    pub(super) previous: Option<String>,
    /// The lane of the response that this one follows.
    pub(crate) lane: Option<String>,
    /// The items of this turn's input.
    pub(super) input: Vec<Item>,
    /// The fields of the response that are the host's.
    pub(super) own_fields: Vec<(&'static str, Value)>,
    /// The response as it is before it has begun.
    pub(super) initial: Value,
    /// Ends the execution of a background response.
    pub(super) cancelled: CancellationToken,
}

/// Who may read a response: the tenant, with the same key. If another host has sent the request,
/// those of its client.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Owner {
    pub(super) tenant: Option<String>,
    pub(super) key: u64,
}

impl From<Client<'_>> for Owner {
    fn from(Client { tenant, key }: Client<'_>) -> Self {
        Self { tenant: tenant.map(str::to_owned), key }
    }
}

/// What a request and its turn tell each other. The request has it as an extension.
#[derive(Debug, Clone, Default)]
pub(crate) struct TurnSlot(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    turn: OnceLock<Turn>,
    remote: OnceLock<RemoteTurn>,
    lane: OnceLock<String>,
    /// A proxy sends the request to its engine.
    is_proxied: bool,
    accepted: CancellationToken,
}

impl TurnSlot {
    /// Returns the slot of a request that a proxy sends, of which this host keeps nothing.
    pub(crate) fn proxied() -> Self {
        Self(Arc::new(Slot { is_proxied: true, ..Slot::default() }))
    }

    /// Returns true if a proxy sends the request.
    pub(super) fn is_proxied(&self) -> bool {
        self.0.is_proxied
    }

    /// Sets the turn, once the body has arrived.
    pub(super) fn set(&self, turn: Turn) {
        // Never twice: a request has one body.
        self.0.turn.set(turn).ok();
    }

    /// Returns the turn; `None` until the body has arrived.
    pub(crate) fn turn(&self) -> Option<&Turn> {
        self.0.turn.get()
    }

    /// Notes that another host executes the turn. This one keeps nothing of it.
    pub(super) fn set_remote(&self, turn: RemoteTurn) {
        // Never twice: a request has one body.
        self.0.remote.set(turn).ok();
    }

    /// Returns the turn if another host executes it.
    pub(crate) fn remote(&self) -> Option<&RemoteTurn> {
        self.0.remote.get()
    }

    /// Notes that the request is valid, and will be executed.
    pub(super) fn accept(&self) {
        self.0.accepted.cancel();
    }

    /// Waits until a request that is to be executed in the background is accepted.
    pub(super) async fn in_background(&self) {
        self.0.accepted.cancelled().await;
        if !self.turn().is_some_and(|turn| turn.is_background) {
            std::future::pending::<()>().await;
        }
    }

    /// Notes the lane that responds.
    pub(crate) fn set_lane(&self, lane: &str) {
        // Only the first lane responds.
        self.0.lane.set(lane.to_owned()).ok();
    }

    /// Returns the lane that has responded.
    pub(super) fn lane(&self) -> Option<&str> {
        self.0.lane.get().map(String::as_str)
    }
}

#[cfg(test)]
impl Turn {
    /// Returns a turn that is not stored.
    pub(super) fn for_tests(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            owner: Owner::default(),
            is_stored: false,
            is_background: false,
            previous: None,
            lane: None,
            input: Vec::new(),
            own_fields: vec![("id", id.into())],
            initial: Value::Null,
            cancelled: CancellationToken::new(),
        }
    }
}
