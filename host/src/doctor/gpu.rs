//! Checks of GPUs: what they are, and whether kernel, firmware and ROCm support them.

use super::expected::Expected;
use super::finding::Finding;
use super::system::System;
use super::version::Version;

/// The first kernel with the fix of the saved wave state, without which ROCm crashes on gfx1151.
const FIXED_KERNEL: Version = Version([6, 18, 4]);
/// The first ROCm with support for gfx1150 and gfx1151.
const FIRST_ROCM: Version = Version([7, 0, 2]);
/// The version of the scheduler's firmware in linux-firmware 20251125, with which gfx115x hangs.
const BAD_SCHEDULER: i64 = 0x83;

/// Returns true for the GPUs of Strix Halo, Strix Point and their relatives.
pub(super) fn is_strix(gfx: &str) -> bool {
    gfx.starts_with("gfx115")
}

pub(super) fn check(system: &System, expected: &Expected) -> Vec<Finding> {
    let mut findings = kinds(system, expected);
    findings.extend(nvidia(system));
    let strix = system.gpus.iter().find(|gpu| gpu.gfx.as_deref().is_some_and(is_strix));
    findings.push(kernel(system, strix.is_some()));
    if let Some(gpu) = strix {
        findings.push(firmware(system, gpu.minor));
        findings.extend(driver(system));
    }
    if !system.gpus.is_empty() {
        findings.push(rocm(system, strix.is_some()));
    }
    findings
}

fn kinds(system: &System, expected: &Expected) -> Vec<Finding> {
    const CHECK: &str = "gpu";
    if system.gpus.is_empty() {
        let fact = "no AMD GPU in /sys/class/kfd and /sys/class/drm";
        let fix = "load the driver (`modprobe amdgpu`); in a container, use `--device /dev/kfd \
                   --device /dev/dri`; without a GPU, use llama.cpp or builds for CPUs";
        return vec![match expected.needs_gpu() {
            true => {
                Finding::problem(CHECK, format!("{fact}, and a group has `pool = \"gpu\"`"), fix)
            }
            false => Finding::warning(CHECK, fact, fix),
        }];
    }
    let kind = |gpu: &pointsman_fleet::Gpu| {
        let name = format!("renderD{}", gpu.minor);
        match gpu.gfx.as_deref() {
            None => Finding::note(
                CHECK,
                format!("{name} is not supported by the compute driver (KFD)"),
                "engines can use it with Vulkan only",
            ),
            Some("gfx906") => gfx906(&name, expected),
            Some(gfx) => Finding::ok(CHECK, format!("{name} is {gfx}")),
        }
    };
    system.gpus.iter().map(kind).collect()
}

/// Returns what the host can do with GPUs of NVIDIA.
fn nvidia(system: &System) -> Option<Finding> {
    const NVIDIA: &str = "0x10de";
    const DRM: &str = "sys/class/drm";
    let nodes: Vec<String> = system
        .names(DRM)
        .into_iter()
        .filter(|name| name.starts_with("renderD"))
        .filter(|name| {
            system.line(&format!("{DRM}/{name}/device/vendor")).as_deref() == Some(NVIDIA)
        })
        .collect();
    // In a container, only the driver may be visible.
    if nodes.is_empty() && !system.exists("dev/nvidiactl") {
        return None;
    }
    let shown = if nodes.is_empty() { "/dev/nvidiactl".to_owned() } else { nodes.join(", ") };
    let fact = format!(
        "a GPU of NVIDIA ({shown}): engines for CUDA or Vulkan run, are switched and restarted, \
         and the host neither measures its memory nor checks its driver"
    );
    let fix = "give its group a `memory` without `pool`, and its lanes their `memory`; check the \
               driver with `nvidia-smi`";
    Some(Finding::note("nvidia", fact, fix))
}

fn gfx906(name: &str, expected: &Expected) -> Finding {
    let fact =
        format!("{name} is gfx906 (MI50, MI60), which upstream vLLM and Triton do not support");
    let fix = "use llama.cpp (HIP or Vulkan) or Ollama, or the forks nlzy/vllm-gfx906 and \
               nlzy/triton-gfx906";
    match expected.vllm.first() {
        Some(lane) => Finding::problem("gpu", format!("{fact}; the lane `{lane}` uses vLLM"), fix),
        None => Finding::warning("gpu", fact, fix),
    }
}

fn kernel(system: &System, is_strix: bool) -> Finding {
    const CHECK: &str = "kernel";
    const NODES: &str = "sys/class/kfd/kfd/topology/nodes";
    let Some(release) = system.line("proc/sys/kernel/osrelease") else {
        return Finding::note(CHECK, "the version of the kernel is unknown", "");
    };
    let fact = format!("Linux {release}");
    if !is_strix || Version::parse(&release).is_some_and(|version| version >= FIXED_KERNEL) {
        return Finding::ok(CHECK, fact);
    }
    let has_fix = system.names(NODES).iter().any(|node| {
        let properties = system.text(&format!("{NODES}/{node}/properties")).unwrap_or_default();
        properties
            .lines()
            .any(|line| line.starts_with("cwsr_size ") || line.starts_with("ctl_stack_size "))
    });
    match has_fix {
        true => Finding::ok(CHECK, format!("{fact}, with the fix for gfx1151 (CWSR)")),
        false => Finding::problem(
            CHECK,
            format!("{fact} lacks the fix for gfx1151 (CWSR): ROCm crashes"),
            format!("use Linux {FIXED_KERNEL} or later"),
        ),
    }
}

fn firmware(system: &System, minor: u32) -> Finding {
    const CHECK: &str = "firmware";
    let file = format!("sys/class/drm/renderD{minor}/device/fw_version/mes_fw_version");
    match system.number(&file) {
        Some(BAD_SCHEDULER) => Finding::problem(
            CHECK,
            "the scheduler's firmware (MES) is 0x83 of linux-firmware 20251125: the GPU hangs",
            "install linux-firmware 20260110 or later, rebuild the initramfs, and restart",
        ),
        Some(version) => {
            Finding::ok(CHECK, format!("the scheduler's firmware (MES) is {version:#x}"))
        }
        None => Finding::note(
            CHECK,
            "the kernel does not report the scheduler's firmware (MES)",
            "avoid linux-firmware 20251125, with which the GPU hangs",
        ),
    }
}

/// Checks which driver is loaded. Only drivers that are built outside of the kernel have a version.
fn driver(system: &System) -> Option<Finding> {
    let version = system.line("sys/module/amdgpu/version")?;
    Some(Finding::warning(
        "driver",
        format!("amdgpu {version} was built outside of the kernel (amdgpu-dkms)"),
        "AMD recommends the driver of the kernel for Ryzen: remove amdgpu-dkms",
    ))
}

fn rocm(system: &System, is_strix: bool) -> Finding {
    const CHECK: &str = "rocm";
    let Some(text) = system.line("opt/rocm/.info/version") else {
        return Finding::ok(CHECK, "ROCm is not in /opt/rocm; wheels and images have their own");
    };
    let fact = format!("ROCm {text} in /opt/rocm");
    match Version::parse(&text) {
        Some(version) if is_strix && version < FIRST_ROCM => Finding::warning(
            CHECK,
            format!("{fact} does not support gfx1151"),
            format!("install ROCm {FIRST_ROCM} or later, or use engines with their own"),
        ),
        _ => Finding::ok(CHECK, fact),
    }
}
