//! What is known of the memory of a lane when its engine is launched.

/// The memory of a device as an engine's runtime reports it, which may differ from what the kernel
/// reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Its size in bytes.
    pub total: Option<u64>,
    /// What was free when the engine refused to start, until it is launched again.
    pub free: Option<u64>,
}

/// What is known of the memory of a lane when its engine is launched. Sizes are in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaunchMemory {
    /// What the loaded engine needs.
    pub(crate) need: u64,
    /// The size of the pool, if it is known.
    pub(crate) total: Option<u64>,
    /// What of the pool holds nothing, not even the page cache, if it is known.
    pub(crate) unused: Option<u64>,
    /// What an earlier start of the engine reported.
    pub(crate) device: Option<DeviceMemory>,
}
