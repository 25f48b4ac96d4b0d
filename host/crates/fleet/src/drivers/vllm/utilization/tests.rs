use proptest::prelude::*;

use super::*;
use crate::launch_memory::DeviceMemory;

const GIB: u64 = 1 << 30;

fn memory(need: u64, total: Option<u64>, unused: Option<u64>) -> LaunchMemory {
    LaunchMemory { need, total, unused, device: None }
}

fn with_cache() -> VllmSettings {
    VllmSettings { kv_cache_bytes: Some(GIB), ..VllmSettings::default() }
}

#[test]
fn fraction_follows_need_total_and_free_memory() {
    // Sizes in GiB: the need, the size of the device, what holds nothing, and the fraction with and
    // without a KV cache of a set size.
    for (need, total, unused, with, without) in [
        // The totals that runtimes have reported for one machine with 128 GiB.
        (48, 96, Some(90), 500, 500),
        (48, 110, Some(90), 437, 437),
        (48, 120, Some(90), 400, 400),
        (48, 128, Some(90), 375, 375),
        (48, 63, None, 762, 762),
        // The page cache fills the rest: with a cache of a set size, only the check is left, and
        // 20 GiB less the context of the process are 19.5 of 128.
        (48, 128, Some(20), 152, 375),
        (48, 128, Some(0), 1, 375),
        // More than there is: all but the context.
        (48, 16, None, 968, 968),
        (48, 48, None, 989, 989),
        (0, 128, None, 1, 1),
    ] {
        let memory = memory(need * GIB, Some(total * GIB), unused.map(|gib: u64| gib * GIB));
        let part = |settings| fraction(&settings, &memory).map(|fraction| fraction.part);
        let case = (need, total, unused);
        assert_eq!(part(with_cache()), Some(Permille(with)), "{case:?}");
        assert_eq!(part(VllmSettings::default()), Some(Permille(without)), "{case:?}");
    }
}

#[test]
fn what_a_start_reported_replaces_what_the_kernel_reports() {
    // Of 128 GiB by the kernel, the runtime only sees 64, of which it counted 20 as free.
    let device = DeviceMemory { total: Some(64 * GIB), free: Some(20 * GIB) };
    let memory =
        LaunchMemory { device: Some(device), ..memory(32 * GIB, Some(128 * GIB), Some(90 * GIB)) };
    let found = fraction(&VllmSettings::default(), &memory).unwrap();
    // 19.5 of 64.
    assert_eq!((found.part, found.limit), (Permille(304), Some(19 * GIB + GIB / 2)));
    assert!(found.explain().contains("19.5 GiB") && found.explain().contains("of 64.0 GiB"));
    let device = DeviceMemory { free: None, ..device };
    let memory = LaunchMemory { device: Some(device), ..memory };
    let found = fraction(&VllmSettings::default(), &memory).unwrap();
    assert_eq!((found.part, found.limit), (Permille(500), None));
}

#[test]
fn need_of_several_gpus_is_divided() {
    let settings =
        VllmSettings { tensor_parallel: Some(2), pipeline_parallel: Some(2), ..with_cache() };
    let found = fraction(&settings, &memory(48 * GIB, Some(24 * GIB), None)).unwrap();
    assert_eq!((found.part, found.need), (Permille(500), 12 * GIB));
}

#[test]
fn a_fraction_of_the_operator_is_left_alone() {
    let memory = memory(48 * GIB, Some(128 * GIB), None);
    let set = VllmSettings { gpu_memory_utilization: Some(Permille(450)), ..with_cache() };
    assert_eq!(fraction(&set, &memory), None);
    for (argument, is_left_alone) in [
        ("--gpu-memory-utilization", true),
        ("--gpu_memory_utilization=0.4", true),
        ("--gpu-memory-util", true),
        ("--device-memory-utilization", true),
        ("--config=vllm.yaml", true),
        ("--config", true),
        ("--config-format", false),
        ("--kv-cache-memory-bytes=1", false),
        ("--gpu", false),
        ("--max-num-batched-tokens", false),
        ("gpu-memory-utilization", false),
    ] {
        let settings = VllmSettings { arguments: vec![argument.to_owned()], ..with_cache() };
        assert_eq!(fraction(&settings, &memory).is_none(), is_left_alone, "{argument}");
    }
    let unknown = LaunchMemory { total: None, ..memory };
    assert_eq!(fraction(&with_cache(), &unknown), None);
}

proptest! {
    #[test]
    fn vllm_starts_with_any_fraction_that_fits(
        need: u64, total: Option<u64>, unused: Option<u64>, free: Option<u64>,
        devices: Option<u32>,
    ) {
        let settings = VllmSettings { tensor_parallel: devices, ..with_cache() };
        let device = Some(DeviceMemory { total: None, free });
        let memory = LaunchMemory { need, total, unused, device };
        if let Some(found) = fraction(&settings, &memory) {
            prop_assert!((1..=1000).contains(&found.part.0));
            // What vLLM compares with the free memory, when its process has taken its context.
            let requested = u128::from(found.total) * u128::from(found.part.0) / 1000;
            let least = u128::from(found.total / 1000 + 1);
            for free in [unused, free].into_iter().flatten() {
                let left = u128::from(free.saturating_sub(CONTEXT));
                let rounding = if found.limit.is_none() { least } else { 0 };
                prop_assert!(requested <= left.max(least) + rounding);
            }
            prop_assert!(!found.explain().is_empty());
        }
    }
}
