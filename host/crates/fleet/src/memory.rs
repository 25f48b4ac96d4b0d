//! Free memory, and the processes that hold it, from files of the Linux kernel. Needs no tool of
//! ROCm.
//!
//! All input is untrusted: a malformed value is treated as missing. `meminfo` is therefore read
//! here and not by `procfs-core`, which accepts a file only with all fields of Linux: sandboxes
//! such as gVisor write some of them.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use pointsman_files::open_regular;

use crate::footprint::format_size;

mod pool;
#[cfg(test)]
mod tests;

const GIB: u64 = 1 << 30;
/// Maximum number of bytes that are read from a file; those of the kernel are a few KiB.
const MAX_FILE: u64 = 64 * 1024;
/// Maximum number of entries that are read from a directory.
const MAX_ENTRIES: usize = 65_536;
/// PCI vendor id of AMD.
const AMD: u64 = 0x1002;
/// Maximum number of holders named in a message.
const MAX_NAMED: usize = 5;
const NODES: &str = "sys/class/kfd/kfd/topology/nodes";
const HOLDERS: &str = "sys/class/kfd/kfd/proc";
const DRM: &str = "sys/class/drm";
const CGROUPS: &str = "sys/fs/cgroup";

/// A machine, as described by the files of its kernel.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

/// An AMD GPU. Sizes are in bytes; a total of 0 means that the kernel does not report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Number of the render node, 128 for `/dev/dri/renderD128`.
    pub minor: u32,
    /// Dedicated memory; for an APU, what the BIOS carves out.
    pub vram_total: u64,
    /// Used dedicated memory.
    pub vram_used: u64,
    /// System memory that the GPU may use (GTT).
    pub gtt_total: u64,
    /// Used system memory.
    pub gtt_used: u64,
    /// The GPU is an APU, which shares the system's memory.
    pub apu: bool,
    /// Instruction set, such as `gfx1151`.
    pub gfx: Option<String>,
    /// Per cent of the time that the GPU was busy, from 0 to 100, if the kernel measures it.
    pub busy_percent: Option<u8>,
    /// 16 hexadecimal digits, which follow `GPU-` in `ROCR_VISIBLE_DEVICES`. APUs often have none.
    pub unique_id: Option<String>,
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process id.
    pub pid: u32,
    /// The name; empty if the host may not see it.
    pub name: String,
    /// Memory of the process on all GPUs, if the kernel reports it.
    pub bytes: Option<u64>,
}

/// The memory that a group of lanes shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pool {
    /// The system's memory, for llama.cpp on the CPU.
    System,
    /// The memory of a GPU.
    Gpu {
        /// Number of the render node; `None` for the first GPU.
        minor: Option<u32>,
    },
}

