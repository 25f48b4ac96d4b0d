//! Findings about systems whose files are in temporary folders.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use pointsman_fleet::Pool;
use tempfile::TempDir;

use super::finding::Verdict;
use super::*;

const GIB: u64 = 1 << 30;
/// 2026-11-27.
const NOW: Duration = Duration::from_secs(1_795_737_600);
const NODE: &str = "sys/class/kfd/kfd/topology/nodes/1/properties";
const GFX1151: &str = "simd_count 80\ngfx_target_version 110501\nvendor_id 4098\n\
    device_id 5510\ndrm_render_minor 128\nunique_id 0\n";
const GFX906: &str = "simd_count 240\ngfx_target_version 90006\nvendor_id 4098\n\
    device_id 26273\ndrm_render_minor 128\nunique_id 1035840143871786730\n";
const LIMITS: &str = "Max locked memory         unlimited unlimited  bytes\n\
    Max open files            1024      524288     files\n";
/// What no system of a test has.
const NO_GROUP: &str = "4000000000";

/// A system in a temporary folder.
struct FakeSystem(TempDir);

impl FakeSystem {
    /// A healthy system without a GPU.
    fn healthy() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.18.6-arch1-1\n"),
            ("proc/cmdline", "root=/dev/nvme0n1p2 quiet\n"),
            ("proc/self/environ", "PATH=/usr/bin\0HOME=/nowhere\0"),
            ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu avx avx2 avx512f\n"),
            ("proc/self/limits", LIMITS),
            ("proc/sys/vm/overcommit_memory", "0\n"),
            ("proc/swaps", "Filename\tType\tSize\n/swapfile\tfile\t16777212\n"),
            ("proc/mounts", "tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n"),
            ("etc/group", "root:x:0:\nvideo:x:44:\nrender:x:4000000000:\n"),
            ("run/systemd/timesync/synchronized", ""),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            (
                "proc/meminfo",
                "MemTotal:       131072000 kB\nMemFree:         1000000 kB\n\
                 MemAvailable:   122914560 kB\nSwapTotal:      16777212 kB\n",
            ),
        ] {
            fake.write(path, text);
        }
        fake.set_user(&fake.group());
        fake
    }

    /// A healthy Strix Halo with 512 MiB of its own and 96 GiB of the system's memory.
    fn strix_halo() -> Self {
        let fake = Self::healthy();
        fake.add_gpu(GFX1151, 512 << 20, 96 * GIB);
        fake.write("sys/module/ttm/parameters/pages_limit", "25165824\n");
        fake.write("opt/rocm/.info/version", "7.14.0-38\n");
        fake.write("sys/class/drm/renderD128/device/fw_version/mes_fw_version", "0x00000080\n");
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.0.path().join(path)).unwrap();
    }

    /// Adds a GPU whose devices are for one group.
    fn add_gpu(&self, properties: &str, vram: u64, gtt: u64) {
        self.write(NODE, properties);
        let device = "sys/class/drm/renderD128/device";
        self.write(&format!("{device}/vendor"), "0x1002\n");
        for (name, size) in
            [("vram_total", vram), ("vram_used", 0), ("gtt_total", gtt), ("gtt_used", 0)]
        {
            self.write(&format!("{device}/mem_info_{name}"), &format!("{size}\n"));
        }
        for path in ["dev/kfd", "dev/dri/renderD128"] {
            self.write(path, "");
            let path = self.0.path().join(path);
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).unwrap();
        }
    }

    /// Returns the group of the files of this system.
    fn group(&self) -> String {
        self.0.path().metadata().unwrap().gid().to_string()
    }

    /// Sets the groups of the user, who owns no files and has no capabilities.
    fn set_user(&self, groups: &str) {
        let status = format!(
            "Name:\tpointsman\nUid:\t4000000001\t4000000001\t4000000001\t4000000001\n\
             Gid:\t{NO_GROUP}\t{NO_GROUP}\t{NO_GROUP}\t{NO_GROUP}\nGroups:\t{groups} \n\
             CapEff:\t0000000000000000\nSeccomp:\t0\n"
        );
        self.write("proc/self/status", &status);
    }

    fn set_variables(&self, variables: &str) {
        self.write("proc/self/environ", &variables.replace(' ', "\0"));
    }

    fn examine(&self, expected: &Expected) -> Vec<Finding> {
        of_system(&System::read(self.0.path()), expected, SystemTime::UNIX_EPOCH + NOW)
    }
}

/// Returns the checks that are not `ok`, with their verdicts.
fn complaints(findings: &[Finding]) -> Vec<(&'static str, Verdict)> {
    let bad = findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
    bad.map(|finding| (finding.check, finding.verdict)).collect()
}

