//! Makes the events of `GET /fleet`, once for all readers.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use axum::body::Bytes;
use pointsman_domain::dispatch::Problem;
use pointsman_domain::{DigestCursor, FleetView, LaneId, LaneInfo, LaneStat};
use pointsman_fleet::{Fleet, LaneStatus};
use pointsman_peers::{
    Event, HostInfo, LaneDescription, LaneReport, LaneReports, MAX_LANES, TopologyEvent, VERSION,
};
use tokio::time::Instant;

/// Events that a reader may be behind: three seconds at least.
const MAX_BEHIND: usize = 32;
/// Lanes of one event: with whole digests, it has a quarter of the maximum size.
const MAX_LANES_OF_EVENT: usize = 12;

/// The last events, and what they were made of.
pub(super) struct Publisher {
    fleet: Fleet,
    host: HostInfo,
    refreshed: Option<Instant>,
    generation: u64,
    /// The event about it.
    topology: Bytes,
    /// The statistics that were sent last.
    sent: HashMap<LaneId, LaneStat>,
    /// What was sent of the digest of each lane.
    digests: HashMap<LaneId, DigestCursor>,
    events: VecDeque<Bytes>,
    /// The number of the event after the last one.
    end: u64,
    /// Everything, for a reader that has nothing, and the number of the event that follows.
    whole: Option<(u64, Vec<Bytes>)>,
}

impl Publisher {
    pub(super) fn new(fleet: Fleet, name: String) -> Self {
        let id = fleet.host_id().to_owned();
        let software = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            fleet,
            host: HostInfo { id, name, software },
            refreshed: None,
            generation: 0,
            topology: Bytes::new(),
            sent: HashMap::new(),
            digests: HashMap::new(),
            events: VecDeque::new(),
            end: 0,
            whole: None,
        }
    }

    /// Returns the generation of the topology that was sent last.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes the events for what has changed, unless that was done in the last interval.
    pub(super) fn refresh(&mut self, now: Instant, interval: Duration) {
        // Readers wake at the same time, and timers are late by a millisecond or two.
        let is_due = |refreshed: Instant| now.duration_since(refreshed) >= interval / 2;
        if !self.refreshed.is_none_or(is_due) {
            return;
        }
        self.refreshed = Some(now);
        let view = self.fleet.view();
        if view.topology.generation() != self.generation {
            self.generation = view.topology.generation();
            self.sent.clear();
            self.digests.clear();
            self.topology = self.topology_of(&view).to_sse().into();
            self.push(self.topology.clone());
        }
        let reports = self.changes(&view);
        for event in events_of(self.generation, reports) {
            self.push(event.into());
        }
    }

    /// Adds the events that a reader at `position` does not have. Returns its next position.
    pub(super) fn since(&mut self, position: Option<u64>, events: &mut VecDeque<Bytes>) -> u64 {
        // The number of events is small.
        let first = self.end - self.events.len() as u64;
        match position {
            Some(position) if position >= first => {
                let known = usize::try_from(position - first).unwrap_or(usize::MAX);
                events.extend(self.events.iter().skip(known).cloned());
            }
            Some(_) | None => events.extend(self.whole().iter().cloned()),
        }
        self.end
    }

    fn push(&mut self, event: Bytes) {
        if self.events.len() == MAX_BEHIND {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.end += 1;
    }

    /// Returns the events for a reader that has nothing. What they have of a digest may be newer
    /// than the events before the next ones: hashes that come twice are one.
    fn whole(&mut self) -> &[Bytes] {
        if self.whole.as_ref().is_none_or(|(end, _)| *end != self.end) {
            // The statistics of the last event, which the next ones continue.
            let statuses = self.fleet.status();
            let mut stats: Vec<LaneStat> = self.sent.values().copied().collect();
            stats.sort_unstable_by_key(|stat| stat.id);
            let report = |stat: &LaneStat| {
                let digest = self.fleet.prefix_index().digest(stat.id, DigestCursor::default());
                LaneReport { digest: digest.map(Into::into), ..report(stat, &statuses) }
            };
            let reports = stats.iter().map(report).collect();
            let reports = events_of(self.generation, reports).into_iter().map(Bytes::from);
            self.whole =
                Some((self.end, [self.topology.clone()].into_iter().chain(reports).collect()));
        }
        self.whole.as_ref().map_or(&[], |(_, events)| events)
    }

    fn topology_of(&self, view: &FleetView) -> Event {
        let groups = self.fleet.memory_report().groups;
        let lane = |lane: &LaneInfo| {
            // Groups are numbered from 1.
            let group = usize::try_from(lane.group).ok().and_then(|group| group.checked_sub(1));
            let group = group.and_then(|group| groups.get(group));
            LaneDescription::new(lane, group.map(|group| group.name.as_str()))
        };
        Event::Topology(TopologyEvent {
            version: VERSION,
            generation: self.generation,
            host: self.host.clone(),
            lanes: own_lanes(view).take(MAX_LANES).map(lane).collect(),
        })
    }

    /// Returns the reports on lanes that have changed, and notes that they were sent.
    fn changes(&mut self, view: &FleetView) -> Vec<LaneReport> {
        let mut statuses = None;
        let mut reports = Vec::new();
        for stat in own_lanes(view).filter_map(|lane| view.stat(lane.id)).take(MAX_LANES) {
            let cursor = self.digests.get(&stat.id).copied().unwrap_or_default();
            let digest = self.fleet.prefix_index().digest(stat.id, cursor);
            let same = self.sent.get(&stat.id).is_some_and(|sent| is_same(sent, &stat));
            if same && digest.is_none() {
                continue;
            }
            if let Some(digest) = &digest {
                self.digests.insert(stat.id, digest.cursor);
            }
            self.sent.insert(stat.id, stat);
            let statuses = statuses.get_or_insert_with(|| self.fleet.status());
            reports.push(LaneReport { digest: digest.map(Into::into), ..report(&stat, statuses) });
        }
        reports
    }
}

/// Returns the lanes of this host. Those that it has from others are theirs to tell of.
fn own_lanes(view: &FleetView) -> impl Iterator<Item = &LaneInfo> {
    view.topology.lanes().iter().filter(|lane| !lane.is_peer)
}

/// Returns true if a report would say the same. The age of metrics changes all the time, and a
/// reader knows how old its report is: only whole seconds count.
fn is_same(sent: &LaneStat, stat: &LaneStat) -> bool {
    let whole = |stat: &LaneStat| LaneStat { stale_ms: stat.stale_ms / 1000, ..*stat };
    whole(sent) == whole(stat)
}

fn report(stat: &LaneStat, statuses: &[LaneStatus]) -> LaneReport {
    let status = LaneStatus::find(statuses, stat.id);
    let problem = status.and_then(|status| status.problem.as_ref()).and_then(Problem::code);
    LaneReport { problem: problem.map(str::to_owned), ..LaneReport::new(stat) }
}

/// Returns the events with some reports, none of which exceeds the limits of readers.
fn events_of(generation: u64, mut reports: Vec<LaneReport>) -> Vec<String> {
    let mut events = Vec::new();
    while !reports.is_empty() {
        let rest = reports.split_off(reports.len().min(MAX_LANES_OF_EVENT));
        let lanes = std::mem::replace(&mut reports, rest);
        events.push(Event::Lanes(LaneReports { generation, lanes }).to_sse());
    }
    events
}
