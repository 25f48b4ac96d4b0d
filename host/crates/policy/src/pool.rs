//! The warm instances of one policy. An instance is taken for a call and put back after it; one that faulted is not.

use std::sync::{Mutex, PoisonError};

use wasmtime::Store;

use crate::abi::Instance;
use crate::call::Guest;
use crate::host_calls::HostState;

/// Instances that wait for a call, of one version. More calls at once than this are possible, and pay for an instance.
const MOST_IDLE: usize = 64;

/// An instance with its store.
pub(crate) struct Warm {
    pub(crate) store: Store<HostState>,
    pub(crate) instance: Instance,
    pub(crate) calls: u32,
}

impl Guest for Warm {
    fn store(&mut self) -> &mut Store<HostState> {
        &mut self.store
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    // Last in, first out: the instance whose memory is still in the CPU's cache. Held for a push or a pop, never over a call.
    #[expect(
        clippy::vec_box,
        reason = "moved in and out on every call: a pointer instead of a store"
    )]
    idle: Mutex<Vec<Box<Warm>>>,
}

impl Pool {
    pub(crate) fn take(&self) -> Option<Box<Warm>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keep an instance for the next call, unless it has had `most_calls`.
    pub(crate) fn put(&self, mut warm: Box<Warm>, most_calls: u32) {
        warm.calls += 1;
        if warm.calls < most_calls {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MOST_IDLE {
                idle.push(warm);
            }
        }
    }

    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        // Outside the lock: giving back their memory takes a while.
        drop(idle);
    }

    pub(crate) fn most_memory(&self) -> u64 {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.iter().map(|warm| warm.store.data().memory.used()).max().unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
