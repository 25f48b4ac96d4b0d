//! A counter: what this replica has added, and what the others have.

use std::sync::Arc;

use crate::batch::{Count, Reply};
use crate::stamp::Stamp;
use crate::usage::{Now, Usage};

/// Maximum contribution of a replica. The script computes in floating-point numbers, which are
/// exact up to here.
const MAX_SUM: i64 = 1 << 53;

#[derive(Debug)]
pub(crate) struct Counter {
    field: Arc<str>,
    /// Contribution, and the part of it that the store has confirmed.
    sum: i64,
    confirmed: i64,
    /// Contributions of all other replicas at the last round.
    others: i64,
    /// The last removal.
    epoch: Option<Stamp>,
    /// The store does not know of it yet.
    is_reset: bool,
    /// The end of the counter on the store's clock, as far as it is known; 0 for none.
    until: Option<u64>,
    /// The end of the counter on this host's clock; 0 for none.
    expires: u64,
    ttl: u64,
    pub(crate) usage: Usage,
}

impl Counter {
    /// Creates a counter of which only the store may know more. `field` has never been used.
    pub(crate) fn new(field: Arc<str>) -> Self {
        Self {
            field,
            sum: 0,
            confirmed: 0,
            others: 0,
            epoch: None,
            is_reset: false,
            until: None,
            expires: 0,
            ttl: 0,
            usage: Usage::default(),
        }
    }

    /// Adds to the counter. `ttl` is the time to live of a counter that begins now, in
    /// milliseconds; 0 for none.
    pub(crate) fn add(&mut self, delta: i64, ttl: u64, now: Now) -> i64 {
        if self.total() == 0 && self.sum == self.confirmed {
            self.ttl = ttl;
            self.expires = if ttl == 0 { 0 } else { now.mono.saturating_add(ttl) };
        }
        // Saturating, and bounded: more is not exact in the script.
        self.sum = self.sum.saturating_add(delta).clamp(-MAX_SUM, MAX_SUM);
        self.total()
    }

    /// Removes the counter: what replicas have added that do not know of it does not count.
    pub(crate) fn reset(&mut self, stamp: Stamp) {
        (self.epoch, self.is_reset) = (Some(stamp), true);
        (self.sum, self.confirmed, self.others) = (0, 0, 0);
        (self.until, self.expires) = (None, 0);
    }

    pub(crate) fn total(&self) -> i64 {
        self.others.saturating_add(self.sum)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.sum != self.confirmed || self.is_reset
    }

    pub(crate) fn is_expired(&self, now: Now) -> bool {
        self.expires != 0 && now.mono >= self.expires
    }

    /// Returns the remaining time to live in milliseconds; `None` if it does not expire.
    pub(crate) fn left(&self, now: Now) -> Option<u64> {
        (self.expires != 0).then(|| self.expires.saturating_sub(now.mono))
    }

    /// Returns what a round sends.
    pub(crate) fn count(&self) -> Count {
        Count {
            field: Arc::clone(&self.field),
            epoch: self.epoch,
            until: self.until,
            sum: self.sum,
            delta: self.sum.saturating_sub(self.confirmed),
            ttl: self.ttl,
            is_reset: self.is_reset,
        }
    }

    /// Takes up the reply to what was sent, and returns the removal that the store knows.
    /// `store_now` is the store's clock.
    pub(crate) fn apply(
        &mut self,
        sent: &Count,
        reply: &Reply,
        store_now: u64,
        now: Now,
    ) -> Option<Stamp> {
        // The entry was created again, or removed, after that was sent.
        if self.field != sent.field || self.is_reset && self.epoch != sent.epoch {
            return None;
        }
        let (applied, total, epoch, until) = match reply {
            Reply::Count { total, applied, epoch, until } => {
                (*applied, *total, *epoch, Some(*until))
            }
            Reply::Missing => (0, 0, None, None),
            // Replies to values.
            Reply::Unchanged | Reply::Value { .. } => return None,
        };
        // What was counted before the counter has ended or was removed is not part of it.
        self.sum = self.sum.saturating_sub(sent.sum.saturating_sub(applied));
        (self.confirmed, self.others) = (applied, total.saturating_sub(applied));
        (self.epoch, self.is_reset, self.until) = (epoch, false, until);
        match until {
            Some(0) => self.expires = 0,
            Some(until) => {
                let left = until.saturating_sub(store_now).max(1);
                self.expires = now.mono.saturating_add(left);
            }
            // What was added since it was sent begins a new counter.
            None if self.sum == 0 => self.expires = 0,
            None => {}
        }
        epoch
    }
}
