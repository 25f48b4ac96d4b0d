//! Maximums of the host for what policies and operators may set.

use std::time::Duration;

/// Maximum deadline of a policy call about a request: the call blocks a worker thread of the
/// runtime.
pub const MAX_DEADLINE: Duration = Duration::from_millis(100);
/// Maximum bytes of one linear memory of a policy instance.
pub const MAX_MEMORY_BYTES: u64 = 256 << 20;

/// A limit that exceeds the maximum of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The deadline of a call is too long.
    #[error("exceeds the maximum of {} ms", MAX_DEADLINE.as_millis())]
    Deadline,
    /// The memory of an instance is too large.
    #[error("exceeds the maximum of {} MiB", MAX_MEMORY_BYTES >> 20)]
    Memory,
}

/// Returns the deadline of a call unless it exceeds [`MAX_DEADLINE`].
///
/// # Errors
/// If it does.
pub fn check_deadline(deadline: Duration) -> Result<Duration, LimitError> {
    if deadline > MAX_DEADLINE { Err(LimitError::Deadline) } else { Ok(deadline) }
}

/// Returns the memory of an instance, in bytes, unless it exceeds [`MAX_MEMORY_BYTES`].
///
/// # Errors
/// If it does.
pub fn check_memory(bytes: u64) -> Result<u64, LimitError> {
    if bytes > MAX_MEMORY_BYTES { Err(LimitError::Memory) } else { Ok(bytes) }
}
