//! The fleet view: an immutable snapshot of the states and statistics of all lanes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, EndpointSet, Serving};
pub use crate::lane_state::{EngineKind, LaneState};
use crate::model_names::{LaneNames, ModelNames, NameKind};

/// A fraction in thousandths.
pub type Permille = u16;

/// The id of a lane: a small number that a lane keeps as long as it exists. The ids of lanes that
/// the operator has removed are used again, once nothing refers to them any more.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LaneId(pub u32);

impl LaneId {
    /// Returns the position of the lane in tables that have a row for every id.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The static description of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneInfo {
    /// The id.
    pub id: LaneId,
    /// Name of the lane.
    pub name: String,
    /// Kind of the engine.
    pub engine: EngineKind,
    /// Model names that the lane serves.
    pub models: Vec<String>,
    /// Further names that the lane answers to. Policies do not see them.
    #[serde(default, skip_serializing_if = "LaneNames::is_empty")]
    pub names: LaneNames,
    /// Labels set by the operator.
    pub labels: Vec<(String, String)>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// Endpoints that the engine has.
    #[serde(default = "EndpointSet::all", skip_serializing_if = "EndpointSet::is_all")]
    pub endpoints: EndpointSet,
    /// Number of requests that the lane serves at a time.
    pub slots: u32,
    /// Memory group: lanes with the same number share memory; 0 for a lane with its own memory.
    pub group: u32,
    /// Relative price of a thousand tokens, in thousandths.
    pub cost_milli: u32,
    /// The lane is one of another host, which decides about its requests as well.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub is_peer: bool,
}

/// Statistics of a lane at one time. Units are those of `lane-stat` in the WIT. The serde form
/// leaves zeros out.
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

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl LaneStat {
    /// Returns the statistics of an idle lane in `state`.
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

    /// Returns the estimated time until a request sent to this lane now would start, in
    /// milliseconds.
    pub fn start_in_ms(&self) -> u64 {
        u64::from(self.est_wait_ms) + u64::from(self.ready_in_ms)
    }
}

/// The table of lanes. Immutable: a change of lanes creates a new topology. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Topology {
    generation: u64,
    lanes: Arc<[LaneInfo]>,
    models: Arc<ModelNames<LaneId>>,
    by_name: Arc<HashMap<String, LaneId>>,
    /// The only candidate of a request that another one has bound to a lane.
    only: Option<[LaneId; 1]>,
    /// For each lane, whether it must not serve the request; `None` if all may.
    barred: Option<Arc<[bool]>>,
}

