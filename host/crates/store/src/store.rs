//! The handle of the store.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::disk::{self, Change};
use crate::error::{OpenError, StoreError};
use crate::foreign::{to_bytes, to_text};
use crate::index::{Entry, Index};
use crate::namespace::{Loss, Namespace, Options, now_ms};
use crate::shared::{Shared, State};
use crate::writer;

/// Maximum number of bytes of values that wait to be written.
const MAX_PENDING_BYTES: usize = 64 << 20;

/// Maximum number of changes that wait to be written. Removals are always taken.
const MAX_PENDING: usize = 8192;

/// An open store. A clone is a handle of the same store; the last one writes what is queued when
/// it is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the file, or memory. Reads the names of all entries, and compacts a file of which much
    /// is unused. Blocks.
    ///
    /// # Errors
    /// If the file cannot be used, another process has it open, or a later version has written it.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let Options { path, namespaces, on_loss } = options;
        let mut opened = disk::open(path.as_deref())?;
        let mut spaces: Vec<Index> = namespaces.iter().cloned().map(Index::new).collect();
        let (mut last, mut gone) = (0, Vec::new());
        for (space, index) in spaces.iter_mut().enumerate() {
            let (number, keys) = disk::load(&opened, index, now_ms())?;
            last = last.max(number);
            gone.extend(keys.into_iter().map(|key| Change { space, number: 0, key, new: None }));
        }
        if !gone.is_empty() {
            disk::apply(&opened, &namespaces, &gone)?;
        }
        // A command that reads the file knows no namespaces, and leaves it as it is.
        if let Some(path) = path.as_ref().filter(|_| !namespaces.is_empty()) {
            disk::compact(&mut opened, path, spaces.iter().map(Index::bytes).sum())?;
        }
        let state = State {
            spaces,
            queue: VecDeque::new(),
            pending: HashMap::new(),
            pending_bytes: 0,
            last,
            written: last,
            lost: 0,
            is_closing: false,
            successor: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
            written: Condvar::new(),
            settled: Condvar::new(),
            disk: RwLock::new(Some(Arc::new(opened))),
            next_open: Mutex::new(Instant::now()),
            is_released: AtomicBool::new(false),
            path,
            namespaces,
            on_loss,
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || writer::run(&shared)
        };
        let writer = std::thread::Builder::new().name("store-writer".to_owned()).spawn(run);
        let writer = Some(writer.map_err(OpenError::Thread)?);
        Ok(Self { inner: Arc::new(Inner { shared, writer }) })
    }

    /// Waits until everything that was queued before is written, or lost. Blocks.
    pub fn flush(&self) {
        let shared = &self.inner.shared;
        let mut state = shared.lock();
        let last = state.last;
        while state.written < last {
            state = shared.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns true if nothing outlives the process.
    pub fn is_in_memory(&self) -> bool {
        self.inner.shared.path.is_none()
    }

    /// Returns the number of entries that could not be written so far.
    pub fn lost(&self) -> u64 {
        self.inner.shared.lock().lost
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Returns the position of a namespace.
    pub(crate) fn space(&self, name: &str) -> Option<usize> {
        self.inner.shared.namespaces.iter().position(|namespace| namespace.name == name)
    }

    pub(crate) fn put(
        &self,
        space: usize,
        key: &[u8],
        owner: u64,
        value: Vec<u8>,
        now: u64,
    ) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        let Namespace { max_value, max_age, .. } = shared.namespaces[space];
        let bytes = value.len();
        let length = u32::try_from(bytes).ok().filter(|_| bytes <= max_value);
        let length = length.ok_or(StoreError::TooLarge { bytes, max: max_value })?;
        let age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        let mut state = shared.lock();
        if state.pending_bytes + bytes > MAX_PENDING_BYTES || state.queue.len() >= MAX_PENDING {
            state.lost += 1;
            drop(state);
            (shared.on_loss)(Loss { writes: 1, error: &StoreError::Busy });
            return Err(StoreError::Busy);
        }
        let number = state.number();
        let expires = now.saturating_add(age);
        let entry = Entry { key: key.into(), owner, expires, value: length };
        let gone = state.spaces[space].add(number, entry.clone(), now);
        // In the order of their numbers: the writer tells by the last one how far it is.
        let key = entry.key.clone();
        state.push(space, number, key, Some((entry, value.into())));
        for key in gone {
            let number = state.number();
            state.push(space, number, key, None);
        }
        drop(state);
        shared.wake.notify_one();
        Ok(())
    }

    pub(crate) fn get(
        &self,
        space: usize,
        key: &[u8],
        now: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let shared = &self.inner.shared;
        if let Some(successor) = shared.successor() {
            let pending = shared
                .lock()
                .pending
                .get(&(space, Arc::from(key)))
                .map(|pending| pending.value.as_ref().map(|value| value.to_vec()));
            return match pending {
                Some(value) => Ok(value),
                None => {
                    let read = successor.read(shared.namespaces[space].name, to_text(key))?;
                    Ok(read.and_then(|value| to_bytes(&value)))
                }
            };
        }
        {
            let state = shared.lock();
            if state.spaces[space].find(key, now).is_none() {
                return Ok(None);
            }
            if let Some(pending) = state.pending.get(&(space, Arc::from(key))) {
                return Ok(pending.value.as_ref().map(|value| value.to_vec()));
            }
        }
        let opened = shared.opened().ok_or(StoreError::Closed)?;
        disk::read(&opened, &shared.namespaces[space], key)
    }

    pub(crate) fn remove(&self, space: usize, key: &[u8], now: u64) -> bool {
        let shared = &self.inner.shared;
        let mut state = shared.lock();
        // What another process has written is not known here.
        let is_foreign = state.successor.is_some();
        let is_found = is_foreign || state.spaces[space].find(key, now).is_some();
        if state.spaces[space].remove(key) || is_foreign {
            let number = state.number();
            state.push(space, number, key.into(), None);
            drop(state);
            shared.wake.notify_one();
        }
        is_found
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.shared.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            writer.join().ok();
        }
    }
}
