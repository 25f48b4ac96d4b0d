use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A machine whose files are in a temporary directory.
struct FakeMachine(TempDir);

impl FakeMachine {
    fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            fake.write(path, text.as_bytes());
        }
        fake
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn set_sizes(&self, minor: u32, gib: [(&str, u64); 4]) {
        for (name, gib) in gib {
            let path = format!("sys/class/drm/renderD{minor}/device/mem_info_{name}");
            self.write(&path, format!("{}\n", gib * GIB).as_bytes());
        }
    }

    fn machine(&self) -> Machine {
        Machine::new(self.0.path())
    }
}

const CPU_NODE: (&str, &str) = (
    "sys/class/kfd/kfd/topology/nodes/0/properties",
    "cpu_cores_count 32\nsimd_count 0\ngfx_target_version 0\nvendor_id 0\ndevice_id 0\n\
     drm_render_minor 0\n",
);
const MEMINFO: (&str, &str) = (
    "proc/meminfo",
    "MemTotal:       130000000 kB\nMemFree:         1000000 kB\nMemAvailable:   62914560 kB\n",
);
const ANY_GPU: Pool = Pool::Gpu { minor: None };

/// An APU with 1 GiB carved out and 96 GiB shared.
fn strix_halo() -> FakeMachine {
    let properties = "simd_count 80\ngfx_target_version 110501\nvendor_id 4098\ndevice_id 5510\n\
                      drm_render_minor 128\nunique_id 0\n";
    let fake = FakeMachine::new(&[
        CPU_NODE,
        MEMINFO,
        ("sys/class/kfd/kfd/topology/nodes/1/properties", properties),
        ("sys/class/drm/renderD128/device/vendor", "0x1002\n"),
        ("sys/class/kfd/kfd/proc/4711/vram_51234", "38654705664\n"),
        ("sys/class/kfd/kfd/proc/4711/sdma_51234", "17\n"),
        ("sys/class/kfd/kfd/proc/4712/pasid", "9\n"),
        ("proc/4711/comm", "VLLM::EngineCor\n"),
    ]);
    fake.set_sizes(128, [("vram_total", 1), ("vram_used", 0), ("gtt_total", 96), ("gtt_used", 50)]);
    fake
}

#[test]
fn apu_uses_system_memory() {
    let fake = strix_halo();
    let machine = fake.machine();
    let gpus = machine.gpus();
    let gpu = Gpu {
        minor: 128,
        vram_total: GIB,
        vram_used: 0,
        gtt_total: 96 * GIB,
        gtt_used: 50 * GIB,
        apu: true,
        gfx: Some("gfx1151".to_owned()),
        busy_percent: None,
        unique_id: None,
    };
    assert_eq!(gpus, [gpu]);
    assert_eq!(machine.free(&ANY_GPU), Some(47 * GIB));
    assert_eq!(machine.free(&Pool::Gpu { minor: Some(129) }), None);
    assert_eq!(
        machine.explain(&ANY_GPU),
        "47.0 GiB free of 97.0 GiB on renderD128; held by 4711 (VLLM::EngineCor, 36.0 GiB), 4712"
    );
    let held = Holder { pid: 4711, name: "VLLM::EngineCor".to_owned(), bytes: Some(36 * GIB) };
    assert_eq!(machine.holders(), [held, Holder { pid: 4712, name: String::new(), bytes: None }]);

    fake.write("proc/meminfo", b"MemAvailable: 10485760 kB\n");
    assert_eq!(machine.free(&ANY_GPU), Some(11 * GIB));
    let text = machine.explain(&ANY_GPU);
    assert!(
        text.starts_with(
            "11.0 GiB free of 97.0 GiB on renderD128, limited by 10.0 GiB of \
                          available system memory"
        ),
        "{text}"
    );
    fake.write("proc/meminfo", b"");
    assert_eq!(machine.free(&ANY_GPU), None);
}

