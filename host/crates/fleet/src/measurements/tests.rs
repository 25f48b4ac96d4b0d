use std::time::Duration;

use prometheus_client::registry::Registry;

use super::*;
use crate::drivers::external::ExternalSpec;
use crate::memory::Gpu;
use crate::metrics::FleetMetrics;
use crate::spec::Residency;
use crate::tests::{LIMITS, fleet_spec, lane};

const GIB: u64 = 1 << 30;

fn shared_lane(name: &str, group: usize, need: u64) -> LaneSpec {
    let url = "http://127.0.0.1:9";
    let engine = ExternalSpec::try_new(url, None, Duration::from_secs(1)).unwrap();
    LaneSpec { group: Some(group), need, ..lane(name, engine.into(), Residency::External) }
}

fn group(name: &str, pool: Option<Pool>, budget: u64) -> GroupSpec {
    GroupSpec { name: name.to_owned(), budget, pool, free_timeout: Duration::ZERO }
}

/// A group on the GPU with two lanes, one in system memory, and a lane without a group.
fn spec() -> FleetSpec {
    let lanes = vec![
        shared_lane("a", 0, 6 * GIB),
        shared_lane("b", 0, 4 * GIB),
        shared_lane("c", 1, GIB),
        LaneSpec { group: None, ..shared_lane("d", 0, 0) },
    ];
    let groups = vec![
        group("gpu", Some(Pool::Gpu { minor: None }), 8 * GIB),
        group("cpu", Some(Pool::System), u64::MAX),
    ];
    FleetSpec { groups, ..fleet_spec(lanes, LIMITS) }
}

fn measured() -> (Hardware, BTreeMap<String, TreeMemory>) {
    let gpu = Gpu {
        minor: 128,
        vram_total: 16 * GIB,
        vram_used: 12 * GIB,
        gtt_total: 0,
        gtt_used: 0,
        apu: false,
        gfx: None,
        busy_percent: Some(37),
        unique_id: None,
    };
    let tree = |gpu: u64, system: u64| TreeMemory {
        processes: 1,
        vram: gpu * GIB,
        anonymous: system * GIB,
        ..TreeMemory::default()
    };
    let trees = [("a", tree(7, 1)), ("b", tree(3, 1)), ("c", tree(5, 2)), ("d", tree(1, 1))];
    let hardware = Hardware { gpus: vec![gpu], ..Hardware::default() };
    (hardware, trees.map(|(name, tree)| (name.to_owned(), tree)).into())
}

#[test]
fn groups_add_up_what_their_lanes_hold_of_their_pool() {
    let measurements = Measurements::default();
    measurements.configure(&spec());
    measurements.set_reserved([10 * GIB, GIB].into_iter());
    let groups = |report: &MemoryReport| -> Vec<_> {
        report.groups.iter().map(|group| (group.budget, group.reserved, group.measured)).collect()
    };
    let before = measurements.report();
    assert_eq!(before.measured_at, None);
    assert_eq!(groups(&before), [(Some(8 * GIB), 10 * GIB, None), (None, GIB, None)]);
    let (hardware, trees) = measured();
    measurements.store(hardware, trees);
    let report = measurements.report();
    assert!(report.measured_at.is_some());
    let measured = [(Some(8 * GIB), 10 * GIB, Some(10 * GIB)), (None, GIB, Some(2 * GIB))];
    assert_eq!(groups(&report), measured);

    // A lane of a new configuration keeps what was measured, also in another group.
    let mut moved = spec();
    moved.lanes.remove(0);
    moved.lanes[0].group = Some(1);
    measurements.configure(&moved);
    let report = measurements.report();
    assert_eq!(report.lane("a"), None);
    assert_eq!(groups(&report), [(Some(8 * GIB), 0, Some(0)), (None, 0, Some(3 * GIB))]);

    // The engines have ended.
    measurements.store(Hardware::default(), BTreeMap::new());
    assert!(measurements.report().lanes.iter().all(|lane| lane.measured.is_none()));
}

#[test]
fn latest_measurement_is_encoded() {
    let mut registry = Registry::default();
    let metrics = FleetMetrics::register(&mut registry, &[]);
    let encode = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let has_series = |text: &str| text.lines().any(|line| line.starts_with("pointsman_gpu_"));
    assert!(!has_series(&encode()));
    metrics.measurements.configure(&spec());
    let (hardware, trees) = measured();
    metrics.measurements.store(hardware, trees);
    metrics.measurements.set_reserved([10 * GIB, GIB].into_iter());
    let text = encode();
    for line in [
        "pointsman_gpu_memory_used_bytes{gpu=\"renderD128\",kind=\"vram\"} 12884901888",
        "pointsman_gpu_memory_total_bytes{gpu=\"renderD128\",kind=\"vram\"} 17179869184",
        "pointsman_gpu_busy_ratio{gpu=\"renderD128\"} 0.37",
        "pointsman_lane_memory_bytes{lane=\"a\",kind=\"vram\"} 7516192768",
        "pointsman_lane_memory_bytes{lane=\"a\",kind=\"anonymous\"} 1073741824",
        "pointsman_lane_memory_need_bytes{lane=\"b\"} 4294967296",
        "pointsman_group_memory_budget_bytes{group=\"gpu\"} 8589934592",
        "pointsman_group_memory_reserved_bytes{group=\"gpu\"} 10737418240",
        "pointsman_group_memory_measured_bytes{group=\"cpu\"} 2147483648",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // Neither a group without a limit nor a lane without a group has one.
    assert!(!text.contains("budget_bytes{group=\"cpu\"}"));
    assert!(!text.contains("need_bytes{lane=\"d\"}"));
}
