//! What the two hosts tell each other, as JSON in frames with descriptors.

use std::path::PathBuf;

use pointsman_access::{BudgetRow, ForeignUsage};
use pointsman_fleet::{PausedRequests, SlotMessage, SlotReply};
use pointsman_store::ForeignChange;
use serde::{Deserialize, Serialize};

use crate::sockets::ListenerId;

/// Version of the protocol. Hosts of different versions do not hand over to each other.
pub(super) const PROTOCOL: u32 = 1;

/// A message of the old host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "content", rename_all = "snake_case")]
pub(super) enum OldMessage {
    /// The first one, with the version of the protocol, in every version of it.
    Begin { protocol: u32, state_dir: Option<PathBuf> },
    /// A listener. Descriptor: its socket.
    Listener {
        id: ListenerId,
        /// The service manager has it.
        is_activated: bool,
    },
    /// All listeners have been sent.
    Prepare,
    /// The new host is to take over now.
    Go(Handed),
    /// About the slots that requests of the old host have or wait for.
    Slot(SlotMessage),
    /// What the old host has counted since it has given up the store.
    Usage { rows: Vec<ForeignUsage>, budgets: Vec<BudgetRow> },
    /// What the old host would write to the store.
    Store(ForeignChange),
    /// What does the store have?
    Read { id: u64, namespace: String, key: String },
}

/// What the new host needs at the moment at which it takes over.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Handed {
    pub(crate) requests: PausedRequests,
    /// The lanes that serve.
    pub(crate) serving: Vec<String>,
}

/// A message of the new host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "content", rename_all = "snake_case")]
pub(super) enum NewMessage {
    /// The configuration is valid and the policies are loaded.
    Prepared,
    /// The new host ends.
    Failed(String),
    /// The new host has taken over.
    Serving,
    /// About a slot.
    Slot(SlotReply),
    /// What the store has; an error if it cannot be read.
    Value { id: u64, value: Result<Option<String>, String> },
    /// The new host stops, and the old one has to.
    Stop,
}
