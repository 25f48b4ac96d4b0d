//! The memory of lanes, groups and the machine in `/status`: what was measured beside the budgets.
//! Sizes are in bytes, and `null` if they are not known.

use pointsman_fleet::{Gpu, GroupMemory, LaneMemory, MemoryReport, Pool};
use serde_json::{Map, Value, json};

/// Returns the measured memory of a lane's engine; `null` if it has no process.
pub(crate) fn lane_memory(report: &MemoryReport, name: &str) -> Value {
    let Some(LaneMemory { need, measured, .. }) = report.lane(name) else { return Value::Null };
    let mut fields = Map::from_iter([("need_bytes".to_owned(), json!(need))]);
    if let Some(memory) = measured {
        fields.insert("processes".to_owned(), json!(memory.processes));
        fields.insert("system_bytes".to_owned(), json!(memory.system()));
        fields.insert("gpu_bytes".to_owned(), json!(memory.gpu()));
        let kinds = memory.kinds().map(|(kind, bytes)| (format!("{kind}_bytes"), json!(bytes)));
        fields.extend(kinds);
    }
    Value::Object(fields)
}

/// Returns the memory of the groups, in the order of the configuration.
pub(crate) fn groups(report: &MemoryReport) -> Vec<Value> {
    let lanes = |index: usize| -> Vec<&str> {
        let of_group = report.lanes.iter().filter(|lane| lane.group == Some(index));
        of_group.map(|lane| &*lane.name).collect()
    };
    let group = |(index, group): (usize, &GroupMemory)| {
        json!({
            "name": group.name,
            "pool": group.pool.map(pool_name),
            "lanes": lanes(index),
            "budget_bytes": group.budget,
            "reserved_bytes": group.reserved,
            "measured_bytes": group.measured,
        })
    };
    report.groups.iter().enumerate().map(group).collect()
}

fn pool_name(pool: Pool) -> String {
    match pool {
        Pool::System => "system".to_owned(),
        Pool::Gpu { minor: None } => "gpu".to_owned(),
        Pool::Gpu { minor: Some(minor) } => format!("renderD{minor}"),
    }
}

/// Returns the memory and the GPUs of the machine.
pub(crate) fn machine(report: &MemoryReport) -> Value {
    let hardware = &report.hardware;
    let measured_at =
        report.measured_at.map(|time| humantime::format_rfc3339_seconds(time).to_string());
    json!({
        "measured_at": measured_at,
        "memory_total_bytes": hardware.memory_total,
        "memory_available_bytes": hardware.memory_available,
        "memory_pressure_some": hardware.pressure.map(|pressure| pressure.some),
        "memory_pressure_full": hardware.pressure.map(|pressure| pressure.full),
        "gpus": hardware.gpus.iter().map(gpu).collect::<Vec<_>>(),
    })
}

fn gpu(gpu: &Gpu) -> Value {
    json!({
        "name": format!("renderD{}", gpu.minor),
        "gfx": gpu.gfx,
        "apu": gpu.apu,
        "busy_percent": gpu.busy_percent,
        "vram_total_bytes": gpu.vram_total,
        "vram_used_bytes": gpu.vram_used,
        "gtt_total_bytes": gpu.gtt_total,
        "gtt_used_bytes": gpu.gtt_used,
    })
}
