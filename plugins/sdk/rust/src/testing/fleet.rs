//! Fake fleets.

use crate::{Engine, FleetView, LaneId, LaneInfo, LaneStat, LaneState};

/// A fake fleet. Until changed, its lanes are ready and idle, serve the models of their own names
/// and `auto`, and have four slots.
#[derive(Debug, Clone)]
pub struct FakeFleet {
    /// Properties that rarely change, by lane id.
    pub lanes: Vec<LaneInfo>,
    /// Metrics, by lane id.
    pub stats: Vec<LaneStat>,
    /// The lanes that the filters of earlier policies leave; `None` for all candidates.
    pub lanes_left: Option<Vec<LaneId>>,
}

impl FakeFleet {
    /// Creates a fleet of lanes with these names.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let ids = || (0u32..).zip(names);
        Self {
            lanes: ids().map(|(id, name)| fake_lane(id, name)).collect(),
            stats: ids().map(|(id, _)| fake_stat(id)).collect(),
            lanes_left: None,
        }
    }

    /// Returns the metrics of a lane, mutably.
    ///
    /// # Panics
    /// Panics if no lane has this name.
    pub fn stat_mut(&mut self, name: &str) -> &mut LaneStat {
        #[expect(clippy::expect_used, reason = "a test with a wrong name has to fail")]
        let index =
            self.lanes.iter().position(|lane| lane.name == name).expect("lane should exist");
        &mut self.stats[index]
    }

    /// Returns the properties of a lane, mutably.
    ///
    /// # Panics
    /// Panics if no lane has this name.
    pub fn lane_mut(&mut self, name: &str) -> &mut LaneInfo {
        #[expect(clippy::expect_used, reason = "a test with a wrong name has to fail")]
        self.lanes.iter_mut().find(|lane| lane.name == name).expect("lane should exist")
    }

    /// Returns the names of lanes.
    ///
    /// # Panics
    /// Panics if a lane id is out of range.
    #[must_use]
    pub fn names(&self, lanes: &[LaneId]) -> Vec<&str> {
        lanes.iter().map(|lane| self.lanes[*lane as usize].name.as_str()).collect()
    }
}

fn fake_lane(id: LaneId, name: &str) -> LaneInfo {
    LaneInfo {
        id,
        name: name.to_owned(),
        engine: Engine::Other,
        models: vec![name.to_owned(), "auto".to_owned()],
        labels: Vec::new(),
        max_context: 0,
        slots: 4,
        group: 0,
        cost_milli: 0,
    }
}

fn fake_stat(id: LaneId) -> LaneStat {
    LaneStat {
        id,
        state: LaneState::Ready,
        running: 0,
        waiting: 0,
        queued: 0,
        slots_free: 4,
        kv_used: 0,
        errors: 0,
        ttft_p50_ms: 0,
        ttft_p99_ms: 0,
        decode_tps: 0,
        est_wait_ms: 0,
        ready_in_ms: 0,
        displaces: 0,
        cached_tokens: 0,
        stale_ms: 0,
    }
}

/// The view of a fleet during a request for `model`, or outside of a request.
pub(super) struct ModelView<'a> {
    pub(super) fleet: &'a FakeFleet,
    pub(super) model: Option<String>,
}

impl FleetView for ModelView<'_> {
    fn stats(&self) -> Vec<LaneStat> {
        self.fleet.stats.clone()
    }

    fn stat(&self, lane: LaneId) -> Option<LaneStat> {
        self.fleet.stats.get(lane as usize).copied()
    }

    fn candidates(&self) -> Vec<LaneId> {
        let serves =
            |lane: &&LaneInfo| self.model.as_ref().is_some_and(|model| lane.models.contains(model));
        self.fleet.lanes.iter().filter(serves).map(|lane| lane.id).collect()
    }

    fn info(&self, lane: LaneId) -> Option<LaneInfo> {
        self.fleet.lanes.get(lane as usize).cloned()
    }

    fn find(&self, name: &str) -> Option<LaneId> {
        self.fleet.lanes.iter().find(|lane| lane.name == name).map(|lane| lane.id)
    }

    fn with_label(&self, key: &str, value: &str) -> Vec<LaneId> {
        let has = |lane: &&LaneInfo| lane.labels.iter().any(|(k, v)| k == key && v == value);
        self.fleet.lanes.iter().filter(has).map(|lane| lane.id).collect()
    }
    fn lanes_left(&self) -> Vec<LaneId> {
        let is_left =
            |lane: &LaneId| self.fleet.lanes_left.as_ref().is_none_or(|left| left.contains(lane));
        self.candidates().into_iter().filter(is_left).collect()
    }
}