impl Topology {
    /// Creates a topology and sets the ids of `lanes` to their positions.
    pub fn new(generation: u64, mut lanes: Vec<LaneInfo>) -> Self {
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.id = LaneId(u32::try_from(index).unwrap_or(u32::MAX));
        }
        Self::with_ids(generation, lanes)
    }

    /// Creates a topology of lanes that have ids. Lanes that were removed leave gaps. Of lanes with
    /// the same id, only the first one counts.
    pub fn with_ids(generation: u64, mut lanes: Vec<LaneInfo>) -> Self {
        lanes.sort_by_key(|lane| lane.id);
        lanes.dedup_by_key(|lane| lane.id);
        let mut models = ModelNames::default();
        let mut by_name = HashMap::new();
        for lane in &lanes {
            by_name.insert(lane.name.clone(), lane.id);
            lane.models.iter().for_each(|model| models.add(NameKind::Listed, model, lane.id));
            models.add(NameKind::Own, &lane.name, lane.id);
            let LaneNames { own, shared: _, adapters, derived } = &lane.names;
            own.iter().for_each(|name| models.add(NameKind::Own, name, lane.id));
            for adapter in adapters {
                models.add(NameKind::Adapter, adapter, lane.id);
                models.add(NameKind::Own, &adapter_of_lane(&lane.name, adapter), lane.id);
            }
            derived.iter().for_each(|name| models.add(NameKind::Derived, name, lane.id));
        }
        let (lanes, models, by_name) = (lanes.into(), Arc::new(models), Arc::new(by_name));
        Self { generation, lanes, models, by_name, only: None, barred: None }
    }

    /// Returns the topology for a request that only one of its candidates may serve. Without
    /// effect on models to which the lane does not answer.
    #[must_use]
    pub fn with_only(&self, lane: LaneId) -> Self {
        Self { only: Some([lane]), ..self.clone() }
    }

    /// Returns the topology for a request that some lanes must not serve: they serve no endpoint.
    /// Lanes that must not serve it already stay barred.
    #[must_use]
    pub fn without(&self, is_barred: impl Fn(&LaneInfo) -> bool) -> Self {
        let is_barred = |lane: &LaneInfo| self.is_barred(lane.id) || is_barred(lane);
        Self { barred: Some(self.lanes.iter().map(is_barred).collect()), ..self.clone() }
    }

    /// Returns true if the request must not be served by a lane.
    pub fn is_barred(&self, lane: LaneId) -> bool {
        let Some(barred) = self.barred.as_deref() else { return false };
        let place = place_of(&self.lanes, lane, |lane| lane.id);
        place.and_then(|place| barred.get(place)).copied().unwrap_or(false)
    }

    /// Returns a handle that tells whether anything still refers to the lanes of this topology.
    pub fn usage(&self) -> TopologyUsage {
        TopologyUsage(Arc::downgrade(&self.lanes))
    }

    /// Returns true if a lane could serve an endpoint, and must not do so for this request.
    pub fn is_barred_for(&self, lane: LaneId, endpoint: Endpoint) -> bool {
        let serving = |lane: &LaneInfo| lane.endpoints.serving(endpoint) != Serving::Not;
        self.is_barred(lane) && self.lane(lane).is_some_and(serving)
    }

    /// Returns the generation, which changes with every new topology.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns all lanes in id order.
    pub fn lanes(&self) -> &[LaneInfo] {
        &self.lanes
    }

    /// Returns the lane with this id.
    pub fn lane(&self, id: LaneId) -> Option<&LaneInfo> {
        self.lanes.get(place_of(&self.lanes, id, |lane| lane.id)?)
    }

    /// Returns the id of the lane with this name.
    pub fn find(&self, name: &str) -> Option<LaneId> {
        self.by_name.get(name).copied()
    }

    /// Returns the name of a lane for messages; never empty.
    pub fn name(&self, id: LaneId) -> &str {
        self.lane(id).map_or("unknown lane", |lane| lane.name.as_str())
    }

    /// Returns how a lane serves an endpoint.
    pub fn serving(&self, lane: LaneId, endpoint: Endpoint) -> Serving {
        if self.is_barred(lane) {
            return Serving::Not;
        }
        self.lane(lane).map_or(Serving::Not, |lane| lane.endpoints.serving(endpoint))
    }

    /// Returns true if a lane exists and serves an endpoint, itself or by translation.
    pub fn can_serve(&self, lane: LaneId, endpoint: Endpoint) -> bool {
        self.serving(lane, endpoint) != Serving::Not
    }

    /// Returns the lanes that answer to a model name, in id order, whatever endpoints they have.
    pub fn candidates(&self, model: &str) -> &[LaneId] {
        let lanes = self.models.resolve(model).map_or(&[][..], |(_, lanes)| lanes);
        match &self.only {
            Some(only) if lanes.contains(&only[0]) => only,
            Some(_) | None => lanes,
        }
    }

    /// Returns the lanes that answer to a model name and can serve an endpoint, in id order.
    pub fn candidates_for(
        &self,
        model: &str,
        endpoint: Endpoint,
    ) -> impl Iterator<Item = LaneId> + use<'_> {
        let lanes = self.candidates(model).iter().copied();
        lanes.filter(move |lane| self.can_serve(*lane, endpoint))
    }

    /// Returns the name by which the lanes answer to a model name that a client wrote: the name
    /// itself, or another spelling of it. There are only as many of these as lanes have names.
    pub fn resolved(&self, model: &str) -> Option<&str> {
        self.models.resolve(model).map(|(name, _)| name)
    }

    /// Returns the adapter of a lane that a model name stands for; `None` if it stands for the
    /// lane's own model.
    pub fn adapter(&self, lane: LaneId, model: &str) -> Option<&str> {
        let LaneInfo { name, names: LaneNames { adapters, .. }, .. } = self.lane(lane)?;
        if adapters.is_empty() {
            return None;
        }
        let model = self.resolved(model)?;
        let of_lane = model.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(':'));
        let is = |wanted: &str| adapters.iter().find(|adapter| *adapter == wanted);
        of_lane.and_then(is).or_else(|| is(model)).map(String::as_str)
    }

    /// Returns the model of a lane that a request is for whose engine is not to be asked for one
    /// name only: the spelling that the lane lists, or its first model if the client used another
    /// name of it or of the host. `None` if that is `model` itself, or not known.
    pub fn model_of(&self, lane: LaneId, model: &str) -> Option<&str> {
        let name = self.resolved(model)?;
        let lane = self.lane(lane)?;
        let is_own = |model: &&String| !lane.names.shared.contains(model);
        let mut own = lane.models.iter().filter(is_own).map(String::as_str);
        let listed = own.clone().find(|own| *own == name);
        // The name of a lane is only the default of its models, and unknown to its engine.
        let first = own.next().filter(|first| *first != lane.name);
        listed.or(first).filter(|wanted| *wanted != model)
    }

    /// Returns the names that are shown to clients, sorted: the models of all lanes, and the names
    /// of the lanes.
    pub fn models(&self) -> Vec<&str> {
        let lanes = self.lanes.iter().map(|lane| lane.name.as_str());
        let mut models: Vec<&str> = self.models.names(NameKind::Listed).chain(lanes).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Returns the lanes with a label, in id order.
    pub fn with_label(&self, key: &str, value: &str) -> Vec<LaneId> {
        let has = |lane: &&LaneInfo| lane.labels.iter().any(|(k, v)| k == key && v == value);
        self.lanes.iter().filter(has).map(|lane| lane.id).collect()
    }
}

