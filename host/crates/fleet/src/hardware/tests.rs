use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A root with files as a Strix Halo has them: 1 GiB carved out and 96 GiB shared. Two engines run:
/// a vLLM with a worker in the same session and a detached helper, and a llama.cpp.
fn machine() -> TempDir {
    let gpu = |name: &str| format!("sys/class/drm/renderD128/device/{name}");
    let folder = tempfile::tempdir().unwrap();
    let node = "simd_count 80\ngfx_target_version 110501\nvendor_id 4098\ndrm_render_minor 128\n";
    let client = |number: u32, vram: u32, gtt: u32| {
        format!(
            "pos:\t0\nflags:\t02100002\nino:\t742\ndrm-driver:\tamdgpu\n\
             drm-client-id:\t{number}\ndrm-pdev:\t0000:c5:00.0\npasid:\t32770\n\
             drm-memory-vram:\t{vram} KiB\ndrm-memory-gtt: \t{gtt} KiB\ndrm-memory-cpu: \t0 KiB\n"
        )
    };
    let files = [
        ("sys/class/kfd/kfd/topology/nodes/1/properties".to_owned(), node.to_owned()),
        (gpu("vendor"), "0x1002\n".to_owned()),
        (gpu("gpu_busy_percent"), "37\n".to_owned()),
        (gpu("mem_info_vram_total"), format!("{GIB}\n")),
        (gpu("mem_info_vram_used"), format!("{}\n", 256 * MIB)),
        (gpu("mem_info_gtt_total"), format!("{}\n", 96 * GIB)),
        (gpu("mem_info_gtt_used"), format!("{}\n", 50 * GIB)),
        ("proc/meminfo".to_owned(), "MemTotal: 130000000 kB\nMemAvailable: 65536 kB\n".to_owned()),
        (
            "proc/pressure/memory".to_owned(),
            "some avg10=12.50 avg60=1.00 avg300=0.10 total=1234\n\
             full avg10=3.00 avg60=0.00 avg300=0.00 total=99\n"
                .to_owned(),
        ),
        process(100, 1, 100),
        process(101, 100, 100),
        // A helper that has made a session of its own.
        process(102, 101, 102),
        process(200, 1, 200),
        process(300, 1, 300),
        status(100, "RssAnon:\t 1024 kB\nRssFile:\t 512 kB\nRssShmem:\t 256 kB\n"),
        status(101, "RssAnon:\t 2048 kB\nRssFile:\t 0 kB\nRssShmem:\t 256 kB\n"),
        status(102, "VmRSS:\t 4096 kB\n"),
        status(200, "RssAnon:\t 10 kB\nRssFile:\t 20480 kB\nRssShmem:\t 0 kB\n"),
        ("proc/100/fdinfo/3".to_owned(), client(7, 1024, 2048)),
        // Duplicated and inherited descriptors.
        ("proc/100/fdinfo/4".to_owned(), client(7, 1024, 2048)),
        ("proc/101/fdinfo/3".to_owned(), client(7, 1024, 2048)),
        ("proc/101/fdinfo/9".to_owned(), client(8, 0, 4096)),
        ("proc/101/fdinfo/10".to_owned(), "pos:\t0\nflags:\t02\n".to_owned()),
        ("sys/class/kfd/kfd/proc/101/vram_51234".to_owned(), format!("{}\n", 10 * MIB)),
    ];
    for (path, text) in files {
        write(&folder, &path, &text);
    }
    folder
}

fn process(pid: u32, parent: u32, session: u32) -> (String, String) {
    let zeros = " 0".repeat(46);
    (format!("proc/{pid}/stat"), format!("{pid} (engine) S {parent} {pid} {session}{zeros}\n"))
}

fn status(pid: u32, text: &str) -> (String, String) {
    (format!("proc/{pid}/status"), format!("Name:\tengine\n{text}"))
}

fn write(root: &TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn machine_is_measured() {
    let root = machine();
    let hardware = Hardware::read(root.path());
    let [gpu] = &*hardware.gpus else { panic!("{hardware:?}") };
    assert_eq!((gpu.minor, gpu.apu, gpu.busy_percent), (128, true, Some(37)));
    assert_eq!((gpu.vram_used, gpu.gtt_used), (256 * MIB, 50 * GIB));
    assert_eq!(hardware.memory_available, Some(64 * MIB));
    assert_eq!(hardware.pressure, Some(MemoryPressure { some: 0.125, full: 0.03 }));
    let held: Vec<_> = hardware.holders.iter().map(|holder| (holder.pid, holder.bytes)).collect();
    assert_eq!(held, [(101, Some(10 * MIB))]);
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Hardware::read(empty.path()), Hardware::default());
}

#[test]
fn engine_is_measured_with_everything_it_started() {
    let root = machine();
    let processes = Processes::read(&Machine::new(root.path()));
    let vllm = processes.tree(100).unwrap();
    let expected = TreeMemory {
        processes: 3,
        anonymous: 7 * MIB,
        file: MIB / 2,
        shared: MIB / 2,
        vram: MIB,
        gtt: 6 * MIB,
        compute: 3 * MIB,
    };
    assert_eq!(vllm, expected);
    assert_eq!((vllm.system(), vllm.gpu()), (8 * MIB, 10 * MIB));
    let llama = processes.tree(200).unwrap();
    assert_eq!((llama.processes, llama.file, llama.gpu()), (1, 20 * MIB, 0));
    assert_eq!(processes.tree(400), None);
}

#[test]
fn resident_memory_of_new_kernels_replaces_the_old_key() {
    let root = machine();
    let text = "drm-client-id: 1\ndrm-pdev: 0000:03:00.0\ndrm-total-vram: 900 MiB\n\
                drm-resident-vram: 2 MiB\ndrm-memory-vram: 1 KiB\ndrm-resident-gtt: 4096\n\
                drm-memory-gtt: 9 GiB\n";
    write(&root, "proc/200/fdinfo/3", text);
    let memory = Processes::read(&Machine::new(root.path())).tree(200).unwrap();
    assert_eq!((memory.vram, memory.gtt), (2 * MIB, 4096));
}

/// A process that is its own ancestor must not loop.
#[test]
fn cyclic_parents_are_accepted() {
    let root = machine();
    for (pid, parent) in [(100, 101), (101, 100)] {
        let (path, text) = process(pid, parent, 7);
        write(&root, &path, &text);
    }
    let memory = Processes::read(&Machine::new(root.path())).tree(100).unwrap();
    assert_eq!(memory.processes, 3);
}

proptest! {
    #[test]
    fn any_content_is_accepted(
        text in "(drm-(client-id|pdev|memory-vram|resident-gtt)|RssAnon|some avg10=|[a-z]{1,4})\
                 (: ?[0-9]{0,22}( KiB| MiB| kB)?\n|[ -~]{0,20}\n)",
        copies in 1_usize..5,
    ) {
        let root = machine();
        let text = text.repeat(copies);
        for path in [
            "proc/100/fdinfo/3",
            "proc/100/status",
            "proc/101/stat",
            "proc/pressure/memory",
            "sys/class/drm/renderD128/device/gpu_busy_percent",
            "sys/class/kfd/kfd/proc/101/vram_51234",
        ] {
            write(&root, path, &text);
        }
        let hardware = Hardware::read(root.path());
        let is_valid = |gpu: &Gpu| gpu.busy_percent.is_none_or(|busy| busy <= 100);
        prop_assert!(hardware.gpus.iter().all(is_valid));
        let memory = Processes::read(&Machine::new(root.path())).tree(100);
        prop_assert!(memory.is_some_and(|memory| memory.processes >= 1));
    }
}
