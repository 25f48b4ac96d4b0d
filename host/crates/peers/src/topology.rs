//! The event about a host and its lanes.

use pointsman_domain::{Endpoint, EndpointSet, EngineKind, LaneId, LaneInfo, LaneNames};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LANES, MAX_NAMES, MAX_TEXT, VERSION};
use crate::wire_error::WireError;

/// A host and its lanes. Lanes that this host has from other hosts are not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TopologyEvent {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// Changes with every new topology of the host.
    pub generation: u64,
    /// The host.
    pub host: HostInfo,
    /// The lanes, in the order of their ids.
    #[serde(default)]
    pub lanes: Vec<LaneDescription>,
}

/// A host, as it presents itself to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostInfo {
    /// A random text of the process: a host that has restarted has another one.
    pub id: String,
    /// The name that the operator gave the host.
    #[serde(default)]
    pub name: String,
    /// The version of Pointsman that runs there.
    #[serde(default)]
    pub software: String,
}

/// The static description of a lane of another host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LaneDescription {
    /// The id of the lane on its host, by which reports name it. Ids of removed lanes are used
    /// again, in another generation.
    pub id: u32,
    /// Name of the lane.
    pub name: String,
    /// Kind of the engine: `vllm`, `llama-cpp`, `external` or `other`.
    pub engine: String,
    /// Model names that the lane lists.
    pub models: Vec<String>,
    /// Names that the lane answers to and does not list, written by the operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Those of `models` that are virtual names: several lanes of the host may have them, and
    /// engines do not know them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub virtual_names: Vec<String>,
    /// Adapters of the engine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
    /// Names of the engine's model, such as those of its folder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<String>,
    /// Labels set by the operator, each with its value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// Endpoints of the engine by name; unknown ones are ignored.
    pub endpoints: Vec<String>,
    /// Number of requests that the lane serves at a time.
    pub slots: u32,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// Lanes with the same group share memory and take turns; `None` for a lane with its own
    /// memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Relative price of a thousand tokens, in thousandths.
    #[serde(skip_serializing_if = "is_zero")]
    pub cost_milli: u32,
}

pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl LaneDescription {
    /// Describes a lane of this host. `group` is the name of its memory group.
    pub fn new(lane: &LaneInfo, group: Option<&str>) -> Self {
        let LaneInfo { id, name, engine, models, names, labels, .. } = lane;
        let LaneNames { own, shared, adapters, derived } = names.clone();
        Self {
            id: id.0,
            name: name.clone(),
            engine: engine_label(*engine).to_owned(),
            models: models.clone(),
            aliases: own,
            virtual_names: shared,
            adapters,
            derived,
            labels: labels.clone(),
            endpoints: lane.endpoints.iter().map(|endpoint| endpoint.label().to_owned()).collect(),
            slots: lane.slots,
            max_context: lane.max_context,
            group: group.map(str::to_owned),
            cost_milli: lane.cost_milli,
        }
    }

    /// Returns the endpoints of the engine that this host knows.
    pub fn endpoint_set(&self) -> EndpointSet {
        let endpoint = |name: &String| match name == Endpoint::Other.label() {
            true => Some(Endpoint::Other),
            false => Endpoint::from_label(name),
        };
        EndpointSet::new(self.endpoints.iter().filter_map(endpoint))
    }

    /// Returns the description as one of a lane of this host, without a memory group: that of
    /// another host is not shared with lanes here.
    pub fn info(&self, id: LaneId) -> LaneInfo {
        LaneInfo {
            id,
            name: self.name.clone(),
            engine: engine_kind(&self.engine),
            models: self.models.clone(),
            names: LaneNames {
                own: self.aliases.clone(),
                shared: self.virtual_names.clone(),
                adapters: self.adapters.clone(),
                derived: self.derived.clone(),
            },
            labels: self.labels.clone(),
            max_context: self.max_context,
            endpoints: self.endpoint_set(),
            slots: self.slots,
            group: 0,
            cost_milli: self.cost_milli,
            is_peer: true,
        }
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let labels = self.labels.iter().flat_map(|(key, value)| [key, value]);
        let lists = self.lists().into_iter().flatten();
        lists.chain(labels).chain([&self.name, &self.engine]).chain(&self.group)
    }

    fn lists(&self) -> [&Vec<String>; 6] {
        [
            &self.models,
            &self.aliases,
            &self.virtual_names,
            &self.adapters,
            &self.derived,
            &self.endpoints,
        ]
    }
}

impl TopologyEvent {
    /// Checks an event of another host, and sorts its lanes.
    pub(crate) fn checked(mut self) -> Result<Self, WireError> {
        if self.version != VERSION {
            return Err(WireError::Version(self.version));
        }
        let HostInfo { id, name, software } = &self.host;
        let lanes = &self.lanes;
        let is_long = |text: &String| text.len() > MAX_TEXT;
        let has_many = |lane: &LaneDescription| {
            lane.labels.len() > MAX_NAMES || lane.lists().iter().any(|list| list.len() > MAX_NAMES)
        };
        let exceeds = lanes.len() > MAX_LANES
            || lanes.iter().any(has_many)
            || [id, name, software].into_iter().any(is_long)
            || lanes.iter().flat_map(LaneDescription::texts).any(is_long);
        if exceeds {
            return Err(WireError::TooLarge);
        }
        if id.is_empty() || lanes.iter().any(|lane| lane.name.is_empty()) {
            return Err(WireError::Invalid { event: "topology" });
        }
        self.lanes.sort_by_key(|lane| lane.id);
        let ids = self.lanes.windows(2).any(|lanes| lanes[0].id == lanes[1].id);
        match ids {
            true => Err(WireError::Invalid { event: "topology" }),
            false => Ok(self),
        }
    }
}

fn engine_label(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Vllm => "vllm",
        EngineKind::LlamaCpp => "llama-cpp",
        EngineKind::External => "external",
        EngineKind::Other => "other",
    }
}

fn engine_kind(label: &str) -> EngineKind {
    let kinds = [EngineKind::Vllm, EngineKind::LlamaCpp, EngineKind::External];
    kinds.into_iter().find(|kind| engine_label(*kind) == label).unwrap_or(EngineKind::Other)
}
