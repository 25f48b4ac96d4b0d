//! Things that are done at once, each at the same speed.
//!
//! What has been done of one is what has been done of each since it was added: one number tells all of it, and whoever has
//! the smallest end is first. So a change of speed costs nothing, however many there are.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Key;

/// The place of one of them: where it ends, and its number among those that end there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64, u64);

/// Things that are done at once.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// Of each, since there was nothing to do.
    done: f64,
    ends: BTreeMap<Place, Key>,
    numbers: u64,
}

impl Together {
    /// So much is to be done for this one.
    pub(super) fn add(&mut self, work: f64, key: Key) -> Place {
        if self.ends.is_empty() {
            self.done = 0.0;
        }
        self.numbers += 1;
        // Of numbers that are not negative, the bits have the order of the numbers.
        let place = Place((self.done + work.max(0.0)).to_bits(), self.numbers);
        self.ends.insert(place, key);
        place
    }

    pub(super) fn remove(&mut self, place: Place) {
        self.ends.remove(&place);
    }

    pub(super) fn clear(&mut self) {
        self.ends.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// So much was done of each.
    pub(super) fn advance(&mut self, work: f64) {
        if !self.ends.is_empty() {
            self.done += work;
        }
    }

    /// What is left to be done.
    pub(super) fn left(&self, place: Place) -> f64 {
        f64::from_bits(place.0) - self.done
    }

    /// What is left of the one that ends first.
    pub(super) fn first(&self) -> Option<f64> {
        self.ends.first_key_value().map(|(place, _)| self.left(*place))
    }

    /// The one that ends first, and what is left of it.
    pub(super) fn pop_first(&mut self) -> Option<(Key, f64)> {
        let left = self.first()?;
        self.ends.pop_first().map(|(_, key)| (key, left))
    }
}

/// A time as a number.
pub(super) fn micros(time: Duration) -> f64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX) as f64
}

/// How long something takes of which so much is left, at a speed by the microsecond; `None` if it never ends.
pub(super) fn time_for(left: f64, speed: f64) -> Option<Duration> {
    let micros = (left.max(0.0) / speed).round();
    // A number that is too large becomes the largest one there is, which is more than anything lasts.
    (speed > 0.0 && micros.is_finite())
        .then(|| Duration::from_micros((micros as u64).min(u64::MAX >> 4)))
}
