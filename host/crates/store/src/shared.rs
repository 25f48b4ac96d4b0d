//! What the handles of the store and the thread that writes share.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::Database;

use crate::disk::{self, Change};
use crate::error::StoreError;
use crate::foreign::StoreSuccessor;
use crate::index::{Entry, Index};
use crate::namespace::{Loss, Namespace};

/// Time after which a file that failed is opened again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum time for a hand-over of the file.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(40);

/// What the handles and the writer share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Something is queued, or the store is closed.
    pub(crate) wake: Condvar,
    /// Something was written.
    pub(crate) written: Condvar,
    /// It is known which process has the file.
    pub(crate) settled: Condvar,
    pub(crate) disk: RwLock<Option<Arc<Database>>>,
    /// When the file may be opened again after a failure.
    pub(crate) next_open: Mutex<Instant>,
    /// Another process has the file. Changed under the lock of the state.
    pub(crate) is_released: AtomicBool,
    pub(crate) path: Option<PathBuf>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) on_loss: Box<dyn Fn(Loss<'_>) + Send + Sync>,
}

/// What the mutex guards: never held while the disk is used.
pub(crate) struct State {
    pub(crate) spaces: Vec<Index>,
    pub(crate) queue: VecDeque<Change>,
    /// The last queued change of each key.
    pub(crate) pending: HashMap<(usize, Arc<[u8]>), Pending>,
    pub(crate) pending_bytes: usize,
    /// Number of the last change.
    pub(crate) last: u64,
    /// Number of the last change that was written, or is lost.
    pub(crate) written: u64,
    pub(crate) lost: u64,
    pub(crate) is_closing: bool,
    /// The process that has the file.
    pub(crate) successor: Option<Arc<dyn StoreSuccessor>>,
}

pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) value: Option<Arc<[u8]>>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is known which process has the file, for some seconds at most, and returns
    /// the other one.
    pub(crate) fn successor(&self) -> Option<Arc<dyn StoreSuccessor>> {
        let mut state = self.lock();
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while state.successor.is_none() && self.is_released.load(Ordering::Acquire) {
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.settled.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.successor.clone()
    }

    /// Returns the file; `None` after a failure, until it is opened again.
    pub(crate) fn opened(&self) -> Option<Arc<Database>> {
        self.disk.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the file for a transaction, and opens it again after a failure.
    pub(crate) fn usable(&self) -> Result<Arc<Database>, StoreError> {
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let mut next_open = self.next_open.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have opened it.
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let now = Instant::now();
        if now < *next_open || self.is_released.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        *next_open = now + REOPEN_INTERVAL;
        let opened = disk::open(self.path.as_deref()).map_err(|_| StoreError::Closed)?;
        let opened = Arc::new(opened);
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Closes the file after a failure: the database refuses everything until it is opened again.
    pub(crate) fn failed(&self, database: &Arc<Database>) {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        if disk.as_ref().is_some_and(|opened| Arc::ptr_eq(opened, database)) {
            *disk = None;
        }
    }
}

impl State {
    /// Queues a change.
    pub(crate) fn push(
        &mut self,
        space: usize,
        number: u64,
        key: Arc<[u8]>,
        new: Option<(Entry, Arc<[u8]>)>,
    ) {
        let value = new.as_ref().map(|(_, value)| Arc::clone(value));
        self.pending_bytes += value.as_ref().map_or(0, |value| value.len());
        let pending = Pending { number, value };
        if let Some(before) = self.pending.insert((space, key.clone()), pending) {
            let bytes = before.value.map_or(0, |value| value.len());
            self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        }
        self.queue.push_back(Change { space, number, key, new });
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}
