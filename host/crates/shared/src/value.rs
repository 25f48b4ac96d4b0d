//! A value of which the last write counts.

use std::sync::Arc;

use crate::batch::{Op, Reply, Write};
use crate::stamp::Stamp;
use crate::usage::{Now, Usage};

/// How long a removal is remembered, in milliseconds: a replica that was away for longer may bring
/// the value back.
const REMOVAL_MS: u64 = 3_600_000;

#[derive(Debug, Default)]
pub(crate) struct Value {
    /// The last write that is known.
    stamp: Option<Stamp>,
    /// `None` if it was a removal, or if there was none.
    bytes: Option<Arc<[u8]>>,
    /// The end of the value on this host's clock; 0 for none.
    expires: u64,
    is_dirty: bool,
    pub(crate) usage: Usage,
}

impl Value {
    /// Writes a value, or its removal. `ttl` is in milliseconds; 0 for none.
    pub(crate) fn write(&mut self, stamp: Stamp, bytes: Option<Arc<[u8]>>, ttl: u64, now: Now) {
        let ttl = if bytes.is_none() { REMOVAL_MS } else { ttl };
        self.stamp = Some(stamp);
        self.bytes = bytes;
        self.expires = if ttl == 0 { 0 } else { now.mono.saturating_add(ttl) };
        self.is_dirty = true;
    }

    pub(crate) fn get(&self) -> Option<&Arc<[u8]>> {
        self.bytes.as_ref()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    pub(crate) fn is_expired(&self, now: Now) -> bool {
        self.expires != 0 && now.mono >= self.expires
    }

    /// Returns the remaining time to live in milliseconds; `None` if it does not expire.
    pub(crate) fn left(&self, now: Now) -> Option<u64> {
        (self.expires != 0).then(|| self.expires.saturating_sub(now.mono))
    }

    /// Returns what a round sends.
    pub(crate) fn op(&self, now: Now) -> Op {
        match self.stamp {
            Some(stamp) if self.is_dirty => {
                // An entry that has expired is not sent, so that something is left.
                let ttl = self.left(now).map_or(0, |left| left.max(1));
                Op::Write(Write { stamp, ttl, value: self.bytes.clone() })
            }
            stamp => Op::Read(stamp),
        }
    }

    /// Takes up the reply to the write or the question that was sent with `sent`. Returns the stamp
    /// of another replica.
    pub(crate) fn apply(
        &mut self,
        sent: Option<Stamp>,
        reply: &Reply,
        store_now: u64,
        now: Now,
    ) -> Option<Stamp> {
        match reply {
            Reply::Unchanged => {
                self.is_dirty &= self.stamp != sent;
                None
            }
            // The store has lost it: it would have told of a later write.
            Reply::Missing => {
                self.is_dirty |= self.stamp.is_some();
                None
            }
            Reply::Value { stamp, value, until } => {
                if self.stamp.is_some_and(|own| own >= *stamp) {
                    // A fail-over can lose the last writes, of which this is one.
                    self.is_dirty |= self.stamp != Some(*stamp);
                    return None;
                }
                self.stamp = Some(*stamp);
                self.bytes = value.clone();
                let left = until.saturating_sub(store_now).max(1);
                self.expires = if *until == 0 { 0 } else { now.mono.saturating_add(left) };
                self.is_dirty = false;
                Some(*stamp)
            }
            // A reply to a counter.
            Reply::Count { .. } => None,
        }
    }
}
