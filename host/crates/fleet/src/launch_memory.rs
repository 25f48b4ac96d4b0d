//! The memory of a device as engines report it.

/// The memory of a device as an engine's runtime reports it, which may differ from what the kernel
/// reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Its size in bytes.
    pub total: Option<u64>,
    /// What was free when the engine refused to start, until it has started.
    pub free: Option<u64>,
}