/// Tells whether a topology is in use: by the current view, by a request that was decided with it,
/// or by a lease.
#[derive(Debug, Clone)]
pub struct TopologyUsage(Weak<[LaneInfo]>);

impl TopologyUsage {
    /// Returns true if the topology, or one of its clones, still exists.
    pub fn is_in_use(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// Returns the place of a lane in a list in the order of ids. That is its id, unless lanes before
/// it have been removed.
fn place_of<T>(list: &[T], id: LaneId, id_of: impl Fn(&T) -> LaneId) -> Option<usize> {
    let last = id.index().min(list.len().checked_sub(1)?);
    if id_of(&list[last]) == id {
        return Some(last);
    }
    list[..last].binary_search_by_key(&id, id_of).ok()
}

/// Returns the name of an adapter that says which lane has it.
pub fn adapter_of_lane(lane: &str, adapter: &str) -> String {
    format!("{lane}:{adapter}")
}

/// A snapshot of all lanes. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct FleetView {
    /// The table of lanes.
    pub topology: Arc<Topology>,
    /// Statistics of the lanes, in id order, without `cached` below.
    stats: Arc<[LaneStat]>,
    /// Cached tokens of one request, in id order. Apart from the statistics, which all requests
    /// share.
    cached: Box<[(LaneId, u32)]>,
}

impl FleetView {
    /// Creates a view with the statistics of the lanes, in id order.
    pub fn new(topology: Arc<Topology>, stats: Vec<LaneStat>) -> Self {
        Self { topology, stats: stats.into(), cached: Box::default() }
    }

    /// Creates a view in which every lane is idle in `state`.
    pub fn idle(topology: Arc<Topology>, state: LaneState) -> Self {
        let stats = topology
            .lanes()
            .iter()
            .map(|lane| LaneStat::idle(lane.id, state, lane.slots))
            .collect();
        Self::new(topology, stats)
    }

    /// Returns the statistics of one lane.
    pub fn stat(&self, id: LaneId) -> Option<LaneStat> {
        let place = place_of(&self.stats, id, |stat| stat.id)?;
        self.stats.get(place).map(|stat| self.with_overlay(*stat))
    }

    /// Returns the statistics of all lanes, in id order.
    pub fn stats(&self) -> impl Iterator<Item = LaneStat> + '_ {
        self.stats.iter().map(|stat| self.with_overlay(*stat))
    }

    /// Returns the statistics of all lanes for changes. Copies them if they are shared.
    pub fn stats_mut(&mut self) -> &mut [LaneStat] {
        Arc::make_mut(&mut self.stats)
    }

    /// Returns the view for one request with these numbers of cached tokens. Shares everything
    /// else.
    #[must_use]
    pub fn with_cached(&self, mut cached: Vec<(LaneId, u32)>) -> Self {
        cached.sort_unstable_by_key(|(lane, _)| *lane);
        Self { cached: cached.into(), ..self.clone() }
    }

