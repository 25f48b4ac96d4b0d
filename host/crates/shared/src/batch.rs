//! What a round sends and receives.

use std::sync::Arc;

use crate::stamp::Stamp;

/// Entries of one bucket, which are in the same slot of a cluster.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Prefix of the keys of the bucket in the store.
    pub(crate) base: Arc<str>,
    pub(crate) items: Vec<Item>,
    /// True if there is more than reading, so that the round must not be executed late.
    pub(crate) has_changes: bool,
}

/// An entry of a batch.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: Arc<str>,
    pub(crate) op: Op,
}

#[derive(Debug)]
pub(crate) enum Op {
    Count(Count),
    Write(Write),
    /// Asks for a value that is not the one with this stamp.
    Read(Option<Stamp>),
}

/// The contribution of this replica to a counter.
#[derive(Debug, Clone)]
pub(crate) struct Count {
    /// Name of the field, which is that of one entry of one replica.
    pub(crate) field: Arc<str>,
    /// The last removal that this host knows.
    pub(crate) epoch: Option<Stamp>,
    /// The end of the counter on the store's clock, as far as it is known; 0 for none.
    pub(crate) until: Option<u64>,
    /// The contribution, and the part of it that is not confirmed.
    pub(crate) sum: i64,
    pub(crate) delta: i64,
    /// Time to live of a counter that begins, in milliseconds; 0 for none.
    pub(crate) ttl: u64,
    /// The store does not know of the last removal yet.
    pub(crate) is_reset: bool,
}

/// A value, or its removal.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) stamp: Stamp,
    /// Time to live in milliseconds; 0 for none.
    pub(crate) ttl: u64,
    pub(crate) value: Option<Arc<[u8]>>,
}

/// The reply to a batch.
#[derive(Debug)]
pub(crate) struct BatchReply {
    /// Time of the store in milliseconds since 1970.
    pub(crate) now: u64,
    /// In the order of the items; none if a later round was executed before.
    pub(crate) items: Vec<Reply>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Missing,
    /// The store has the value that was sent.
    Unchanged,
    Count {
        total: i64,
        /// The part of it that is the contribution of this replica.
        applied: i64,
        epoch: Option<Stamp>,
        /// The end of the counter on the store's clock; 0 for none.
        until: u64,
    },
    Value {
        stamp: Stamp,
        /// `None` for a removal.
        value: Option<Arc<[u8]>>,
        /// The end of the value on the store's clock; 0 for none.
        until: u64,
    },
}

/// The kinds of entries, as parts of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Counter,
    Value,
}

impl Kind {
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::Counter => "c:",
            Self::Value => "v:",
        }
    }

    /// Reads a member of the index.
    pub(crate) fn parse(member: &str) -> Option<(Self, &str)> {
        [Self::Counter, Self::Value]
            .into_iter()
            .find_map(|kind| Some((kind, member.strip_prefix(kind.tag())?)))
    }
}

impl Op {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Count(_) => Kind::Counter,
            Self::Write(_) | Self::Read(_) => Kind::Value,
        }
    }
}
