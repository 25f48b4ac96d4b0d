//! The fleet view: one immutable snapshot of all lanes' states and figures.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Parts of a thousand.
pub type Permille = u16;

/// Index of a lane in one topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneId(pub u32);

impl LaneId {
    /// Position in the tables of the topology.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What serves a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "names of engines")]
pub enum EngineKind {
    Vllm,
    LlamaCpp,
    /// A URL that the host did not start.
    External,
    #[default]
    Other,
}

/// Can a lane take work?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneState {
    /// Not loaded; choosing it makes the host load it.
    Unloaded,
    /// Loading.
    #[default]
    Starting,
    /// Serving.
    Ready,
    /// Serving, with faults.
    Degraded,
    /// Being unloaded for another lane. Requests may wait for it to come back.
    Draining,
    /// Failed, or backing off before the next start.
    Down,
}

impl LaneState {
    /// May a request wait for this lane?
    pub fn able_to_serve(self) -> bool {
        self != Self::Down
    }

    /// Can a request start on it now?
    pub fn serving(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }

    /// Name, for labels and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// What rarely changes about a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneInfo {
    /// Its place in the topology.
    pub id: LaneId,
    /// Its name.
    pub name: String,
    /// What serves it.
    pub engine: EngineKind,
    /// Model names it answers to.
    pub models: Vec<String>,
    /// Operator's labels.
    pub labels: Vec<(String, String)>,
    /// Longest sequence in tokens; 0 if not known.
    pub max_context: u32,
    /// Requests it works on at once.
    pub slots: u32,
    /// Lanes with the same number share memory; 0 shares with none.
    pub group: u32,
    /// Relative price of a thousand tokens.
    pub cost_milli: u32,
}

/// The figures of a lane now; the units are those of `lane-stat` in the WIT. Its serde form leaves zeros out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "described in wit/0.1/types.wit, record lane-stat")]
pub struct LaneStat {
    pub id: LaneId,
    pub state: LaneState,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub running: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiting: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queued: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slots_free: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kv_used: Permille,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors: Permille,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ttft_p50_ms: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ttft_p99_ms: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub decode_tps: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub est_wait_ms: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ready_in_ms: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub displaces: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stale_ms: u32,
}

fn is_zero<T: Default + PartialEq>(figure: &T) -> bool {
    *figure == T::default()
}

impl LaneStat {
    /// A lane in that state with nothing going on.
    pub fn idle(id: LaneId, state: LaneState, slots: u32) -> Self {
        Self {
            id,
            state,
            running: 0,
            waiting: 0,
            queued: 0,
            slots_free: if state.serving() { slots } else { 0 },
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

    /// Estimated time until a request given to this lane now would start, in milliseconds.
    pub fn start_in_ms(&self) -> u64 {
        u64::from(self.est_wait_ms) + u64::from(self.ready_in_ms)
    }
}

/// The lanes there are. A new one is made whenever lanes are added, removed or described differently.
#[derive(Debug)]
pub struct Topology {
    generation: u64,
    lanes: Vec<LaneInfo>,
    by_model: HashMap<String, Vec<LaneId>>,
    by_name: HashMap<String, LaneId>,
}

impl Topology {
    /// The topology of these lanes. Their ids are set to their positions.
    pub fn new(generation: u64, mut lanes: Vec<LaneInfo>) -> Self {
        let mut by_model: HashMap<String, Vec<LaneId>> = HashMap::new();
        let mut by_name = HashMap::new();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.id = LaneId(u32::try_from(index).unwrap_or(u32::MAX));
            by_name.insert(lane.name.clone(), lane.id);
            for model in &lane.models {
                let ids = by_model.entry(model.clone()).or_default();
                if ids.last() != Some(&lane.id) {
                    ids.push(lane.id);
                }
            }
        }
        Self { generation, lanes, by_model, by_name }
    }

    /// Number that changes with every new topology.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All lanes in the order of their ids.
    pub fn lanes(&self) -> &[LaneInfo] {
        &self.lanes
    }

    /// One lane.
    pub fn lane(&self, id: LaneId) -> Option<&LaneInfo> {
        self.lanes.get(id.index())
    }

    /// The lane of that name.
    pub fn find(&self, name: &str) -> Option<LaneId> {
        self.by_name.get(name).copied()
    }

    /// Name of a lane for people; never empty.
    pub fn name(&self, id: LaneId) -> &str {
        self.lane(id).map_or("unknown lane", |lane| lane.name.as_str())
    }

    /// Lanes that answer to a model name, in the order of their ids.
    pub fn candidates(&self, model: &str) -> &[LaneId] {
        self.by_model.get(model).map_or(&[], Vec::as_slice)
    }

    /// All model names, sorted.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = self.by_model.keys().map(String::as_str).collect();
        models.sort_unstable();
        models
    }

    /// Lanes with a label, in the order of their ids.
    pub fn with_label(&self, key: &str, value: &str) -> Vec<LaneId> {
        let has = |lane: &&LaneInfo| lane.labels.iter().any(|(k, v)| k == key && v == value);
        self.lanes.iter().filter(has).map(|lane| lane.id).collect()
    }
}

/// One snapshot of all lanes.
#[derive(Debug, Clone)]
pub struct FleetView {
    /// The lanes there are.
    pub topology: Arc<Topology>,
    /// Their figures, in the order of their ids.
    pub stats: Vec<LaneStat>,
}

impl FleetView {
    /// A view in which every lane is in `state` and idle.
    pub fn idle(topology: Arc<Topology>, state: LaneState) -> Self {
        let stats = topology
            .lanes()
            .iter()
            .map(|lane| LaneStat::idle(lane.id, state, lane.slots))
            .collect();
        Self { topology, stats }
    }

    /// Figures of one lane.
    pub fn stat(&self, id: LaneId) -> Option<&LaneStat> {
        self.stats.get(id.index())
    }
}