    fn with_overlay(&self, mut stat: LaneStat) -> LaneStat {
        if let Ok(at) = self.cached.binary_search_by_key(&stat.id, |(lane, _)| *lane) {
            stat.cached_tokens = self.cached[at].1;
        }
        stat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str, models: &[&str], names: LaneNames) -> LaneInfo {
        LaneInfo {
            id: LaneId(0),
            name: name.to_owned(),
            engine: EngineKind::External,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            names,
            labels: Vec::new(),
            max_context: 0,
            endpoints: EndpointSet::all(),
            slots: 1,
            group: 0,
            cost_milli: 0,
            is_peer: false,
        }
    }

    #[test]
    fn topology_of_a_bound_request_has_one_candidate() {
        let lanes = ["a", "b"].map(|name| lane(name, &["m"], LaneNames::default()));
        let topology = Topology::new(1, lanes.into());
        let only = topology.with_only(LaneId(1));
        assert_eq!(only.candidates("m"), [LaneId(1)]);
        assert_eq!(only.candidates("a"), [LaneId(0)]);
        assert_eq!(topology.candidates("m").len(), 2);
        assert_eq!(topology.with_only(LaneId(9)).candidates("m").len(), 2);
    }

    #[test]
    fn lanes_keep_their_ids_when_others_are_removed() {
        let all: Vec<LaneInfo> = (0..6u32)
            .map(|id| LaneInfo {
                id: LaneId(id),
                ..lane(&format!("l{id}"), &["m"], LaneNames::default())
            })
            .collect();
        for removed in 0u32..64 {
            let is_left = |id: u32| removed & (1 << id) == 0;
            let left: Vec<LaneInfo> =
                all.iter().rev().filter(|lane| is_left(lane.id.0)).cloned().collect();
            let topology = Topology::with_ids(2, left);
            let barred = topology.without(|lane| lane.id.0.is_multiple_of(2));
            let view = FleetView::idle(Arc::new(topology.clone()), LaneState::Ready);
            for id in 0..7 {
                let expected = (id < 6 && is_left(id)).then_some(LaneId(id));
                assert_eq!(topology.lane(LaneId(id)).map(|lane| lane.id), expected, "{removed:b}");
                assert_eq!(view.stat(LaneId(id)).map(|stat| stat.id), expected, "{removed:b}");
                assert_eq!(topology.find(&format!("l{id}")), expected, "{removed:b}");
                let is_barred = expected.is_some() && id.is_multiple_of(2);
                assert_eq!(barred.is_barred(LaneId(id)), is_barred, "{removed:b}");
            }
        }
    }

    #[test]
    fn topology_is_in_use_while_a_clone_exists() {
        let topology = Arc::new(Topology::new(1, vec![lane("a", &["m"], LaneNames::default())]));
        let usage = topology.usage();
        let of_request = Arc::new(topology.with_only(LaneId(0)));
        drop(topology);
        assert!(usage.is_in_use());
        drop(of_request);
        assert!(!usage.is_in_use());
    }

    #[test]
    fn engines_are_asked_for_models_that_they_know() {
        let shared = || vec!["gpt-4o".to_owned()];
        let names = |adapters| LaneNames { shared: shared(), adapters, ..LaneNames::default() };
        let topology = Topology::new(
            1,
            vec![
                lane("api", &["Org-1/Big", "Small", "gpt-4o"], names(vec!["sql".to_owned()])),
                lane("any", &["any", "gpt-4o"], names(Vec::new())),
                lane("other", &["Elsewhere"], LaneNames::default()),
            ],
        );
        for (lane, model, adapter, of_lane) in [
            (0, "Small", None, None),
            (0, "x/Small", None, Some("Small")),
            (0, "Big", None, Some("Org-1/Big")),
            (0, "api", None, Some("Org-1/Big")),
            (0, "gpt-4o", None, Some("Org-1/Big")),
            (0, "api:sql", Some("sql"), Some("Org-1/Big")),
            (0, "x/sql", Some("sql"), Some("Org-1/Big")),
            // As the fallback of a request for another lane.
            (0, "Elsewhere", None, Some("Org-1/Big")),
            // Set by a policy.
            (0, "unknown", None, None),
            // A lane that lists nothing serves what its clients ask for.
            (1, "any", None, None),
            (1, "gpt-4o", None, None),
            (1, "any:sql", None, None),
        ] {
            let lane = LaneId(lane);
            let found = (topology.adapter(lane, model), topology.model_of(lane, model));
            assert_eq!(found, (adapter, of_lane), "{lane} {model}");
        }
    }
}