fn assert_healthy(fake: &FakeSystem, expected: &Expected) {
    let findings = fake.examine(expected);
    assert!(complaints(&findings).is_empty(), "{findings:#?}");
}

/// Checks that a system has exactly one complaint, and that its fact and its remedy have these
/// words.
fn assert_complaint(
    fake: &FakeSystem,
    expected: &Expected,
    (check, verdict): (&'static str, Verdict),
    words: &[&str],
) {
    let findings = fake.examine(expected);
    assert_eq!(complaints(&findings), [(check, verdict)], "{findings:#?}");
    let bad = findings.iter().find(|finding| finding.verdict != Verdict::Ok).unwrap();
    for word in words {
        assert!(bad.fact.contains(word) || bad.fix.contains(word), "{word}: {bad:?}");
    }
    assert!(!bad.fix.is_empty(), "{bad:?}");
}

fn budget(gib: u64) -> Expected {
    let group = ("gpu".to_owned(), Pool::Gpu { minor: None }, gib * GIB);
    Expected { gpu_groups: vec![group], budgets: gib * GIB, ..Expected::default() }
}

fn with_vllm() -> Expected {
    Expected { vllm: vec!["coder".to_owned()], ..Expected::default() }
}

#[test]
fn healthy_strix_halo_has_no_complaints() {
    let fake = FakeSystem::strix_halo();
    assert_healthy(&fake, &budget(96));
    assert_healthy(&fake, &with_vllm());
    let findings = fake.examine(&Expected::default());
    for (check, word) in [
        ("gpu", "gfx1151"),
        ("kernel", "6.18.6"),
        ("firmware", "0x80"),
        ("rocm", "7.14"),
        ("kfd", "/dev/kfd"),
        ("gpu_memory", "96.0 GiB"),
        ("ttm_pages_limit", "25165824"),
    ] {
        let found = findings.iter().find(|finding| finding.check == check);
        assert!(found.is_some_and(|found| found.fact.contains(word)), "{check}: {findings:#?}");
    }
}

#[test]
fn old_kernel_and_override_on_strix_halo_are_problems() {
    let fake = FakeSystem::strix_halo();
    fake.write("proc/sys/kernel/osrelease", "6.14.0-37-generic\n");
    let problem = |check| (check, Verdict::Problem);
    assert_complaint(&fake, &Expected::default(), problem("kernel"), &["6.14", "6.18.4"]);
    fake.set_variables("HSA_OVERRIDE_GFX_VERSION=11.0.0");
    let findings = fake.examine(&Expected::default());
    assert_eq!(complaints(&findings), [problem("kernel"), problem("hsa_override")]);
    // A kernel with the fix as a backport.
    fake.write(NODE, &format!("{GFX1151}cwsr_size 12345\n"));
    let words = ["11.0.0", "gfx1151", "unset HSA_OVERRIDE_GFX_VERSION"];
    assert_complaint(&fake, &Expected::default(), problem("hsa_override"), &words);
    fake.set_variables("HSA_OVERRIDE_GFX_VERSION=11.5.1");
    let note = ("hsa_override", Verdict::Note);
    assert_complaint(&fake, &Expected::default(), note, &["own version"]);
}

#[test]
fn bad_firmware_driver_and_rocm_of_strix_halo_are_found() {
    let fake = FakeSystem::strix_halo();
    let file = "sys/class/drm/renderD128/device/fw_version/mes_fw_version";
    fake.write(file, "0x00000083\n");
    let problem = ("firmware", Verdict::Problem);
    assert_complaint(&fake, &Expected::default(), problem, &["20251125", "20260110"]);
    fake.remove(file);
    let note = ("firmware", Verdict::Note);
    assert_complaint(&fake, &Expected::default(), note, &["20251125"]);
    fake.write(file, "0x80\n");
    fake.write("sys/module/amdgpu/version", "6.19.4\n");
    fake.write("opt/rocm/.info/version", "6.4.1\n");
    let findings = fake.examine(&Expected::default());
    let expected = [("driver", Verdict::Warning), ("rocm", Verdict::Warning)];
    assert_eq!(complaints(&findings), expected);
}

#[test]
fn gfx906_is_not_for_vllm() {
    let fake = FakeSystem::healthy();
    fake.add_gpu(GFX906, 32 * GIB, 62 * GIB);
    let words = ["gfx906", "llama.cpp", "Ollama"];
    assert_complaint(&fake, &Expected::default(), ("gpu", Verdict::Warning), &words);
    assert_complaint(&fake, &with_vllm(), ("gpu", Verdict::Problem), &["`coder`", "llama.cpp"]);
}

#[test]
fn missing_gpu_is_a_problem_for_groups_that_need_one() {
    let fake = FakeSystem::healthy();
    let words = ["/sys/class/kfd", "--device /dev/kfd", "--device /dev/dri"];
    assert_complaint(&fake, &Expected::default(), ("gpu", Verdict::Warning), &words);
    assert_complaint(&fake, &budget(8), ("gpu", Verdict::Problem), &words);
}

#[test]
fn access_of_users_and_containers_is_checked() {
    let fake = FakeSystem::strix_halo();
    fake.set_user("44");
    let both = [("kfd", Verdict::Problem), ("render_node", Verdict::Problem)];
    let findings = fake.examine(&Expected::default());
    assert_eq!(complaints(&findings), both);
    let kfd = findings.iter().find(|finding| finding.check == "kfd").unwrap();
    assert!(kfd.fact.contains("44") && kfd.fix.contains("usermod -aG render,video"), "{kfd:?}");
    // The names of groups differ between the host and the container.
    fake.write(".dockerenv", "");
    let findings = fake.examine(&Expected::default());
    assert_eq!(complaints(&findings), both);
    let kfd = findings.iter().find(|finding| finding.check == "kfd").unwrap();
    assert!(kfd.fix.contains(&format!("--group-add {}", fake.group())), "{kfd:?}");
    // A container with a GPU of which only one device was passed.
    fake.set_user(&fake.group());
    fake.remove("dev/kfd");
    let words = ["/dev/kfd", "--device /dev/kfd"];
    assert_complaint(&fake, &Expected::default(), ("kfd", Verdict::Problem), &words);
}

#[test]
fn small_or_doubled_shared_memory_is_found() {
    let fake = FakeSystem::strix_halo();
    let docker = "shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k,inode64 0 0\n";
    fake.write("proc/mounts", docker);
    let words = ["64 MiB", "--shm-size"];
    let check = "shared_memory";
    assert_complaint(&fake, &Expected::default(), (check, Verdict::Warning), &words);
    assert_complaint(&fake, &with_vllm(), (check, Verdict::Problem), &words);
    fake.write("proc/mounts", &format!("{docker}tmpfs /dev/shm tmpfs rw,size=16g 0 0\n"));
    assert_complaint(&fake, &Expected::default(), (check, Verdict::Warning), &["twice"]);
    fake.write("proc/mounts", "tmpfs /dev/shm tmpfs rw,size=16g 0 0\n");
    assert_healthy(&fake, &with_vllm());
}

#[test]
fn ids_of_gpus_are_compared() {
    let fake = FakeSystem::strix_halo();
    for (variables, words) in [
        ("HIP_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=1", &["\"0\"", "\"1\"", "`device`"][..]),
        ("HIP_VISIBLE_DEVICES=1", &["names the GPU 1", "there are 1"][..]),
        ("ROCR_VISIBLE_DEVICES=GPU-0e54792172da5eeb", &["does not exist"][..]),
        ("HIP_VISIBLE_DEVICES=GPU-0e54792172da5eeb", &["only numbers", "ROCR_VISIBLE_DEVICES"][..]),
    ] {
        fake.set_variables(variables);
        let problem = ("device_ids", Verdict::Problem);
        assert_complaint(&fake, &Expected::default(), problem, words);
    }
    for variables in [
        "HIP_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=0",
        "ROCR_VISIBLE_DEVICES=0",
        "HIP_VISIBLE_DEVICES=",
    ] {
        fake.set_variables(variables);
        assert_healthy(&fake, &Expected::default());
    }
    let own = [("HSA_OVERRIDE_GFX_VERSION".to_owned(), "11.0.0".to_owned())];
    let environments = vec![("coder".to_owned(), own.into_iter().collect())];
    let expected = Expected { environments, ..Expected::default() };
    assert_complaint(&fake, &expected, ("hsa_override", Verdict::Problem), &["lane `coder`"]);
}

#[test]
fn variables_of_vllm_are_checked() {
    let fake = FakeSystem::strix_halo();
    for (variables, expected) in [
        ("VLLM_PORT=tcp://10.0.0.7:8000", ("vllm_port", Verdict::Problem)),
        ("VLLM_API_KEY=None", ("vllm_api_key", Verdict::Warning)),
        ("VLLM_ROCM_USE_AITER=1", ("vllm_aiter", Verdict::Problem)),
        ("VLLM_MAX_MODEL_LEN=4096", ("vllm_unknown", Verdict::Note)),
        ("TRANSFORMERS_TRUST_REMOTE_CODE=1", ("vllm_unknown", Verdict::Note)),
        ("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH=1", ("vllm_risky", Verdict::Warning)),
        ("HIP_LAUNCH_BLOCKING=1", ("rocm_debugging", Verdict::Warning)),
        ("HSA_OVERRIDE_GFX_VERSION_0=11.0.0", ("hsa_override", Verdict::Problem)),
    ] {
        fake.set_variables(variables);
        assert_complaint(&fake, &Expected::default(), expected, &[]);
    }
    fake.set_variables("VLLM_PORT=8000 VLLM_ROCM_USE_AITER=0 HSA_ENABLE_SDMA=1 AMD_LOG_LEVEL=0");
    assert_healthy(&fake, &Expected::default());
}

#[test]
fn memory_is_compared_with_budgets() {
    let fake = FakeSystem::strix_halo();
    // 100 GiB need 99.5 GiB of the system's memory, 100 x 262144 pages.
    let words = ["100.0 GiB", "ttm.pages_limit=26214400"];
    assert_complaint(&fake, &budget(100), ("gpu_memory", Verdict::Problem), &words);
    fake.add_gpu(GFX1151, 512 << 20, 62 * GIB);
    // 125 GiB of memory, less 8 GiB for the system.
    let words = ["the kernel's default", "ttm.pages_limit=30670848"];
    assert_complaint(&fake, &Expected::default(), ("gpu_memory", Verdict::Note), &words);
    fake.add_gpu(GFX1151, 96 * GIB, 16 * GIB);
    let words = ["BIOS", "512 MB"];
    assert_complaint(&fake, &Expected::default(), ("gpu_memory", Verdict::Note), &words);
    fake.add_gpu(GFX1151, 512 << 20, 124 * GIB);
    fake.write("sys/module/ttm/parameters/pages_limit", "32505856\n");
    let findings = fake.examine(&budget(120));
    assert_eq!(complaints(&findings), [("memory", Verdict::Warning)], "{findings:#?}");
    fake.write("sys/module/ttm/parameters/pages_limit", "16777216\n");
    let warning = ("ttm_pages_limit", Verdict::Warning);
    assert_complaint(&fake, &Expected::default(), warning, &["ttm.pages_limit=32505856"]);
}

#[test]
fn arguments_of_the_kernel_are_explained() {
    let fake = FakeSystem::strix_halo();
    for (arguments, expected, word) in [
        ("amdgpu.gttsize=98304", ("gttsize", Verdict::Note), "deprecated"),
        ("amdgpu.gtt_size=98304", ("gttsize", Verdict::Warning), "ignored"),
        ("quiet amd_iommu=off", ("amd_iommu", Verdict::Note), "NPU"),
    ] {
        fake.write("proc/cmdline", arguments);
        assert_complaint(&fake, &Expected::default(), expected, &[word]);
    }
}

#[test]
fn processor_limits_swap_and_clocks_are_checked() {
    let source = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    for (path, text, expected, word) in [
        ("proc/cpuinfo", "flags : fpu avx2\n", ("cpu", Verdict::Note), "132"),
        ("proc/cpuinfo", "flags : fpu sse2\n", ("cpu", Verdict::Warning), "SIGILL"),
        (
            "proc/self/limits",
            "Max open files 1024 1024 files\n",
            ("open_files", Verdict::Warning),
            "65535",
        ),
        (
            "proc/sys/vm/overcommit_memory",
            "2\n",
            ("overcommit", Verdict::Warning),
            "vm.overcommit_memory",
        ),
        ("proc/swaps", "/dev/zram0 partition 8388604\n", ("swap", Verdict::Note), "zram"),
        (source, "hpet\n", ("clock_source", Verdict::Note), "tsc"),
    ] {
        let fake = FakeSystem::strix_halo();
        fake.write(path, text);
        assert_complaint(&fake, &Expected::default(), expected, &[word]);
    }
    let fake = FakeSystem::strix_halo();
    fake.remove("run/systemd/timesync/synchronized");
    let warning = ("clock", Verdict::Warning);
    assert_complaint(&fake, &Expected::default(), warning, &["timedatectl"]);
    let system = System::read(fake.0.path());
    let findings = of_system(&system, &Expected::default(), SystemTime::UNIX_EPOCH);
    assert_eq!(complaints(&findings), [("clock", Verdict::Problem)]);
}

/// Files that are missing or malformed, as in sandboxes, cause no problems.
#[test]
fn empty_and_malformed_systems_have_no_problems() {
    let fake = FakeSystem(tempfile::tempdir().unwrap());
    assert!(!finding::has_problem(&fake.examine(&Expected::default())));
    for path in ["proc/self/status", "proc/meminfo", "proc/cmdline", "proc/mounts", NODE] {
        fake.write(path, "\u{0}: : 99999999999999999999999 /dev/shm\nsize=zzz\n");
    }
    assert!(!finding::has_problem(&fake.examine(&Expected::default())));
}

#[test]
fn processes_that_hold_a_gpu_are_leftovers_unless_they_belong_to_a_lane() {
    let fake = FakeSystem::strix_halo();
    fake.write("sys/class/kfd/kfd/proc/4711/vram_1", "1\n");
    fake.write("proc/4711/comm", "VLLM::EngineCor\n");
    fake.write("proc/4711/stat", "4711 (VLLM::EngineCor) S 4700 4700 4700 0\n");
    fake.write("proc/4700/stat", "4700 (vllm) S 1 4700 4700 0\n");
    let system = System::read(fake.0.path());
    let left = engines::leftovers(&system, None);
    assert_eq!(left.verdict, Verdict::Warning);
    assert!(left.fact.contains("4711 (VLLM::EngineCor)"), "{left:?}");
    let status = serde_json::json!({ "lanes": [{ "name": "a", "pid": 4700 }] });
    assert_eq!(engines::leftovers(&system, Some(&status)).verdict, Verdict::Ok);
}

#[test]
fn locked_memory_is_compared_with_lanes() {
    let fake = FakeSystem::strix_halo();
    let limits = LIMITS.replace("unlimited unlimited", "8388608 8388608");
    fake.write("proc/self/limits", &limits);
    let check = "locked_memory";
    assert_complaint(&fake, &Expected::default(), (check, Verdict::Note), &["8 MiB", "memlock"]);
    let locking = |need| Expected { locking: vec![("coder".into(), need)], ..Expected::default() };
    let words = ["lane `coder`", "20.0 GiB", "LimitMEMLOCK=infinity"];
    assert_complaint(&fake, &locking(20 * GIB), (check, Verdict::Warning), &words);
    assert_complaint(&fake, &locking(1 << 20), (check, Verdict::Note), &["ROCm"]);
}

#[test]
fn gpu_of_nvidia_is_named() {
    let fake = FakeSystem::strix_halo();
    fake.write("sys/class/drm/renderD129/device/vendor", "0x10de\n");
    let note = ("nvidia", Verdict::Note);
    assert_complaint(&fake, &Expected::default(), note, &["renderD129", "without `pool`"]);
    let fake = FakeSystem::healthy();
    fake.write("dev/nvidiactl", "");
    let findings = complaints(&fake.examine(&Expected::default()));
    assert_eq!(findings, [("gpu", Verdict::Warning), note]);
}

#[test]
fn programs_are_compared_with_the_gpu() {
    let fake = FakeSystem::strix_halo();
    let library = |target: &str| {
        fake.write("opt/llama/lib/libggml-hip.so", &format!("\0amdgcn-amd-amdhsa--{target}\0"));
    };
    fake.write("opt/llama/bin/llama-server", "");
    let program = fake.0.path().join("opt/llama/bin/llama-server").display().to_string();
    let system = System::read(fake.0.path());
    let of_program = || targets::of_llama_cpp(&system, &program);
    assert_eq!(of_program(), None, "nothing is known");
    for (target, verdict) in
        [("gfx1151", Verdict::Ok), ("gfx11-generic", Verdict::Ok), ("gfx1100", Verdict::Problem)]
    {
        library(target);
        let finding = of_program().unwrap();
        assert_eq!((finding.check, finding.verdict), ("engine_targets", verdict), "{target}");
    }
    for (output, verdict) in [
        ("noise\npytorch-targets: hip gfx942 gfx1151\n", Some(Verdict::Ok)),
        ("pytorch-targets: hip gfx942\n", Some(Verdict::Problem)),
        ("pytorch-targets: cuda sm_90\n", Some(Verdict::Problem)),
        ("pytorch-targets: cpu\n", Some(Verdict::Note)),
        ("pytorch-targets: hip\n", None),
        ("ModuleNotFoundError\n", None),
    ] {
        let finding = targets::of_pytorch(&system, "python3", output);
        assert_eq!(finding.map(|finding| finding.verdict), verdict, "{output}");
    }
    fake.write("venv/bin/vllm", "#!/venv/bin/python3\nimport vllm\n");
    let script = fake.0.path().join("venv/bin/vllm").display().to_string();
    let interpreter = targets::interpreter(&system, &script);
    assert_eq!(interpreter.as_deref(), Some("/venv/bin/python3"));
    assert_eq!(targets::interpreter(&system, &program), None);
}