impl Machine {
    /// Creates a machine whose files are below `root`: `/`, or another directory in tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the AMD GPUs, ordered by render node.
    pub fn gpus(&self) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = Vec::new();
        for node in self.names(NODES) {
            // Nodes without a render node are CPUs.
            let properties = self.text(&format!("{NODES}/{node}/properties")).unwrap_or_default();
            let minor = property(&properties, "drm_render_minor")
                .and_then(|minor| u32::try_from(minor).ok());
            let Some(minor) = minor.filter(|minor| *minor > 0) else { continue };
            let mut gpu = self.gpu(minor);
            gpu.gfx = property(&properties, "gfx_target_version").and_then(gfx_name);
            let id = property(&properties, "unique_id").filter(|id| *id > 0);
            gpu.unique_id = id.map(|id| format!("{id:016x}")).or(gpu.unique_id);
            gpus.push(gpu);
        }
        // Adds the cards that the compute driver does not support; they have memory too.
        for name in self.names(DRM) {
            let minor = name.strip_prefix("renderD").and_then(|minor| minor.parse().ok());
            let vendor = self
                .text(&format!("{DRM}/{name}/device/vendor"))
                .and_then(|text| hexadecimal(&text));
            if let (Some(minor), Some(AMD)) = (minor, vendor) {
                gpus.push(self.gpu(minor));
            }
        }
        // The sort is stable, so the entry of the compute driver comes first and is kept.
        gpus.sort_by_key(|gpu| gpu.minor);
        gpus.dedup_by_key(|gpu| gpu.minor);
        gpus
    }

    /// Reads what the graphics driver reports about a GPU.
    fn gpu(&self, minor: u32) -> Gpu {
        let file = |name: &str| format!("{DRM}/renderD{minor}/device/{name}");
        let sizes = |kind: &str| {
            let total = self.number(&file(&format!("mem_info_{kind}_total")));
            // A total without the used size says nothing about free memory.
            total.zip(self.number(&file(&format!("mem_info_{kind}_used")))).unwrap_or((0, 0))
        };
        let ((vram_total, vram_used), (gtt_total, gtt_used)) = (sizes("vram"), sizes("gtt"));
        let busy = self.number(&file("gpu_busy_percent"));
        let id =
            self.text(&file("unique_id")).and_then(|text| hexadecimal(&text)).filter(|id| *id > 0);
        Gpu {
            minor,
            vram_total,
            vram_used,
            gtt_total,
            gtt_used,
            apu: is_apu(vram_total, gtt_total),
            gfx: None,
            busy_percent: busy.and_then(|busy| u8::try_from(busy.min(100)).ok()),
            unique_id: id.map(|id| format!("{id:016x}")),
        }
    }

    /// Returns the processes that hold a GPU, ordered by id. An entry stays until the driver has
    /// freed all memory of the process.
    pub fn holders(&self) -> Vec<Holder> {
        let pids = self.names(HOLDERS).into_iter().filter_map(|name| name.parse().ok());
        let mut holders: Vec<Holder> = pids.map(|pid| self.holder(pid)).collect();
        holders.sort_by_key(|holder| holder.pid);
        holders
    }

    /// Returns what a process holds, whether or not it computes on a GPU.
    pub(crate) fn holder(&self, pid: u32) -> Holder {
        let folder = format!("{HOLDERS}/{pid}");
        let files = self.names(&folder).into_iter().filter(|name| name.starts_with("vram_"));
        let sizes = files.filter_map(|name| self.number(&format!("{folder}/{name}")));
        let bytes = sizes.reduce(u64::saturating_add);
        let name = self.text(&format!("proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim().replace(char::is_control, "?").chars().take(64).collect();
        Holder { pid, name, bytes }
    }

    /// Returns the bytes of system memory that are available without swapping.
    pub fn available(&self) -> Option<u64> {
        self.meminfo("MemAvailable:")
    }

    /// Returns the bytes of system memory.
    pub fn total(&self) -> Option<u64> {
        self.meminfo("MemTotal:")
    }

    fn meminfo(&self, key: &str) -> Option<u64> {
        let text = self.text("proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        // The value is in KiB, although the kernel writes "kB".
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Returns the bytes that the host's control group (v2) and its ancestors leave, or `None`
    /// without a limit. File pages that were not used recently count as free, because the kernel
    /// reclaims them first: otherwise a model that was read once would seem to be held forever.
    pub fn cgroup_available(&self) -> Option<u64> {
        self.cgroup_left(true)
    }

    /// Returns the same, with all file pages counted as used.
    fn cgroup_unused(&self) -> Option<u64> {
        self.cgroup_left(false)
    }

    fn cgroup_left(&self, reclaims: bool) -> Option<u64> {
        let text = self.text("proc/self/cgroup")?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        // The path must not lead out of the directory.
        let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let path: PathBuf = Path::new(path).components().filter(is_name).collect();
        let groups = path.ancestors().map(|group| Path::new(CGROUPS).join(group));
        let left = groups.filter_map(|group| {
            let file = |name: &str| group.join(name).to_string_lossy().into_owned();
            let limit = self.number(&file("memory.max"))?;
            let used = self.number(&file("memory.current"))?;
            let stat = reclaims.then(|| self.text(&file("memory.stat"))).flatten();
            let cached = stat.and_then(|text| property(&text, "inactive_file"));
            Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
        });
        left.min()
    }

    /// Returns the free bytes of a pool, or `None` if they cannot be read. For an APU, these are
    /// its dedicated memory and what it may take from the system; for the system, what the host may
    /// use.
    pub fn free(&self, pool: &Pool) -> Option<u64> {
        match pool {
            Pool::System => self.system_free(),
            Pool::Gpu { minor } => self.gpu_free(&self.find(*minor)?),
        }
    }

    fn system_free(&self) -> Option<u64> {
        let available = self.available()?;
        Some(self.cgroup_available().map_or(available, |left| left.min(available)))
    }

    fn gpu_free(&self, gpu: &Gpu) -> Option<u64> {
        if gpu.vram_total == 0 {
            return None;
        }
        let vram = gpu.vram_total.saturating_sub(gpu.vram_used);
        if !gpu.apu {
            return Some(vram);
        }
        // Without the system's available memory, this could report memory that does not exist, and
        // a machine that runs out of it hangs.
        let shared = gpu.gtt_total.saturating_sub(gpu.gtt_used).min(self.available()?);
        Some(vram.saturating_add(shared))
    }

    fn find(&self, minor: Option<u32>) -> Option<Gpu> {
        self.gpus().into_iter().find(|gpu| minor.is_none_or(|minor| minor == gpu.minor))
    }

    /// Describes the memory of a pool and its holders: `12.0 GiB free of 48.0 GiB on renderD128;
    /// held by 4711 (VLLM::EngineCor, 36.0 GiB)`.
    pub fn explain(&self, pool: &Pool) -> String {
        let minor = match pool {
            Pool::System => return self.explain_system(),
            Pool::Gpu { minor } => *minor,
        };
        let Some(gpu) = self.find(minor) else {
            let which = minor
                .map_or_else(|| "AMD GPU".to_owned(), |minor| format!("AMD GPU renderD{minor}"));
            return format!("no {which} in {NODES} or {DRM} of {}", self.root.display());
        };
        let name = format!("renderD{}", gpu.minor);
        let mut line = match self.gpu_free(&gpu) {
            Some(free) => {
                format!("{} free of {} on {name}", format_size(free), format_size(gpu.total()))
            }
            None => format!(
                "unknown free memory of {name}: failed to read {DRM}/{name}/device/mem_info_*"
            ),
        };
        let gtt_free = gpu.gtt_total.saturating_sub(gpu.gtt_used);
        if let Some(available) =
            self.available().filter(|available| gpu.apu && *available < gtt_free)
        {
            // Writing to a string cannot fail.
            write!(line, ", limited by {} of available system memory", format_size(available)).ok();
        }
        line + &held_by(&self.holders())
    }

    fn explain_system(&self) -> String {
        let Some((free, available)) = self.system_free().zip(self.available()) else {
            return "unknown free system memory: failed to read proc/meminfo".to_owned();
        };
        let total =
            self.total().map_or_else(String::new, |total| format!(" of {}", format_size(total)));
        let limit =
            if free < available { ", limited by the control group (memory.max)" } else { "" };
        format!("{} free{total} of system memory{limit}", format_size(free))
    }

    /// Reads the start of a file; bytes that are not UTF-8 are replaced.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = open_regular(&self.root.join(path)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads a file that contains one number.
    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }

    /// Returns the names in a directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().take(MAX_ENTRIES);
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }
}

/// Returns true if the sizes look like those of an APU: little dedicated memory and much of the
/// system's. This is Ollama's criterion.
fn is_apu(vram_total: u64, gtt_total: u64) -> bool {
    let is_small = (1..=4 * GIB).contains(&vram_total);
    // Saturating: both sizes come from outside.
    is_small && gtt_total >= 8 * GIB && gtt_total >= vram_total.saturating_mul(4)
}

/// Returns the value in lines of the form `key value`.
fn property(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// Parses a hexadecimal number with or without `0x`.
fn hexadecimal(text: &str) -> Option<u64> {
    let text = text.trim();
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Returns the name of an instruction set: 110501 is `gfx1151`, and 90010 is `gfx90a`.
fn gfx_name(version: u64) -> Option<String> {
    let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
    (1..100).contains(&major).then(|| format!("gfx{major}{minor}{step:x}"))
}

fn held_by(holders: &[Holder]) -> String {
    let name = |holder: &Holder| {
        let size = holder.bytes.map(format_size);
        let facts = [Some(holder.name.clone()).filter(|name| !name.is_empty()), size];
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        if facts.is_empty() {
            holder.pid.to_string()
        } else {
            format!("{} ({})", holder.pid, facts.join(", "))
        }
    };
    let named: Vec<String> = holders.iter().take(MAX_NAMED).map(name).collect();
    match holders.len().saturating_sub(MAX_NAMED) {
        _ if named.is_empty() => String::new(),
        0 => format!("; held by {}", named.join(", ")),
        more => format!("; held by {} and {more} more", named.join(", ")),
    }
}
