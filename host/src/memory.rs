//! Returns memory to the system after a peak.
//!
//! By default, glibc raises the size from which blocks are mapped one by one to that of the largest
//! block that was freed, up to 32 MiB. Request bodies then lie in the arenas of threads, which
//! return only their free ends. With a fixed size, a body is returned to the system when it is
//! freed, and the peak of the soak test (`cargo xtask soak --minutes 1`) fell from 467 to 152 MiB.
//! Small allocations that survive a burst still keep the memory before them; `malloc_trim` returns
//! it. It took up to 80 ms after a burst, and less than 0.1 ms with nothing to return.

use std::path::Path;
use std::time::Duration;

use pointsman_files::read_regular_text;

/// How often the resident memory is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Resident memory in kilobytes below which nothing is done.
const MIN_RESIDENT_KB: u64 = 128 << 10;
/// Maximum size of `/proc/self/status` in bytes.
const MAX_STATUS_BYTES: u64 = 64 << 10;

/// Returns free memory to the system from time to time, as long as the future is polled.
pub(crate) async fn trim_after_peaks() {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if resident_kb().is_some_and(|resident| resident >= MIN_RESIDENT_KB) {
            // On a thread of its own, because the worker would stop for that time.
            tokio::task::spawn_blocking(trim).await.ok(); // Fails only while the host stops.
        }
    }
}

/// Fixes the sizes from which the allocator maps blocks one by one and returns the free end of an
/// arena. To be called before other threads begin.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator of the C library has no safe interface")]
pub(crate) fn configure() {
    const MAPPED_FROM: libc::c_int = 1 << 20;
    const RETURNED_FROM: libc::c_int = 4 << 20;
    // SAFETY: both only set a number, and accept every positive one.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, RETURNED_FROM);
    }
}

/// Other C libraries have allocators that return memory by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn configure() {}

/// Returns the resident memory of this process in kilobytes.
fn resident_kb() -> Option<u64> {
    let status = read_regular_text(Path::new("/proc/self/status"), MAX_STATUS_BYTES).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator of the C library has no safe interface")]
fn trim() {
    // SAFETY: the function has no preconditions, may be called by any thread, and only returns
    // pages that the allocator does not use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have allocators that return memory by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A long list of small values with a survivor at its end, which keeps the memory before it.
    #[test]
    #[cfg(target_env = "gnu")]
    fn trim_returns_free_memory() {
        let mut values: Vec<Box<[u8; 1000]>> = (0..200_000).map(|_| Box::new([1; 1000])).collect();
        let survivor = values.pop();
        let peak = resident_kb().unwrap();
        drop(values);
        trim();
        let after = resident_kb().unwrap();
        assert!(after + (100 << 10) < peak, "{peak} kB, and {after} kB after trimming");
        assert!(survivor.is_some());
    }
}
