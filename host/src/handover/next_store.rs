//! The store of the next host, as the old one uses it.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_store::{ForeignChange, StoreError, StoreSuccessor};

use super::channel::Sender;
use super::message::OldMessage;

/// The maximum time for the next host to answer.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What the store has, or why it cannot be read.
type Value = Result<Option<String>, String>;

/// The store of the next host.
#[derive(Debug)]
pub(super) struct NextStore {
    sender: Sender<OldMessage>,
    reads: Mutex<Reads>,
}

/// Reads that wait for their answer.
#[derive(Debug, Default)]
struct Reads {
    last: u64,
    /// The next host has ended.
    is_ended: bool,
    waiting: HashMap<u64, mpsc::Sender<Value>>,
}

impl NextStore {
    pub(super) fn new(sender: Sender<OldMessage>) -> Self {
        Self { sender, reads: Mutex::default() }
    }

    /// Passes on an answer.
    pub(super) fn answer(&self, id: u64, value: Value) {
        if let Some(waiting) = self.reads.lock().waiting.remove(&id) {
            waiting.send(value).ok(); // Fails only if it has waited for too long.
        }
    }

    /// Notes that the next host has ended.
    pub(super) fn end(&self) {
        let mut reads = self.reads.lock();
        reads.is_ended = true;
        reads.waiting.clear();
    }
}

impl StoreSuccessor for NextStore {
    fn write(&self, change: ForeignChange) {
        self.sender.send(&OldMessage::Store(change));
    }

    fn read(&self, namespace: &str, key: String) -> Result<Option<String>, StoreError> {
        let (reply, answer) = mpsc::channel();
        let mut reads = self.reads.lock();
        if reads.is_ended {
            return Err(StoreError::Closed);
        }
        reads.last += 1;
        let id = reads.last;
        reads.waiting.insert(id, reply);
        drop(reads);
        self.sender.send(&OldMessage::Read { id, namespace: namespace.to_owned(), key });
        let value = answer.recv_timeout(READ_TIMEOUT);
        self.reads.lock().waiting.remove(&id);
        match value {
            Ok(Ok(value)) => Ok(value),
            // The next host has logged the cause, or has ended.
            Ok(Err(_)) | Err(_) => Err(StoreError::Closed),
        }
    }
}
