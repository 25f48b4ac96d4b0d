//! Checks of memory: what the GPU may take of the system's, budgets, swap space and shared memory.

use pointsman_fleet::{Gpu, Pool, format_size};

use super::expected::Expected;
use super::finding::Finding;
use super::gpu::is_strix;
use super::system::System;

const GIB: u64 = 1 << 30;
/// Number of pages of 4 KiB in a GiB.
const PAGES_PER_GIB: u64 = 262_144;
/// What the system and the host need besides the engines.
const RESERVE: u64 = 8 * GIB;
/// Shared memory below which several processes of an engine commonly fail.
const SMALL_SHM: u64 = GIB;
/// Dedicated memory that only takes from what an APU can use flexibly.
const LARGE_CARVE_OUT: u64 = 4 * GIB;

pub(super) fn check(system: &System, expected: &Expected) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        system.gpus.iter().map(|gpu| gpu_memory(system, expected, gpu)).collect();
    if system.gpus.iter().any(is_shared) {
        findings.extend(pages_limit(system));
        findings.extend(kernel_arguments(system));
    }
    findings.push(system_memory(system, expected));
    findings.push(swap(system));
    findings.extend(overcommit(system));
    findings.push(shared_memory(system, expected));
    findings
}

/// Returns true if the GPU takes its memory from the system's.
fn is_shared(gpu: &Gpu) -> bool {
    gpu.apu || gpu.gfx.as_deref().is_some_and(is_strix)
}

fn gpu_memory(system: &System, expected: &Expected, gpu: &Gpu) -> Finding {
    const CHECK: &str = "gpu_memory";
    let first = system.gpus.first().map(|gpu| gpu.minor);
    let of_gpu = expected.gpu_groups.iter().filter(|(_, pool, _)| match pool {
        Pool::Gpu { minor } => minor.or(first) == Some(gpu.minor),
        Pool::System => false,
    });
    let budgets = of_gpu.fold(0u64, |sum, (_, _, budget)| sum.saturating_add(*budget));
    let fact = format!(
        "renderD{}: {} of its own (VRAM), {} of the system's (GTT)",
        gpu.minor,
        format_size(gpu.vram_total),
        format_size(gpu.gtt_total)
    );
    if gpu.vram_total == 0 {
        return Finding::note(CHECK, format!("renderD{}: unknown memory", gpu.minor), "");
    }
    let total = gpu.total();
    if budgets > total {
        let fact = format!("{fact}; the budgets of its groups are {}", format_size(budgets));
        let gib = budgets.saturating_sub(gpu.vram_total).div_ceil(GIB);
        let fix = match is_shared(gpu) {
            true => format!("{}, or lower the budgets (`memory` of groups)", limit(gib)),
            false => "lower the budgets (`memory` of groups)".to_owned(),
        };
        return Finding::problem(CHECK, fact, fix);
    }
    if is_shared(gpu) && gpu.vram_total > LARGE_CARVE_OUT {
        let fix = "set the GPU's memory in the BIOS to the minimum (512 MB), and \
                   `ttm.pages_limit` to what engines may take";
        return Finding::note(CHECK, format!("{fact}: the BIOS keeps much for the GPU only"), fix);
    }
    let memory = system.machine.total().unwrap_or(u64::MAX);
    // The default of the kernel is half of the memory.
    if is_shared(gpu) && gpu.gtt_total / 11 <= memory / 20 && memory < u64::MAX {
        let gib = memory.saturating_sub(RESERVE) / GIB;
        let fact = format!("{fact}, the kernel's default");
        return Finding::note(CHECK, fact, format!("{} for larger models", limit(gib)));
    }
    Finding::ok(CHECK, fact)
}

/// Returns how the GPU gets this much of the system's memory.
fn limit(gib: u64) -> String {
    format!("boot with `ttm.pages_limit={}` ({gib} GiB)", gib.saturating_mul(PAGES_PER_GIB))
}

fn pages_limit(system: &System) -> Option<Finding> {
    const CHECK: &str = "ttm_pages_limit";
    let pages = system.number("sys/module/ttm/parameters/pages_limit")?;
    let bytes = u64::try_from(pages).ok()?.saturating_mul(4096);
    let gtt = system.gpus.iter().map(|gpu| gpu.gtt_total).max().unwrap_or(0);
    let fact = format!("ttm.pages_limit is {pages} ({})", format_size(bytes));
    Some(match bytes < gtt {
        true => Finding::warning(
            CHECK,
            format!("{fact}, less than the GTT of {}: allocations fail", format_size(gtt)),
            format!("{}, and remove `amdgpu.gttsize`", limit(gtt.div_ceil(GIB))),
        ),
        false => Finding::ok(CHECK, fact),
    })
}

