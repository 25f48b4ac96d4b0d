//! The events of a stream, and their text.

use pointsman_domain::{LaneId, LaneStat, LaneState, Permille};
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::DigestChange;
use crate::limits::{MAX_LANES, MAX_TEXT, VERSION};
use crate::topology::{TopologyEvent, is_zero};
use crate::wire_error::WireError;

/// An event of `GET /fleet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The host and its lanes: the first event of a stream.
    Topology(TopologyEvent),
    /// What has changed of the lanes; after a topology, all lanes.
    Lanes(LaneReports),
    /// Nothing has changed.
    Heartbeat(Heartbeat),
}

/// Reports on lanes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneReports {
    /// The topology whose lanes these are.
    pub generation: u64,
    /// The lanes that have changed.
    #[serde(default)]
    pub lanes: Vec<LaneReport>,
}

/// Shows that the host still sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Heartbeat {
    /// The current topology.
    pub generation: u64,
}

/// The state and the metrics of a lane, with the units of `lane-stat` in the policies' contract.
/// Zeros are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LaneReport {
    /// The id of the lane on its host.
    pub id: u32,
    /// The state; a state that this host does not know counts as `down`. `degraded` is a lane whose
    /// circuit breaker is open.
    #[serde(deserialize_with = "known_state")]
    pub state: LaneState,
    /// Requests that the engine processes.
    #[serde(skip_serializing_if = "is_zero")]
    pub running: u32,
    /// Requests that wait in the engine.
    #[serde(skip_serializing_if = "is_zero")]
    pub waiting: u32,
    /// Requests that wait in the host for the lane.
    #[serde(skip_serializing_if = "is_zero")]
    pub queued: u32,
    /// Free slots.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots_free: u32,
    /// Use of the key-value cache, in thousandths.
    #[serde(skip_serializing_if = "is_zero")]
    pub kv_used: Permille,
    /// Failed requests, in thousandths.
    #[serde(skip_serializing_if = "is_zero")]
    pub errors: Permille,
    /// Median of the time to the first token, in milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub ttft_p50_ms: u32,
    /// 99th percentile of the time to the first token, in milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub ttft_p99_ms: u32,
    /// Tokens per second of one request.
    #[serde(skip_serializing_if = "is_zero")]
    pub decode_tps: u32,
    /// Estimated time in the queue, in milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub est_wait_ms: u32,
    /// Estimated time until the lane could be ready, in milliseconds; 0 if it is.
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_in_ms: u32,
    /// Requests on other lanes of the host that a load would displace.
    #[serde(skip_serializing_if = "is_zero")]
    pub displaces: u32,
    /// Age of the metrics when they were sent, in milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub stale_ms: u32,
    /// The code of the lane's last failure, until it serves again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What has changed of the digest of cached prompts; `None` if nothing has, or if the host
    /// sends no digests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<DigestChange>,
}

fn known_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LaneState, D::Error> {
    use LaneState::{Degraded, Down, Draining, Ready, Starting, Unloaded};
    let label = String::deserialize(deserializer)?;
    let known = [Unloaded, Starting, Ready, Degraded, Draining];
    Ok(known.into_iter().find(|state| state.label() == label).unwrap_or(Down))
}

impl LaneReport {
    /// Reports on a lane of this host, without a problem and a digest.
    pub fn new(stat: &LaneStat) -> Self {
        // Cached tokens are those of one request, which the digest replaces.
        let LaneStat { id, state, running, waiting, queued, slots_free, kv_used, errors, .. } =
            *stat;
        Self {
            id: id.0,
            state,
            running,
            waiting,
            queued,
            slots_free,
            kv_used,
            errors,
            ttft_p50_ms: stat.ttft_p50_ms,
            ttft_p99_ms: stat.ttft_p99_ms,
            decode_tps: stat.decode_tps,
            est_wait_ms: stat.est_wait_ms,
            ready_in_ms: stat.ready_in_ms,
            displaces: stat.displaces,
            stale_ms: stat.stale_ms,
            problem: None,
            digest: None,
        }
    }

    /// Returns the report as statistics of a lane of this host, which are older than the report by
    /// `age_ms`, and without cached tokens.
    pub fn stat(&self, id: LaneId, age_ms: u32) -> LaneStat {
        LaneStat {
            id,
            state: self.state,
            running: self.running,
            waiting: self.waiting,
            queued: self.queued,
            slots_free: self.slots_free,
            kv_used: self.kv_used,
            errors: self.errors,
            ttft_p50_ms: self.ttft_p50_ms,
            ttft_p99_ms: self.ttft_p99_ms,
            decode_tps: self.decode_tps,
            est_wait_ms: self.est_wait_ms,
            ready_in_ms: self.ready_in_ms,
            displaces: self.displaces,
            cached_tokens: 0,
            // A time that does not fit is too old in any case.
            stale_ms: self.stale_ms.saturating_add(age_ms),
        }
    }
}

impl LaneReports {
    /// Checks an event of another host.
    pub(crate) fn checked(self) -> Result<Self, WireError> {
        let is_long = |lane: &LaneReport| {
            lane.problem.as_ref().is_some_and(|problem| problem.len() > MAX_TEXT)
                || lane.digest.as_ref().is_some_and(DigestChange::is_too_large)
        };
        match self.lanes.len() > MAX_LANES || self.lanes.iter().any(is_long) {
            true => Err(WireError::TooLarge),
            false => Ok(self),
        }
    }
}

impl Event {
    /// Returns the name in the stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Topology(_) => "topology",
            Self::Lanes(_) => "lanes",
            Self::Heartbeat(_) => "heartbeat",
        }
    }

    /// Returns the event as a server-sent event.
    pub fn to_sse(&self) -> String {
        let data = match self {
            Self::Topology(topology) => serde_json::to_string(topology),
            Self::Lanes(reports) => serde_json::to_string(reports),
            Self::Heartbeat(heartbeat) => serde_json::to_string(heartbeat),
        };
        // Maps have texts as keys, so it never fails. JSON has no line breaks.
        format!("event: {}\ndata: {}\n\n", self.name(), data.unwrap_or_default())
    }

    /// Reads an event; `None` if its name is unknown.
    pub(crate) fn parse(name: &str, data: &[u8]) -> Result<Option<Self>, WireError> {
        let event = match name {
            "topology" => Self::Topology(topology(data)?),
            "lanes" => Self::Lanes(read::<LaneReports>(data, "lanes")?.checked()?),
            "heartbeat" => Self::Heartbeat(read(data, "heartbeat")?),
            _ => return Ok(None),
        };
        Ok(Some(event))
    }
}

/// Reads a topology. Its version comes first: another one may have another form.
fn topology(data: &[u8]) -> Result<TopologyEvent, WireError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = read(data, "topology")?;
    match version == VERSION {
        true => read::<TopologyEvent>(data, "topology")?.checked(),
        false => Err(WireError::Version(version)),
    }
}

fn read<'de, T: Deserialize<'de>>(data: &'de [u8], event: &'static str) -> Result<T, WireError> {
    serde_json::from_slice(data).map_err(|_| WireError::Invalid { event })
}
