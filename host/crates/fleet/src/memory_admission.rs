//! Memory admission: an engine is started only after its memory has been measured to be free. The
//! budget of a group alone does not prove that, because drivers free memory late and processes
//! outside the fleet use it too.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::footprint::format_size;
use crate::launch_memory::{DeviceMemory, LaunchMemory};
use crate::memory::{Machine, Pool};
use crate::page_cache::PageCache;
use crate::status::LaneStatus;

/// The interval between measurements. Drivers free memory lazily, and a measurement takes
/// microseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The free memory did not reach the required amount in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "memory did not become free within {} s: expected {}, found {found}",
    .timeout.as_secs_f32(), format_size(*.needed)
)]
pub(crate) struct AdmissionTimeout {
    /// Required free bytes.
    needed: u64,
    timeout: Duration,
    /// The last measurement, and the processes that hold the memory.
    found: String,
}

/// The memory that a lane reserves in its pool while its engine is loaded.
#[derive(Debug, Clone)]
pub(crate) struct MemoryReservation {
    pub(crate) machine: Arc<Machine>,
    pub(crate) pool: Pool,
    /// Bytes that a loaded engine needs.
    pub(crate) need: u64,
    /// Bytes of `need` that a sleeping engine keeps.
    pub(crate) asleep: u64,
    /// Maximum time to wait for free memory.
    pub(crate) timeout: Duration,
}

