//! What is known of another host.

use std::time::{Duration, Instant};

use pointsman_domain::{LaneId, LaneStat, PromptHashes};

use crate::digest::Digest;
use crate::event::{Event, LaneReport};
use crate::topology::{HostInfo, LaneDescription, TopologyEvent};

/// After which silence of a host its lanes are not used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleLimits {
    /// Silence after which lanes are used only if there are no others.
    pub degraded: Duration,
    /// Silence after which lanes are not used.
    pub down: Duration,
}

impl Default for StaleLimits {
    fn default() -> Self {
        Self { degraded: Duration::from_secs(1), down: Duration::from_secs(5) }
    }
}

/// How much can be relied on what is known of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// The host sends.
    Live,
    /// The host has been silent for longer than [`StaleLimits::degraded`].
    Degraded,
    /// The host has been silent for longer than [`StaleLimits::down`], or has never sent anything.
    #[default]
    Down,
}

impl Liveness {
    /// Returns the name used in metrics and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// A lane of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLane {
    /// What the lane is.
    pub description: LaneDescription,
    /// How the lane is. Until the host has reported on it, it is down.
    pub report: LaneReport,
    /// What the engine of the lane has probably cached; empty if the host does not tell.
    pub digest: Digest,
}

impl PeerLane {
    fn new(description: LaneDescription) -> Self {
        let state = pointsman_domain::LaneState::Down;
        let report = LaneReport { id: description.id, state, ..LaneReport::default() };
        Self { description, report, digest: Digest::default() }
    }

    /// Returns the statistics as those of a lane of this host. `prompt` has the hashes of the key
    /// that the hosts share; `age` is the age of the view.
    pub fn stat(&self, id: LaneId, age: Duration, prompt: Option<&PromptHashes>) -> LaneStat {
        let age_ms = u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        let cached_tokens = prompt.map_or(0, |prompt| self.digest.cached_tokens(prompt));
        LaneStat { cached_tokens, ..self.report.stat(id, age_ms) }
    }
}

/// What is known of another host: its events, folded.
#[derive(Debug, Clone, Default)]
pub struct PeerView {
    /// What the reader of the stream has found last. Changes with time, also without an event.
    pub liveness: Liveness,
    /// The code of the error with which the last connection ended, until there is another one.
    pub error: Option<&'static str>,
    /// `None` until the first topology.
    host: Option<HostInfo>,
    generation: u64,
    /// In the order of their ids.
    lanes: Vec<PeerLane>,
    received: Option<Instant>,
}

impl PeerView {
    /// Takes an event that was received at `now`. Returns true if the topology is another one.
    pub fn apply(&mut self, event: Event, now: Instant) -> bool {
        // Only a topology says what other events are about.
        if self.host.is_none() && !matches!(event, Event::Topology(_)) {
            return false;
        }
        self.received = Some(now);
        match event {
            Event::Topology(topology) => return self.replace(topology),
            Event::Lanes(reports) if reports.generation == self.generation => {
                reports.lanes.into_iter().for_each(|report| self.report(report));
            }
            // Reports on an earlier topology, which are late.
            Event::Lanes(_) | Event::Heartbeat(_) => {}
        }
        false
    }

    fn replace(&mut self, topology: TopologyEvent) -> bool {
        let TopologyEvent { version: _, generation, host, mut lanes } = topology;
        lanes.sort_by_key(|lane| lane.id);
        let is_same_host = self.host.as_ref().is_some_and(|known| known.id == host.id);
        let mut known = if is_same_host { std::mem::take(&mut self.lanes) } else { Vec::new() };
        let has_changed = !is_same_host
            || self.host.as_ref() != Some(&host)
            || !known.iter().map(|lane| &lane.description).eq(&lanes);
        let lane = |description: LaneDescription| {
            let at = known.iter().position(|lane| lane.description.name == description.name);
            // The report on the lane before holds until the next one.
            let Some(at) = at else { return PeerLane::new(description) };
            let PeerLane { report, digest, .. } = known.swap_remove(at);
            PeerLane { report: LaneReport { id: description.id, ..report }, digest, description }
        };
        self.lanes = lanes.into_iter().map(lane).collect();
        (self.generation, self.host) = (generation, Some(host));
        has_changed
    }

    fn report(&mut self, mut report: LaneReport) {
        let at = self.lanes.binary_search_by_key(&report.id, |lane| lane.description.id);
        if let Some(lane) = at.ok().and_then(|at| self.lanes.get_mut(at)) {
            if let Some(change) = report.digest.take() {
                lane.digest.apply(&change);
            }
            lane.report = report;
        }
    }

    /// Returns the host; `None` if it has never sent its topology.
    pub fn host(&self) -> Option<&HostInfo> {
        self.host.as_ref()
    }

    /// Returns the generation of the host's topology.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the lanes in the order of their ids.
    pub fn lanes(&self) -> &[PeerLane] {
        &self.lanes
    }

    /// Returns the lane with this name.
    pub fn lane(&self, name: &str) -> Option<&PeerLane> {
        self.lanes.iter().find(|lane| lane.description.name == name)
    }

    /// Returns when the last event was received.
    pub fn received(&self) -> Option<Instant> {
        self.received
    }

    /// Returns the time since the last event; `None` if there was none.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.received?))
    }

    /// Returns how much the view can be relied on at `now`.
    pub fn liveness_at(&self, now: Instant, limits: &StaleLimits) -> Liveness {
        match self.age(now) {
            Some(age) if age < limits.degraded.min(limits.down) => Liveness::Live,
            Some(age) if age < limits.down => Liveness::Degraded,
            Some(_) | None => Liveness::Down,
        }
    }

    /// Returns true if the host has been silent for too long.
    pub fn is_stale(&self, now: Instant, limits: &StaleLimits) -> bool {
        self.liveness_at(now, limits) != Liveness::Live
    }
}
