//! What policies keep asking about lanes.

use std::cell::RefCell;
use std::rc::Rc;

use crate::{LaneInfo, LaneStat, LaneState};

impl LaneStat {
    /// Can a request be given to the lane now? One that is not loaded yet counts: the host loads it.
    #[must_use]
    pub fn able(&self) -> bool {
        !matches!(self.state, LaneState::Down | LaneState::Draining)
    }

    /// Is the lane loaded and serving?
    #[must_use]
    pub fn serving(&self) -> bool {
        matches!(self.state, LaneState::Ready | LaneState::Degraded)
    }

    /// Estimated milliseconds until a request given to the lane now would start; `None` if it could not.
    #[must_use]
    pub fn start_in_ms(&self) -> Option<u64> {
        self.able().then(|| u64::from(self.est_wait_ms) + u64::from(self.ready_in_ms))
    }
}

impl LaneInfo {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// Something that is worked out once per topology, because asking the host for names and labels costs more than most
/// decisions.
#[derive(Debug)]
pub struct PerTopology<T>(RefCell<Option<(u64, Rc<T>)>>);

impl<T> Default for PerTopology<T> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<T> PerTopology<T> {
    /// What was made for this topology; `make` makes it at the first call and after every change.
    pub fn get(&self, topology: u64, make: impl FnOnce() -> T) -> Rc<T> {
        let known =
            self.0.borrow().as_ref().filter(|(of, _)| *of == topology).map(|(_, it)| Rc::clone(it));
        known.unwrap_or_else(|| {
            let made = Rc::new(make());
            *self.0.borrow_mut() = Some((topology, Rc::clone(&made)));
            made
        })
    }
}

/// A hash that stays the same for ever and everywhere: 64-bit FNV-1a over the parts, each closed by a zero byte, and a
/// last mixing step, so that all its bits can be used.
#[must_use]
pub fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mixed(hash)
}

/// A bijection under which neighbours are strangers (the finalizer of splitmix64).
#[must_use]
pub fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_made_once_per_topology() {
        let kept = PerTopology::default();
        let mut made = 0;
        for (topology, expected) in [(1, 1), (1, 1), (2, 2), (2, 2), (1, 3)] {
            let got = kept.get(topology, || {
                made += 1;
                made
            });
            assert_eq!(*got, expected, "topology {topology}");
        }
    }

    #[test]
    fn hashes_are_frozen_tell_parts_apart_and_use_all_bits() {
        assert_eq!(stable_hash(&[b"acme", b"7"]), 0xd80d_c594_10e0_2f0c);
        assert_ne!(stable_hash(&[b"ab", b"c"]), stable_hash(&[b"a", b"bc"]));
        let low = (0..10_000u32).filter(|n| stable_hash(&[&n.to_le_bytes()]) % 1000 < 100).count();
        let high = (0..10_000u32).filter(|n| stable_hash(&[&n.to_le_bytes()]) >> 63 == 0).count();
        assert!((900..1100).contains(&low) && (4800..5200).contains(&high), "{low} {high}");
    }
}