impl MemoryReservation {
    /// Waits until `needed` bytes of the pool are free, and returns how long that took. Returns
    /// immediately if the free memory cannot be measured.
    ///
    /// # Errors
    /// Returns an error that names the processes holding the memory if it is not free in time.
    pub(crate) async fn admit(
        &self,
        needed: u64,
        status: &watch::Sender<LaneStatus>,
    ) -> Result<Duration, AdmissionTimeout> {
        let begun = Instant::now();
        loop {
            match self.machine.free(&self.pool) {
                Some(free) if free >= needed => return Ok(begun.elapsed()),
                // Waiting for a value that cannot be read would never end. Logged once per load,
                // because the operator may be relying on the check.
                None => {
                    tracing::warn!(
                        memory = self.machine.explain(&self.pool),
                        "failed to read the free memory; loading the engine anyway"
                    );
                    return Ok(begun.elapsed());
                }
                Some(_) if begun.elapsed() >= self.timeout => {
                    let found = self.machine.explain(&self.pool);
                    return Err(AdmissionTimeout { needed, timeout: self.timeout, found });
                }
                Some(free) => {
                    let progress = format!(
                        "waiting for memory: {} of {} free",
                        format_size(free),
                        format_size(needed)
                    );
                    status.send_modify(|status| status.progress = Some(progress));
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns what an engine that is about to be started can know of its memory. `device` is what
    /// an earlier start reported.
    pub(crate) fn launch_memory(&self, device: Option<DeviceMemory>) -> LaunchMemory {
        let (total, unused) = (self.machine.size(&self.pool), self.machine.unused(&self.pool));
        LaunchMemory { need: self.need, total, unused, device }
    }

    /// Drops the weights of unloaded lanes from the page cache if the load needs the room. Not for
    /// engines on the processor: the kernel gives pages up when they allocate memory, and may find
    /// others that are less useful.
    pub(crate) async fn drop_page_cache(&self, cache: &PageCache) {
        if !self.machine.is_unified(&self.pool) {
            return;
        }
        let (machine, pool, need) = (Arc::clone(&self.machine), self.pool, self.need);
        let cache = cache.clone();
        let dropping = tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            let before = machine.unused(&pool);
            // What cannot be measured is not a reason to make the next switch slower.
            let has_room = || machine.unused(&pool).is_none_or(|unused| unused >= need);
            let dropped = cache.make_room(has_room);
            (dropped, before, machine.unused(&pool), begun.elapsed())
        });
        // Fails only if the runtime ends.
        let Ok((dropped, before, after, took)) = dropping.await else { return };
        if dropped.files > 0 {
            let size = |bytes: Option<u64>| bytes.map(format_size).unwrap_or_default();
            tracing::info!(
                event = "page_cache_dropped",
                files = dropped.files,
                bytes = dropped.bytes,
                unused_before = size(before),
                unused_after = size(after),
                took_ms = took.as_millis(),
                "dropped the weights of unloaded lanes from the page cache"
            );
        }
    }

    /// Returns the free bytes of the pool, or `None` if they cannot be measured.
    pub(crate) fn free(&self) -> Option<u64> {
        self.machine.free(&self.pool)
    }

    /// Returns the bytes that going to sleep frees, which are also those that waking up needs.
    pub(crate) fn freed_by_sleep(&self) -> u64 {
        // The configuration may give a sleeping engine more than a loaded one.
        self.need.saturating_sub(self.asleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn set_available(root: &Path, kib: u64) {
        fs::create_dir_all(root.join("proc")).unwrap();
        let text = format!("MemTotal: 4096 kB\nMemAvailable: {kib} kB\n");
        fs::write(root.join("proc/meminfo"), text).unwrap();
    }

    fn reservation(root: &Path) -> MemoryReservation {
        MemoryReservation {
            machine: Arc::new(Machine::new(root)),
            pool: Pool::System,
            need: 0,
            asleep: 0,
            timeout: Duration::from_secs(10),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn admission_waits_until_memory_is_free() {
        let root = tempfile::tempdir().unwrap();
        set_available(root.path(), 1024);
        let (status, mut progress) = watch::channel(LaneStatus::default());
        let reservation = reservation(root.path());
        let free = async {
            progress.wait_for(|status| status.progress.is_some()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            set_available(root.path(), 2048);
        };
        let (waited, ()) = tokio::join!(reservation.admit(2 << 20, &status), free);
        let waited = waited.unwrap();
        let most = Duration::from_secs(3) + POLL_INTERVAL;
        assert!((Duration::from_secs(3)..=most).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn admission_gives_up_after_its_timeout() {
        let root = tempfile::tempdir().unwrap();
        set_available(root.path(), 1024);
        let (status, _progress) = watch::channel(LaneStatus::default());
        let (reservation, begun) = (reservation(root.path()), Instant::now());
        let error = reservation.admit(2 << 20, &status).await.unwrap_err();
        assert_eq!((error.needed, error.timeout), (2 << 20, reservation.timeout));
        assert_eq!(begun.elapsed(), reservation.timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_free_memory_does_not_delay_a_load() {
        let root = tempfile::tempdir().unwrap();
        let (status, _progress) = watch::channel(LaneStatus::default());
        let waited = reservation(root.path()).admit(u64::MAX, &status).await.unwrap();
        assert_eq!(waited, Duration::ZERO);
    }

    /// An APU with 1 GiB of its own, of which nothing is used, and 64 GiB of the system's, of which
    /// `free_kib` hold nothing.
    fn apu(root: &Path, free_kib: u64) {
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/class/kfd/kfd/topology/nodes/1/properties", "drm_render_minor 128\n");
        for (name, gib) in
            [("vram_total", 1_u64), ("vram_used", 0), ("gtt_total", 64), ("gtt_used", 0)]
        {
            let path = format!("sys/class/drm/renderD128/device/mem_info_{name}");
            write(&path, &(gib << 30).to_string());
        }
        write("proc/meminfo", &format!("MemFree: {free_kib} kB\nMemAvailable: 67108864 kB\n"));
    }

    #[tokio::test]
    async fn weights_leave_the_page_cache_only_if_a_load_needs_the_room() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("model.gguf");
        fs::write(&file, "weights").unwrap();
        let gib = 1 << 30;
        let pool = Pool::Gpu { minor: None };
        let apu_pool = MemoryReservation { pool, need: 3 * gib, ..reservation(root.path()) };
        let system = MemoryReservation { pool: Pool::System, ..apu_pool.clone() };
        let cache = PageCache::default();
        let unloaded = || drop(cache.use_files(vec![file.clone()]));
        for (free_kib, reservation, is_dropped) in [
            (1 << 20, &apu_pool, true),
            // 1 GiB of its own, and 2 GiB of the system's.
            (2 << 20, &apu_pool, false),
            (1 << 20, &system, false),
        ] {
            apu(root.path(), free_kib);
            unloaded();
            reservation.drop_page_cache(&cache).await;
            // What has been dropped is not there to be dropped again.
            let left = cache.make_room(|| false).files;
            assert_eq!(left == 0, is_dropped, "{free_kib} {:?}", reservation.pool);
        }
        let memory = apu_pool.launch_memory(None);
        assert_eq!((memory.need, memory.total), (3 * gib, Some(65 * gib)));
        assert_eq!((memory.unused, memory.device), (Some(2 * gib), None));
    }
}