fn kernel_arguments(system: &System) -> Vec<Finding> {
    let mut findings = Vec::new();
    let parameter = system.number("sys/module/amdgpu/parameters/gttsize").filter(|size| *size > 0);
    let argument = system.kernel_argument("amdgpu.gttsize").map(str::to_owned);
    if let Some(size) = argument.or_else(|| parameter.map(|size| size.to_string())) {
        findings.push(Finding::note(
            "gttsize",
            format!("amdgpu.gttsize is {size}, which is deprecated"),
            "use `ttm.pages_limit` alone (GiB x 262144)",
        ));
    }
    if let Some(size) = system.kernel_argument("amdgpu.gtt_size") {
        findings.push(Finding::warning(
            "gttsize",
            format!("amdgpu.gtt_size={size} is ignored by the kernel"),
            "use `ttm.pages_limit` (GiB x 262144)",
        ));
    }
    let iommu = [system.kernel_argument("amd_iommu"), system.kernel_argument("iommu")];
    findings.push(match iommu {
        [Some("off"), _] => Finding::note(
            "amd_iommu",
            "amd_iommu=off: memory is a few per cent faster, and the NPU cannot be used",
            "remove it to use the NPU",
        ),
        [_, Some(mode)] => Finding::ok("amd_iommu", format!("iommu={mode}")),
        [Some(mode), None] => Finding::ok("amd_iommu", format!("amd_iommu={mode}")),
        [None, None] => Finding::ok("amd_iommu", "the IOMMU has its default settings"),
    });
    findings
}

fn system_memory(system: &System, expected: &Expected) -> Finding {
    const CHECK: &str = "memory";
    let Some(memory) = system.machine.total() else {
        return Finding::note(CHECK, "the size of the memory is unknown", "");
    };
    let own = system.gpus.iter().map(|gpu| gpu.vram_total).fold(0, u64::saturating_add);
    let all = memory.saturating_add(own);
    let available = system.machine.available().map_or_else(String::new, |available| {
        format!(", of which {} is available", format_size(available))
    });
    let mut fact = format!("{} of memory{available}", format_size(memory));
    if expected.budgets == 0 {
        return Finding::ok(CHECK, fact);
    }
    fact.push_str(&format!("; the budgets of all groups are {}", format_size(expected.budgets)));
    match expected.budgets.saturating_add(RESERVE) > all {
        true => Finding::warning(
            CHECK,
            format!("{fact}, which leaves less than {} for the system", format_size(RESERVE)),
            "lower the budgets (`memory` of groups)",
        ),
        false => Finding::ok(CHECK, fact),
    }
}

fn swap(system: &System) -> Finding {
    const CHECK: &str = "swap";
    let compressed = system.text("proc/swaps").is_some_and(|text| text.contains("/zram"));
    match system.meminfo("SwapTotal") {
        None => Finding::note(CHECK, "the size of the swap space is unknown", ""),
        Some(0) => Finding::note(
            CHECK,
            "no swap space: the kernel ends a process when memory is full",
            "add some GiB of swap space for peaks of loads",
        ),
        Some(_) if compressed => Finding::note(
            CHECK,
            "swap space is compressed memory (zram)",
            "use a file or a disk: zram needs memory when memory is full",
        ),
        Some(size) => Finding::ok(CHECK, format!("{} of swap space", format_size(size))),
    }
}

fn overcommit(system: &System) -> Option<Finding> {
    /// Allocations beyond swap space and half of the memory fail.
    const STRICT: i64 = 2;
    (system.number("proc/sys/vm/overcommit_memory")? == STRICT).then(|| {
        Finding::warning(
            "overcommit",
            "vm.overcommit_memory is 2: engines reserve more than they use, and fail",
            "set it to 0",
        )
    })
}

fn shared_memory(system: &System, expected: &Expected) -> Finding {
    const CHECK: &str = "shared_memory";
    let mounts = system.text("proc/mounts").unwrap_or_default();
    let options = |line: &str| {
        let mut fields = line.split_whitespace();
        (fields.nth(1)? == "/dev/shm").then(|| fields.nth(1).unwrap_or_default().to_owned())
    };
    let mounted: Vec<String> = mounts.lines().filter_map(options).collect();
    let Some(options) = mounted.last() else {
        let fix = "mount a tmpfs there (in a container: `--shm-size 16g`)";
        return Finding::warning(CHECK, "/dev/shm is not mounted", fix);
    };
    if mounted.len() > 1 {
        return Finding::warning(
            CHECK,
            "/dev/shm is mounted twice: the second mount hides the first",
            "use either `shm_size` or a mount of /dev/shm",
        );
    }
    let size = options.split(',').find_map(|option| option.strip_prefix("size="));
    // The default of the kernel is half of the memory.
    let size = match size {
        Some(size) => parse_size(size),
        None => system.machine.total().map(|memory| memory / 2),
    };
    let Some(size) = size else {
        return Finding::note(CHECK, "the size of /dev/shm is unknown", "");
    };
    let fact = format!("/dev/shm has {}", format_size(size));
    let fix = "raise it: `--shm-size 16g` or `--ipc host` of the container (compose: `shm_size`)";
    match expected.vllm.first() {
        _ if size >= SMALL_SHM => Finding::ok(CHECK, fact),
        Some(lane) => {
            Finding::problem(CHECK, format!("{fact}: too little for vLLM (lane `{lane}`)"), fix)
        }
        None => Finding::warning(CHECK, format!("{fact}: too little for vLLM"), fix),
    }
}

/// Parses a size of a mount, such as `65536k`.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.char_indices().last()? {
        (end, 'k') => (&text[..end], 1 << 10),
        (end, 'm') => (&text[..end], 1 << 20),
        (end, 'g') => (&text[..end], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}
