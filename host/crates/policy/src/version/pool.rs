//! The idle instances of one version. An instance is taken for a call and put back afterwards,
//! unless the call ended in a fault.
//!
//! A pool is closed when its version is not called any more. A call that was running then does not
//! put its instance back, so a closed pool holds no memory.

use std::marker::PhantomData;

use parking_lot::Mutex;

/// Maximum idle instances of one version. More concurrent calls than this are possible, and each of
/// them creates an instance.
const MAX_IDLE: usize = 64;

/// A lock. Tests replace it with one whose threads run in every order.
pub(crate) trait Lock<T>: Default {
    /// Calls `access` with the value while no other thread has access.
    fn with<R>(&self, access: impl FnOnce(&mut T) -> R) -> R;
}

impl<T: Default> Lock<T> for Mutex<T> {
    fn with<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        access(&mut self.lock())
    }
}

/// The idle instances of one version.
pub(crate) struct Pool<T, L = Mutex<Idle<T>>> {
    // The lock is held for a push or a pop, never during a call.
    idle: L,
    instances: PhantomData<fn() -> T>,
}

/// The content of a pool.
pub(crate) struct Idle<T> {
    // Last in, first out: the memory of the last instance is the most likely to be in the CPU's
    // cache. Boxed, because they are moved in and out on every call.
    instances: Vec<Box<T>>,
    is_closed: bool,
}

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self { instances: Vec::new(), is_closed: false }
    }
}

impl<T, L: Default> Default for Pool<T, L> {
    fn default() -> Self {
        Self { idle: L::default(), instances: PhantomData }
    }
}

impl<T, L: Lock<Idle<T>>> Pool<T, L> {
    pub(crate) fn take(&self) -> Option<Box<T>> {
        self.idle.with(|idle| idle.instances.pop())
    }

    /// Puts an instance back for the next call, unless the pool is full or closed.
    pub(crate) fn put(&self, instance: Box<T>) {
        let refused = self.idle.with(|idle| {
            if idle.is_closed || idle.instances.len() == MAX_IDLE {
                return Some(instance);
            }
            idle.instances.push(instance);
            None
        });
        // Outside the lock: unmapping the memories takes a while.
        drop(refused);
    }

    /// Lets the pool keep instances again.
    pub(crate) fn open(&self) {
        self.idle.with(|idle| idle.is_closed = false);
    }

    /// Drops the idle instances, and keeps no others until the pool is [opened](Pool::open).
    pub(crate) fn close(&self) {
        let instances = self.idle.with(|idle| {
            idle.is_closed = true;
            std::mem::take(&mut idle.instances)
        });
        // Outside the lock, as above.
        drop(instances);
    }

    /// Returns the maximum of a measure of the idle instances; 0 without any.
    pub(crate) fn max_of(&self, measure: impl Fn(&T) -> u64) -> u64 {
        self.idle
            .with(|idle| idle.instances.iter().map(|instance| measure(instance)).max())
            .unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.idle.with(|idle| idle.instances.len())
    }
}

#[cfg(test)]
mod tests;
