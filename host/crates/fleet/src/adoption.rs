//! Which engines of an earlier host the lanes of this configuration take over.

use std::collections::BTreeMap;

use crate::process::{AdoptableEngine, StateDir};
use crate::spec::{FleetSpec, LaneSpec, Residency};

impl StateDir {
    /// Keeps the engines of an earlier host that lanes of this configuration can take over: the
    /// command, the environment and the driver are those of the configuration, and the lanes fit
    /// into the memory of their group together. [`StateDir::sweep`] ends the others. To be called
    /// before it.
    pub fn keep_adoptable(&self, spec: &FleetSpec) {
        let mut free: BTreeMap<usize, u64> =
            spec.groups.iter().map(|group| group.budget).enumerate().collect();
        for lane in spec.lanes.iter().filter(|lane| lane.residency == Residency::Always) {
            // The memory of these lanes is reserved, whether they are loaded or not.
            take(&mut free, lane);
        }
        let mut lanes: BTreeMap<&str, &LaneSpec> =
            spec.lanes.iter().map(|lane| (lane.name.as_str(), lane)).collect();
        self.retain_adoptable(|engine| {
            // Two engines of one lane: the first one is kept.
            let Some(lane) = lanes.remove(engine.lane()) else {
                return refuse(engine, "lane");
            };
            if !is_unchanged(engine, lane) {
                return refuse(engine, "command");
            }
            if lane.residency != Residency::Always && !take(&mut free, lane) {
                return refuse(engine, "memory");
            }
            true
        });
    }
}

/// Takes the memory of a lane from its group. Returns false if that has too little.
fn take(free: &mut BTreeMap<usize, u64>, lane: &LaneSpec) -> bool {
    let Some(left) = lane.group.and_then(|group| free.get_mut(&group)) else { return true };
    let rest = left.checked_sub(lane.need);
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

/// Returns true if the engine was started as the configuration says.
fn is_unchanged(engine: &AdoptableEngine, lane: &LaneSpec) -> bool {
    let note = engine.note();
    let (Some(run), Some(port)) = (lane.engine.run(), note.port) else { return false };
    let is_its_port = run.port.is_none_or(|configured| configured == port);
    let driver = &lane.engine.0;
    let launch = driver.prepare(&lane.name, port).launch;
    is_its_port && launch.fingerprint(driver.info().key) == note.fingerprint
}

fn refuse(engine: &AdoptableEngine, changed: &str) -> bool {
    tracing::info!(
        event = "engine_not_adopted",
        lane = engine.lane(),
        pid = engine.pid(),
        changed,
        "engine of an earlier host does not fit the configuration"
    );
    false
}
