//! Memory of the machine, the groups and the lanes: read from the latest measurement when the
//! metrics are, so that series end with what they belong to.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::hardware::MemoryPressure;
use crate::measurements::{Measurements, MemoryReport};

/// The metrics of the latest measurement.
#[derive(Debug)]
pub(super) struct MemoryMetrics(pub(super) Measurements);

impl Collector for MemoryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.0.report();
        encode_gpus(&mut encoder, &report)?;
        encode_system(&mut encoder, &report)?;
        encode_groups(&mut encoder, &report)?;
        encode_lanes(&mut encoder, &report)
    }
}

fn encode_gpus(encoder: &mut DescriptorEncoder<'_>, report: &MemoryReport) -> fmt::Result {
    let gpus = &report.hardware.gpus;
    let names: Vec<String> = gpus.iter().map(|gpu| format!("renderD{}", gpu.minor)).collect();
    let named = || gpus.iter().zip(names.iter().map(String::as_str));
    gauges(
        encoder,
        "pointsman_gpu_memory_used_bytes",
        "Used memory of a GPU; gtt is system memory that it uses",
        named().flat_map(|(gpu, name)| {
            [("vram", gpu.vram_used), ("gtt", gpu.gtt_used)]
                .map(|(kind, used)| ([("gpu", name), ("kind", kind)], used))
        }),
    )?;
    gauges(
        encoder,
        "pointsman_gpu_memory_total_bytes",
        "Memory of a GPU; gtt is system memory that it may use",
        named().flat_map(|(gpu, name)| {
            [("vram", gpu.vram_total), ("gtt", gpu.gtt_total)]
                .map(|(kind, total)| ([("gpu", name), ("kind", kind)], total))
        }),
    )?;
    gauges(
        encoder,
        "pointsman_gpu_busy_ratio",
        "Part of the time that a GPU was busy, from 0 to 1",
        named().filter_map(|(gpu, name)| {
            Some(([("gpu", name)], f64::from(gpu.busy_percent?) / 100.0))
        }),
    )
}

fn encode_system(encoder: &mut DescriptorEncoder<'_>, report: &MemoryReport) -> fmt::Result {
    let hardware = &report.hardware;
    let measured_at = report.measured_at.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    for (name, help, value) in [
        (
            "pointsman_system_memory_available_bytes",
            "System memory that is available without swapping",
            hardware.memory_available,
        ),
        ("pointsman_system_memory_total_bytes", "System memory", hardware.memory_total),
        (
            "pointsman_memory_last_measurement_timestamp_seconds",
            "Time at which the memory of engines and the machine was measured last",
            measured_at.map(|time| time.as_secs()),
        ),
    ] {
        let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        if let Some(value) = value {
            ConstGauge::new(value).encode(gauge)?;
        }
    }
    let kinds = |MemoryPressure { some, full }| [("some", some), ("full", full)];
    gauges(
        encoder,
        "pointsman_system_memory_pressure_ratio",
        "Part of the last 10 s in which some or all tasks waited for memory, from 0 to 1",
        hardware
            .pressure
            .map(kinds)
            .into_iter()
            .flatten()
            .map(|(kind, part)| ([("kind", kind)], part)),
    )
}

fn encode_groups(encoder: &mut DescriptorEncoder<'_>, report: &MemoryReport) -> fmt::Result {
    let groups = || report.groups.iter().map(|group| ([("group", &*group.name)], group));
    gauges(
        encoder,
        "pointsman_group_memory_budget_bytes",
        "Memory that the lanes of a group may hold together",
        groups().filter_map(|(labels, group)| Some((labels, group.budget?))),
    )?;
    gauges(
        encoder,
        "pointsman_group_memory_reserved_bytes",
        "Memory that the loaded lanes of a group need according to the configuration",
        groups().map(|(labels, group)| (labels, group.reserved)),
    )?;
    gauges(
        encoder,
        "pointsman_group_memory_measured_bytes",
        "Memory that the engines of a group were measured to hold",
        groups().filter_map(|(labels, group)| Some((labels, group.measured?))),
    )
}

fn encode_lanes(encoder: &mut DescriptorEncoder<'_>, report: &MemoryReport) -> fmt::Result {
    let lanes = || report.lanes.iter();
    gauges(
        encoder,
        "pointsman_lane_memory_need_bytes",
        "Memory that the loaded lane needs according to the configuration",
        lanes()
            .filter(|lane| lane.group.is_some())
            .map(|lane| ([("lane", &*lane.name)], lane.need)),
    )?;
    gauges(
        encoder,
        "pointsman_lane_memory_bytes",
        "Memory that the processes of an engine were measured to hold, by kind",
        lanes().flat_map(|lane| {
            let kinds = lane.measured.map(|memory| memory.kinds()).into_iter().flatten();
            kinds.map(|(kind, bytes)| ([("lane", &*lane.name), ("kind", kind)], bytes))
        }),
    )
}

/// Writes gauges of one name.
fn gauges<'a, const LABELS: usize, N: EncodeGaugeValue + Copy + fmt::Debug>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'a str, &'a str); LABELS], N)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
