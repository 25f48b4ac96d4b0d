//! What the handles of the store and the thread that writes share.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use redb::Database;

use crate::disk::Change;
use crate::index::{Entry, Index};
use crate::namespace::{Loss, Namespace};

/// What the handles and the writer share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Something is queued, or the store is closed.
    pub(crate) wake: Condvar,
    /// Something was written.
    pub(crate) written: Condvar,
    pub(crate) disk: RwLock<Option<Arc<Database>>>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) on_loss: Box<dyn Fn(Loss<'_>) + Send + Sync>,
}

/// What the mutex guards: never held while the disk is used.
pub(crate) struct State {
    pub(crate) spaces: Vec<Index>,
    pub(crate) queue: VecDeque<Change>,
    /// The last queued change of each key.
    pub(crate) pending: HashMap<(usize, Box<[u8]>), Pending>,
    pub(crate) pending_bytes: usize,
    /// Number of the last change.
    pub(crate) last: u64,
    /// Number of the last change that was written, or is lost.
    pub(crate) written: u64,
    pub(crate) lost: u64,
    pub(crate) is_closing: bool,
}

pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) value: Option<Arc<[u8]>>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the file; `None` after a failure, until it is opened again.
    pub(crate) fn opened(&self) -> Option<Arc<Database>> {
        self.disk.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_opened(&self, opened: Option<Arc<Database>>) {
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = opened;
    }
}

impl State {
    /// Queues a change.
    pub(crate) fn push(
        &mut self,
        space: usize,
        number: u64,
        key: Box<[u8]>,
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
