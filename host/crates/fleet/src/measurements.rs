//! The measured memory of lanes and groups beside their budgets, and that of the machine.
//!
//! It is sampled every few seconds on a blocking thread, and read by the status and the metrics,
//! which never wait for it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::hardware::{Hardware, Processes, TreeMemory};
use crate::memory::{Machine, Pool};
use crate::spec::{FleetSpec, GroupSpec, LaneSpec};

/// How often the memory is measured.
const INTERVAL: Duration = Duration::from_secs(5);

/// The measured memory of a fleet and its machine. Sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryReport {
    /// When the machine was measured last; `None` if it was not yet.
    pub measured_at: Option<SystemTime>,
    /// The machine.
    pub hardware: Hardware,
    /// The groups, in the order of the configuration.
    pub groups: Vec<GroupMemory>,
    /// The lanes, in the order of the configuration.
    pub lanes: Vec<LaneMemory>,
}

/// The memory of a group of lanes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMemory {
    /// The name of the group.
    pub name: String,
    /// The memory that the lanes share; `None` if the configuration does not say it.
    pub pool: Option<Pool>,
    /// What the lanes may hold together; `None` without a limit.
    pub budget: Option<u64>,
    /// The sum of the needs of the lanes that are loaded, or being loaded or unloaded.
    pub reserved: u64,
    /// What the engines were measured to hold; `None` if they were not yet.
    pub measured: Option<u64>,
}

/// The memory of a lane in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneMemory {
    /// The name of the lane.
    pub name: String,
    /// The index of its group.
    pub group: Option<usize>,
    /// What the loaded engine is expected to hold; 0 if the lane shares no memory.
    pub need: u64,
    /// What the engine was measured to hold; `None` if the lane has no engine process.
    pub measured: Option<TreeMemory>,
}

impl MemoryReport {
    /// Returns the memory of the lane with this name.
    pub fn lane(&self, name: &str) -> Option<&LaneMemory> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    /// Sets what the groups were measured to hold, once there is a measurement.
    fn sum_up(&mut self) {
        if self.measured_at.is_none() {
            return;
        }
        let pools: Vec<Option<Pool>> = self.groups.iter().map(|group| group.pool).collect();
        let sums: Vec<u64> =
            pools.iter().enumerate().map(|(group, pool)| self.measured(group, *pool)).collect();
        for (group, sum) in self.groups.iter_mut().zip(sums) {
            group.measured = Some(sum);
        }
    }

    /// Adds up what the engines of a group hold of its pool.
    fn measured(&self, group: usize, pool: Option<Pool>) -> u64 {
        let lanes = self.lanes.iter().filter(|lane| lane.group == Some(group));
        let held = |memory: TreeMemory| match pool {
            Some(Pool::System) => memory.system(),
            Some(Pool::Gpu { .. }) => memory.gpu(),
            // The budget may be one of either.
            None => memory.system().max(memory.gpu()),
        };
        lanes.filter_map(|lane| lane.measured).map(held).fold(0, u64::saturating_add)
    }
}

/// A handle to the latest report. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurements(Arc<Mutex<MemoryReport>>);

impl Measurements {
    /// Returns the latest report.
    pub(crate) fn report(&self) -> MemoryReport {
        self.0.lock().clone()
    }

    /// Takes up the lanes and groups of a configuration. What was measured of a lane stays.
    pub(crate) fn configure(&self, spec: &FleetSpec) {
        let mut report = self.0.lock();
        let lane = |lane: &LaneSpec| LaneMemory {
            name: lane.name.clone(),
            group: lane.group,
            need: lane.need,
            measured: report.lane(&lane.name).and_then(|lane| lane.measured),
        };
        let lanes = spec.lanes.iter().map(lane).collect();
        let group = |group: &GroupSpec| GroupMemory {
            name: group.name.clone(),
            pool: group.pool,
            budget: (group.budget < u64::MAX).then_some(group.budget),
            reserved: 0,
            measured: None,
        };
        let groups = spec.groups.iter().map(group).collect();
        (report.lanes, report.groups) = (lanes, groups);
        report.sum_up();
    }

    /// Sets what the groups hold according to the dispatcher, in the order of the configuration.
    pub(crate) fn set_reserved(&self, reserved: impl Iterator<Item = u64>) {
        for (group, reserved) in self.0.lock().groups.iter_mut().zip(reserved) {
            group.reserved = reserved;
        }
    }

    /// Notes a measurement.
    fn store(&self, hardware: Hardware, mut trees: BTreeMap<String, TreeMemory>) {
        let mut report = self.0.lock();
        report.measured_at = Some(SystemTime::now());
        report.hardware = hardware;
        for lane in &mut report.lanes {
            lane.measured = trees.remove(&lane.name);
        }
        report.sum_up();
    }

    /// Measures the machine and the engines from time to time, as long as the future is polled.
    /// `engines` returns the names of the lanes that have an engine process, with its id.
    pub(crate) async fn sample(
        self,
        machine: Arc<Machine>,
        engines: impl Fn() -> Vec<(String, u32)>,
    ) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let (machine, engines) = (Arc::clone(&machine), engines());
            let measure = move || (Hardware::measure(&machine), measure_trees(&machine, engines));
            // Fails only while the host stops.
            if let Ok((hardware, trees)) = tokio::task::spawn_blocking(measure).await {
                self.store(hardware, trees);
            }
        }
    }
}

/// Measures the process trees of engines.
fn measure_trees(machine: &Machine, engines: Vec<(String, u32)>) -> BTreeMap<String, TreeMemory> {
    if engines.is_empty() {
        return BTreeMap::new();
    }
    let processes = Processes::read(machine);
    engines.into_iter().filter_map(|(lane, pid)| Some((lane, processes.tree(pid)?))).collect()
}
