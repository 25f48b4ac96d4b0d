//! The memory limit of one instance.

use wasmtime::ResourceLimiter;

use crate::limits::{MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};

/// Maximum core instances of one store. Core instances of a component are limited when it is
/// loaded.
const MAX_STORE_INSTANCES: usize = 64;

/// The memory limit of one instance, over all its linear memories and tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryLimit {
    max: u64,
    used: u64,
    pub(crate) exceeded: bool,
}

impl MemoryLimit {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, used: 0, exceeded: false }
    }

    /// Returns the maximum number of bytes.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// Returns the number of bytes in use. Memory never shrinks, so this is also the peak.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Saturates on absurd sizes, which are above any limit.
        let wanted = self.used.saturating_add((desired - current) as u64);
        let is_allowed = wanted <= self.max;
        if is_allowed {
            self.used = wanted;
        } else {
            self.exceeded = true;
        }
        // `memory.grow` returns -1 to the guest, which some language runtimes can handle.
        Ok(is_allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        MAX_STORE_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES as usize
    }
}
