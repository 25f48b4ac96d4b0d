//! The size of a pool, and the part of it that holds nothing, not even the page cache.

use super::{Gpu, Machine, Pool};

impl Gpu {
    /// Returns the memory that the GPU may use in bytes, or 0 if it is unknown: an APU may use
    /// system memory as well.
    pub fn total(&self) -> u64 {
        self.vram_total.saturating_add(if self.apu { self.gtt_total } else { 0 })
    }
}

impl Machine {
    /// Returns the size of a pool in bytes, if it is known.
    pub fn size(&self, pool: &Pool) -> Option<u64> {
        match pool {
            Pool::System => self.total(),
            Pool::Gpu { minor } => Some(self.find(*minor)?.total()).filter(|total| *total > 0),
        }
    }

    /// Returns the bytes of a pool that hold nothing. Unlike [`free`](Self::free), file pages that
    /// the kernel would give up for an allocation are not counted: engines have refused to start
    /// because of them, and GPU drivers have failed instead of waiting for the kernel.
    pub fn unused(&self, pool: &Pool) -> Option<u64> {
        let system = || self.meminfo("MemFree:");
        match pool {
            Pool::System => {
                let unused = system()?;
                Some(self.cgroup_unused().map_or(unused, |left| left.min(unused)))
            }
            Pool::Gpu { minor } => {
                let gpu = self.find(*minor).filter(|gpu| gpu.vram_total > 0)?;
                let vram = gpu.vram_total.saturating_sub(gpu.vram_used);
                if !gpu.apu {
                    return Some(vram);
                }
                let shared = gpu.gtt_total.saturating_sub(gpu.gtt_used).min(system()?);
                Some(vram.saturating_add(shared))
            }
        }
    }

    /// Returns true if a GPU takes its memory from that of the system, which file pages fill as
    /// well.
    pub fn is_unified(&self, pool: &Pool) -> bool {
        match pool {
            Pool::System => false,
            Pool::Gpu { minor } => self.find(*minor).is_some_and(|gpu| gpu.apu),
        }
    }
}
