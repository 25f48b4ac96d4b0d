//! Helpers for lane state, per-topology caches and stable hashing.

use std::cell::RefCell;
use std::rc::Rc;

use crate::{LaneInfo, LaneStat, LaneState};

impl LaneStat {
    /// Returns true if the lane can accept requests. An unloaded lane can: the host loads it.
    #[must_use]
    pub fn is_available(&self) -> bool {
        !matches!(self.state, LaneState::Down | LaneState::Draining)
    }

    /// Returns true if the lane is loaded and serving.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.state, LaneState::Ready | LaneState::Degraded)
    }

    /// Returns the estimated milliseconds until a new request would start on the lane, or `None`
    /// if the lane is not available.
    #[must_use]
    pub fn start_in_ms(&self) -> Option<u64> {
        self.is_available().then(|| u64::from(self.est_wait_ms) + u64::from(self.ready_in_ms))
    }
}

impl LaneInfo {
    /// Returns the value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// A cache for a value that depends only on the topology.
///
/// Reading names and labels from the host costs more than most decisions, so a policy should do
/// that once per topology.
#[derive(Debug)]
pub struct TopologyCache<T>(RefCell<Option<(u64, Rc<T>)>>);

impl<T> Default for TopologyCache<T> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<T> TopologyCache<T> {
    /// Returns the value for this topology. Calls `make` the first time and after each change of
    /// the topology.
    pub fn get_or_insert_with(&self, topology: u64, make: impl FnOnce() -> T) -> Rc<T> {
        let cached = self
            .0
            .borrow()
            .as_ref()
            .filter(|(generation, _)| *generation == topology)
            .map(|(_, value)| Rc::clone(value));
        cached.unwrap_or_else(|| {
            let value = Rc::new(make());
            *self.0.borrow_mut() = Some((topology, Rc::clone(&value)));
            value
        })
    }
}

/// Returns a hash of the parts that is the same on all machines and in all versions: 64-bit
/// FNV-1a over the parts, each terminated by a zero byte, followed by [`mix64`].
#[must_use]
pub fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // The low bits of FNV-1a are weak, and callers use `hash % n`.
    mix64(hash)
}

/// Mixes the bits of a number; a bijection (the finalizer of splitmix64).
#[must_use]
pub fn mix64(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_cache_computes_once_per_topology() {
        let cache = TopologyCache::default();
        let mut calls = 0;
        for (topology, expected) in [(1, 1), (1, 1), (2, 2), (2, 2), (1, 3)] {
            let value = cache.get_or_insert_with(topology, || {
                calls += 1;
                calls
            });
            assert_eq!(*value, expected, "topology {topology}");
        }
    }

    #[test]
    fn stable_hash_is_frozen_separates_parts_and_uses_all_bits() {
        assert_eq!(stable_hash(&[b"acme", b"7"]), 0xd80d_c594_10e0_2f0c);
        assert_ne!(stable_hash(&[b"ab", b"c"]), stable_hash(&[b"a", b"bc"]));
        let low = (0..10_000u32).filter(|n| stable_hash(&[&n.to_le_bytes()]) % 1000 < 100).count();
        let high = (0..10_000u32).filter(|n| stable_hash(&[&n.to_le_bytes()]) >> 63 == 0).count();
        assert!((900..1100).contains(&low) && (4800..5200).contains(&high), "{low} {high}");
    }
}
