//! Who sent a request.

use std::time::SystemTime;

use pointsman_domain::QueueShare;

use crate::limits::AccountLimits;
use crate::rights::Rights;

/// Who sent a request, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The tenant; `None` if the host has no keys.
    pub tenant: Option<String>,
    /// What distinguishes the key from others, also over a restart and when its secret is replaced.
    /// Zero if the host has no keys.
    pub key: u64,
    /// The name of the key in the usage, in the log and in commands: never a part of the secret.
    /// Empty if the host has no keys.
    pub name: String,
    /// The group of the key.
    pub group: Option<String>,
    /// What the key may be used for.
    pub rights: Rights,
    /// The accounts on which its requests are counted.
    pub accounts: Vec<AccountLimits>,
    /// The tenant's share of slots and queue places, relative to those of other tenants.
    pub weight: u32,
    /// When the key expires.
    pub expires: Option<SystemTime>,
    /// The key is that of another host, which sends the requests of its clients, and may read what
    /// this host tells of its lanes.
    pub is_peer: bool,
}

impl Identity {
    /// Returns what the host grants to the requests of the key in the queues.
    pub fn queue_share(&self) -> QueueShare {
        let all = QueueShare::default().priority;
        let priority = self.rights.priority.as_ref();
        let priority = priority.map_or(all, |range| (*range.start(), *range.end()));
        QueueShare { weight: self.weight, priority }
    }

    /// Returns the name of the other host that has the key; `None` for the key of a client.
    pub fn peer_name(&self) -> Option<&str> {
        self.name.strip_prefix(PEER_KEY_PREFIX).filter(|_| self.is_peer)
    }
}

/// What the names of the keys of other hosts begin with, before the name of the host.
pub(crate) const PEER_KEY_PREFIX: &str = "peer-";

impl Default for Identity {
    /// Returns the identity of all clients of a host without keys.
    fn default() -> Self {
        Self {
            tenant: None,
            key: 0,
            name: String::new(),
            group: None,
            rights: Rights::default(),
            accounts: Vec::new(),
            weight: 1,
            expires: None,
            is_peer: false,
        }
    }
}
