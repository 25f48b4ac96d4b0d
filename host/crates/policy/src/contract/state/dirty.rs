//! Which keys of a state have changed since it was last saved.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Maximum number of keys, about twice as many as a state has. If more have changed, the whole
/// state is saved: keys that are removed while the disk is full must not fill the memory.
const MAX_KEYS: usize = 20_000;

/// The changed keys of a state.
///
/// A key is marked after its entry has changed, and the entry is read after the marks were taken.
/// So what is saved is never older than the mark, and the order of the marks does not matter.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    is_on: AtomicBool,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    keys: HashSet<String>,
    all: bool,
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    Keys(HashSet<String>),
    All,
}

impl Dirty {
    /// Returns true if changes are saved, and so noted.
    pub(super) fn is_on(&self) -> bool {
        // Relaxed: what changes before it is on is marked by the one who turns it on.
        self.is_on.load(Ordering::Relaxed)
    }

    /// Notes changes from now on.
    pub(super) fn turn_on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Notes that the entry of a key has changed, or is gone.
    pub(super) fn mark(&self, key: &str) {
        if !self.is_on() {
            return;
        }
        let mut marks = self.marks.lock();
        if marks.all || marks.keys.contains(key) {
            return;
        }
        if marks.keys.len() >= MAX_KEYS {
            *marks = Marks { keys: HashSet::new(), all: true };
        } else {
            marks.keys.insert(key.to_owned());
        }
    }

    /// Notes that all entries have changed.
    pub(super) fn mark_all(&self) {
        if self.is_on() {
            *self.marks.lock() = Marks { keys: HashSet::new(), all: true };
        }
    }

    /// Returns what has changed since the last call.
    pub(super) fn take(&self) -> Changed {
        let Marks { keys, all } = std::mem::take(&mut *self.marks.lock());
        match (all, keys.is_empty()) {
            (true, _) => Changed::All,
            (false, true) => Changed::Nothing,
            (false, false) => Changed::Keys(keys),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_keys_are_the_whole_state() {
        let dirty = Dirty::default();
        dirty.mark("early");
        assert_eq!(dirty.take(), Changed::Nothing);
        dirty.turn_on();
        dirty.mark("a");
        dirty.mark("a");
        assert_eq!(dirty.take(), Changed::Keys(HashSet::from(["a".to_owned()])));
        (0..=MAX_KEYS).for_each(|number| dirty.mark(&number.to_string()));
        assert!(dirty.marks.lock().keys.is_empty());
        dirty.mark("a");
        assert_eq!((dirty.take(), dirty.take()), (Changed::All, Changed::Nothing));
    }
}
