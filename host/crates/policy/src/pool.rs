//! The warm instances of one policy. An instance is taken for a call and put back after it; one that faulted is not.

use std::sync::{Mutex, PoisonError};

use wasmtime::Store;

use crate::abi::Instance;
use crate::host_calls::HostState;

/// Calls after which an instance is replaced, so that what leaks in a guest does so for a while only.
const MOST_CALLS: u32 = 100_000;

/// An instance with its store.
pub(crate) struct Warm {
    pub(crate) store: Store<HostState>,
    pub(crate) instance: Instance,
    pub(crate) calls: u32,
}

#[derive(Default)]
pub(crate) struct Pool {
    // Last in, first out: the instance whose memory is still in the CPU's cache. Held for a push or a pop, never over a call.
    #[expect(clippy::vec_box, reason = "moved in and out on every call: a pointer instead of a store")]
    idle: Mutex<Vec<Box<Warm>>>,
}

impl Pool {
    pub(crate) fn take(&self) -> Option<Box<Warm>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keep an instance for the next call. There are never more than were in use at once.
    pub(crate) fn put(&self, mut warm: Box<Warm>) {
        warm.calls += 1;
        if warm.calls < MOST_CALLS {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(warm);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
