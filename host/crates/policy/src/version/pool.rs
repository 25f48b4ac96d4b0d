//! The warm instances of one version. An instance is taken for a call and put back afterwards,
//! unless the call ended in a fault.

use parking_lot::Mutex;
use wasmtime::Store;

use crate::contract::guest::Instance;
use crate::contract::host_state::HostState;
use crate::version::call::Guest;

/// Maximum idle instances of one version. More concurrent calls than this are possible, and each of
/// them creates an instance.
const MAX_IDLE: usize = 64;

/// An instance with its store.
pub(crate) struct WarmInstance {
    pub(crate) store: Store<HostState>,
    pub(crate) instance: Instance,
    pub(crate) calls: u32,
}

impl Guest for WarmInstance {
    fn store(&mut self) -> &mut Store<HostState> {
        &mut self.store
    }
}

/// The idle instances of one version.
#[derive(Default)]
pub(crate) struct Pool {
    // Last in, first out: the memory of the last instance is the most likely to be in the CPU's
    // cache. The lock is held for a push or a pop, never during a call.
    #[expect(
        clippy::vec_box,
        reason = "moved in and out on every call: a pointer instead of a store"
    )]
    idle: Mutex<Vec<Box<WarmInstance>>>,
}

impl Pool {
    pub(crate) fn take(&self) -> Option<Box<WarmInstance>> {
        self.idle.lock().pop()
    }

    /// Puts an instance back for the next call, unless it has had `max_calls` calls.
    pub(crate) fn put(&self, mut warm: Box<WarmInstance>, max_calls: u32) {
        warm.calls += 1;
        if warm.calls < max_calls {
            let mut idle = self.idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(warm);
            }
        }
    }

    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        // Outside the lock: unmapping the memories takes a while.
        drop(idle);
    }

    /// Returns the peak memory, in bytes, of an idle instance.
    pub(crate) fn peak_memory(&self) -> u64 {
        let idle = self.idle.lock();
        idle.iter().map(|warm| warm.store.data().memory.used()).max().unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.lock().len()
    }
}