#[test]
fn discrete_gpu_uses_its_own_memory() {
    let properties =
        "gfx_target_version 90010\nvendor_id 4098\ndrm_render_minor 129\nunique_id 255\n";
    let fake = FakeMachine::new(&[
        CPU_NODE,
        MEMINFO,
        ("sys/class/kfd/kfd/topology/nodes/1/properties", properties),
        ("sys/class/drm/renderD129/device/vendor", "0x1002\n"),
        // Without the compute driver.
        ("sys/class/drm/renderD130/device/vendor", "0x1002\n"),
        ("sys/class/drm/renderD130/device/unique_id", "00000000deadbeef\n"),
        // A GPU of Nvidia.
        ("sys/class/drm/renderD128/device/vendor", "0x10de\n"),
        ("sys/class/drm/card0/device/vendor", "0x1002\n"),
    ]);
    fake.set_sizes(129, [("vram_total", 24), ("vram_used", 4), ("gtt_total", 60), ("gtt_used", 1)]);
    fake.set_sizes(130, [("vram_total", 8), ("vram_used", 9), ("gtt_total", 60), ("gtt_used", 1)]);
    let machine = fake.machine();
    let gpus = machine.gpus();
    let facts: Vec<_> = gpus.iter().map(|gpu| (gpu.minor, gpu.apu, gpu.gfx.as_deref())).collect();
    assert_eq!(facts, [(129, false, Some("gfx90a")), (130, false, None)]);
    let ids: Vec<_> = gpus.iter().map(|gpu| gpu.unique_id.as_deref()).collect();
    assert_eq!(ids, [Some("00000000000000ff"), Some("00000000deadbeef")]);
    assert_eq!(machine.free(&ANY_GPU), Some(20 * GIB));
    assert_eq!(machine.free(&Pool::Gpu { minor: Some(130) }), Some(0));
    assert_eq!(machine.explain(&ANY_GPU), "20.0 GiB free of 24.0 GiB on renderD129");
}

#[test]
fn system_memory_is_read_without_a_gpu() {
    let machine_with = |files: &[(&str, &str)]| {
        let fake = FakeMachine::new(&[CPU_NODE, MEMINFO]);
        files.iter().for_each(|(path, text)| fake.write(path, text.as_bytes()));
        fake
    };
    let fake = machine_with(&[]);
    let machine = fake.machine();
    assert_eq!((machine.gpus(), machine.holders()), (vec![], vec![]));
    assert_eq!((machine.available(), machine.total()), (Some(60 * GIB), Some(130_000_000 * 1024)));
    assert_eq!((machine.free(&Pool::System), machine.free(&ANY_GPU)), (Some(60 * GIB), None));
    assert_eq!(machine.explain(&Pool::System), "60.0 GiB free of 124.0 GiB of system memory");
    assert!(machine.explain(&ANY_GPU).starts_with("no AMD GPU in sys/class/kfd"));
    assert!(machine.explain(&Pool::Gpu { minor: Some(7) }).starts_with("no AMD GPU renderD7 in"));

    let group = ("proc/self/cgroup", "0::/a.slice/b.service\n");
    let limit = |bytes| ("sys/fs/cgroup/a.slice/memory.max", bytes);
    let used = ("sys/fs/cgroup/a.slice/memory.current", "1000\n");
    let own = [("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n")];
    let cached =
        ("sys/fs/cgroup/a.slice/memory.stat", "anon 5\nactive_file 7\ninactive_file 300\n");
    for (files, left) in [
        (vec![group, own[0]], None),
        (vec![group, limit("max\n"), used], None),
        (vec![group, limit("5000\n"), used, own[0]], Some(4000)),
        (vec![group, limit("5000\n"), used, cached], Some(4300)),
        (vec![group, limit("5\n"), used], Some(0)),
        (vec![group, limit("5000\n")], None),
        (vec![("proc/self/cgroup", "0::/../../a.slice\n"), limit("5000\n"), used], Some(4000)),
        (vec![("proc/self/cgroup", "4:memory:/a.slice\n"), limit("5000\n"), used], None),
    ] {
        let fake = machine_with(&files);
        assert_eq!(fake.machine().cgroup_available(), left, "{files:?}");
        assert_eq!(fake.machine().free(&Pool::System), Some(left.unwrap_or(60 * GIB)), "{files:?}");
    }
    let fake = machine_with(&[group, limit("5000\n"), used]);
    let text = fake.machine().explain(&Pool::System);
    assert_eq!(
        text,
        "3.9 KiB free of 124.0 GiB of system memory, limited by the control group (memory.max)"
    );
}

#[test]
fn page_cache_is_not_unused_memory() {
    const FREE: u64 = 1_000_000 * 1024;
    let fake = strix_halo();
    let machine = fake.machine();
    assert_eq!(machine.size(&ANY_GPU), Some(97 * GIB));
    // Of 46 GiB that the GPU may still take, the page cache has all but the free pages.
    assert_eq!(machine.unused(&ANY_GPU), Some(GIB + FREE));
    assert_eq!(machine.unused(&Pool::System), Some(FREE));
    assert_eq!(machine.size(&Pool::System), Some(130_000_000 * 1024));
    assert!(machine.is_unified(&ANY_GPU) && !machine.is_unified(&Pool::System));
    fake.set_sizes(128, [("vram_total", 24), ("vram_used", 4), ("gtt_total", 60), ("gtt_used", 1)]);
    let discrete = fake.machine();
    assert_eq!(
        (discrete.size(&ANY_GPU), discrete.unused(&ANY_GPU)),
        (Some(24 * GIB), Some(20 * GIB))
    );
    assert!(!discrete.is_unified(&ANY_GPU));
    let missing = Pool::Gpu { minor: Some(7) };
    assert_eq!((machine.size(&missing), machine.unused(&missing)), (None, None));
    assert!(!machine.is_unified(&missing));
    // File pages count as used in a control group as well.
    fake.write("proc/self/cgroup", b"0::/a\n");
    fake.write("sys/fs/cgroup/a/memory.max", b"5000\n");
    fake.write("sys/fs/cgroup/a/memory.current", b"1000\n");
    fake.write("sys/fs/cgroup/a/memory.stat", b"inactive_file 300\n");
    assert_eq!(fake.machine().unused(&Pool::System), Some(4000));
    assert_eq!(fake.machine().free(&Pool::System), Some(4300));
}

