//! The hand-over of the file to another process: this one gives it up, and what it would write from
//! then on is passed on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::error::StoreError;
use crate::foreign::{ForeignChange, StoreSuccessor, to_bytes, to_text};
use crate::namespace::now_ms;
use crate::store::Store;

impl Store {
    /// Writes what is queued, and closes the file for another process. Writes wait from then on.
    /// Blocks.
    pub fn release(&self) {
        self.flush();
        let shared = self.shared();
        // Under the lock of the state, so that the writer does not begin another transaction.
        let state = shared.lock();
        shared.is_released.store(true, Ordering::Release);
        drop(state);
        *shared.disk.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Uses the file again, which no other process has taken.
    pub fn take_back(&self) {
        let shared = self.shared();
        let state = shared.lock();
        shared.is_released.store(false, Ordering::Release);
        *shared.next_open.lock().unwrap_or_else(PoisonError::into_inner) =
            std::time::Instant::now();
        drop(state);
        shared.wake.notify_all();
        shared.settled.notify_all();
    }

    /// Passes on what was written since [`Store::release`] and what is written from now on, to the
    /// process that has the file, which is asked for what is read.
    pub fn forward(&self, successor: Arc<dyn StoreSuccessor>) {
        let shared = self.shared();
        let mut state = shared.lock();
        state.successor = Some(successor);
        drop(state);
        shared.wake.notify_all();
        shared.settled.notify_all();
    }

    /// Returns a value for another process, with the key and the value as characters. Blocks.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn read(&self, namespace: &str, key: &str) -> Result<Option<String>, StoreError> {
        let (Some(space), Some(key)) = (self.space(namespace), to_bytes(key)) else {
            return Ok(None);
        };
        Ok(self.get(space, &key, now_ms())?.map(|value| to_text(&value)))
    }

    /// Writes a change of another process, like one of this one.
    pub fn apply(&self, change: ForeignChange) {
        let ForeignChange { namespace, key, new } = change;
        let (Some(space), Some(key)) = (self.space(&namespace), to_bytes(&key)) else { return };
        match new {
            // What is lost is counted.
            Some((owner, value)) => {
                let value = to_bytes(&value).unwrap_or_default();
                drop(self.put(space, &key, owner, value, now_ms()));
            }
            None => drop(self.remove(space, &key, now_ms())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::namespace::{Namespace, Options};
    use crate::table::Table;

    fn open(dir: &std::path::Path) -> Store {
        let path = Some(dir.join("store"));
        let namespaces = vec![Namespace {
            name: "a",
            max_entries: 10,
            max_bytes: 1 << 20,
            max_owner_bytes: 1 << 20,
            max_value: 1 << 10,
            max_age: std::time::Duration::from_secs(60),
        }];
        Store::open(Options { path, namespaces, on_loss: Box::new(|_| {}) }).unwrap()
    }

    struct TestSuccessor {
        store: Store,
        changes: Mutex<Sender<ForeignChange>>,
    }

    impl StoreSuccessor for TestSuccessor {
        fn write(&self, change: ForeignChange) {
            self.changes.lock().unwrap().send(change).unwrap();
        }

        fn read(&self, namespace: &str, key: String) -> Result<Option<String>, StoreError> {
            self.store.read(namespace, &key)
        }
    }

    #[test]
    fn other_process_gets_the_file_and_later_changes() {
        let dir = tempfile::tempdir().unwrap();
        let old = open(dir.path());
        let table: Table<String, String> = old.table("a").unwrap();
        table.put(&"before".to_owned(), 7, &"1".to_owned()).unwrap();
        old.release();
        table.put(&"between".to_owned(), 7, &"ä".to_owned()).unwrap();
        let new = open(dir.path());
        let (sender, changes) = channel();
        old.forward(Arc::new(TestSuccessor { store: new.clone(), changes: Mutex::new(sender) }));
        table.put(&"after".to_owned(), 7, &"3".to_owned()).unwrap();
        table.remove(&"before".to_owned());
        for _ in 0..3 {
            let change = changes.recv().unwrap();
            let text = serde_json::to_string(&change).unwrap();
            new.apply(serde_json::from_str(&text).unwrap());
        }
        // The old process finds what the new one has.
        let between = table.get(&"between".to_owned()).unwrap();
        assert_eq!(between.as_deref(), Some("ä"));
        let table: Table<String, String> = new.table("a").unwrap();
        let get = |key: &str| table.get(&key.to_owned()).unwrap();
        assert_eq!(
            (get("before"), get("between"), get("after")),
            (None, Some("ä".to_owned()), Some("3".to_owned()))
        );
        assert_eq!((old.lost(), new.lost()), (0, 0));
    }

    #[test]
    fn file_that_is_taken_back_has_what_was_written_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let table: Table<String, String> = store.table("a").unwrap();
        store.release();
        table.put(&"a".to_owned(), 7, &"1".to_owned()).unwrap();
        store.take_back();
        store.flush();
        assert_eq!((table.get(&"a".to_owned()).unwrap().as_deref(), store.lost()), (Some("1"), 0));
    }
}