#[test]
fn malformed_files_are_ignored() {
    let nothing = FakeMachine::new(&[]);
    let machine = nothing.machine();
    assert_eq!((machine.gpus(), machine.available(), machine.total()), (vec![], None, None));
    assert!(machine.explain(&Pool::System).contains("unknown free system memory"));

    let fake = strix_halo();
    fake.write("sys/class/drm/renderD128/device/mem_info_vram_used", b"many\n");
    let machine = fake.machine();
    assert_eq!(machine.gpus().first().map(|gpu| (gpu.vram_total, gpu.apu)), Some((0, false)));
    assert_eq!(machine.free(&ANY_GPU), None);
    assert!(
        machine
            .explain(&ANY_GPU)
            .starts_with("unknown free memory of renderD128: failed to read sys/")
    );

    let fake = strix_halo();
    for (path, text) in [
        (
            "sys/class/kfd/kfd/topology/nodes/2/properties",
            "drm_render_minor 99999999999999999999\n",
        ),
        ("sys/class/kfd/kfd/topology/nodes/3/properties", "drm_render_minor\n\n \u{0}"),
        ("sys/class/kfd/kfd/topology/nodes/4/name", "x"),
        ("sys/class/drm/renderDx/device/vendor", "0x1002"),
        ("sys/class/kfd/kfd/proc/self/vram_1", "1"),
        ("sys/class/kfd/kfd/proc/4712/vram_1", "-1"),
    ] {
        fake.write(path, text.as_bytes());
    }
    fake.write("proc/4712/comm", b"\x1b[2J\xff\n");
    assert_eq!(fake.machine().gpus().len(), 1);
    assert_eq!(fake.machine().free(&ANY_GPU), Some(47 * GIB));
    let holders = fake.machine().holders();
    assert_eq!(
        holders.get(1).map(|holder| (holder.name.as_str(), holder.bytes)),
        Some(("?[2J\u{fffd}", None))
    );
}

#[test]
fn list_of_holders_is_truncated() {
    let holder = |pid| Holder { pid, name: String::new(), bytes: Some(GIB) };
    let holders: Vec<Holder> = (1..=7).map(holder).collect();
    assert!(held_by(&holders).ends_with(", 5 (1.0 GiB) and 2 more"));
}

#[test]
fn instruction_sets_are_named() {
    for (version, name) in [
        (110_501, Some("gfx1151")),
        (90_010, Some("gfx90a")),
        (100_300, Some("gfx1030")),
        (0, None),
        (u64::MAX, None),
    ] {
        assert_eq!(gfx_name(version).as_deref(), name);
    }
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let lines =
        "((drm_render_minor|gfx_target_version|MemAvailable:|0::)[ /.]{0,2}[0-9]{0,21}\n){0,5}";
    prop_oneof![
        any::<Vec<u8>>(),
        any::<u64>().prop_map(|number| number.to_string().into_bytes()),
        lines.prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn any_content_is_accepted(contents in prop::collection::vec(content(), 12)) {
        let fake = strix_halo();
        let files = [
            "proc/meminfo",
            "proc/self/cgroup",
            "proc/4711/comm",
            "sys/fs/cgroup/memory.max",
            "sys/fs/cgroup/memory.current",
            "sys/fs/cgroup/memory.stat",
            "sys/class/kfd/kfd/topology/nodes/1/properties",
            "sys/class/kfd/kfd/proc/4711/vram_51234",
            "sys/class/kfd/kfd/proc/4711/vram_51235",
            "sys/class/drm/renderD128/device/mem_info_vram_used",
            "sys/class/drm/renderD128/device/mem_info_gtt_total",
            "sys/class/drm/renderD128/device/unique_id",
        ];
        for (path, bytes) in files.iter().zip(&contents) {
            fake.write(path, bytes);
        }
        let machine = fake.machine();
        for pool in [Pool::System, ANY_GPU, Pool::Gpu { minor: Some(128) }] {
            let free = machine.free(&pool);
            prop_assert!(free.is_none() || machine.explain(&pool).contains(" free"));
        }
    }
}
