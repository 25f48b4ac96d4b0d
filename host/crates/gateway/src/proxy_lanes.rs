//! The lanes whose engines a proxy can reach.

use std::collections::HashMap;

use pointsman_domain::{LaneId, RequestView as _, Topology};
use pointsman_fleet::{ExternalAddress, FleetSpec, LaneSpec};
use pointsman_openai::Request;

/// What a proxy has to know of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProxyLane {
    /// What requests to the engine have.
    address: ExternalAddress,
    engine_model: Option<String>,
    stream_usage: bool,
}

/// The lanes whose engines a proxy can reach, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyLanes(HashMap<String, ProxyLane>);

impl ProxyLanes {
    /// Returns the lanes that the host does not run.
    pub fn from_spec(spec: &FleetSpec) -> Self {
        let entry = |lane: &LaneSpec| {
            let address = lane.engine.external_address()?;
            let (engine_model, stream_usage) = (lane.engine_model.clone(), lane.stream_usage);
            Some((lane.name.clone(), ProxyLane { address, engine_model, stream_usage }))
        };
        Self(spec.lanes.iter().filter_map(entry).collect())
    }

    /// Returns these lanes, and those of `other`, which win.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.0.extend(other.0.iter().map(|(name, lane)| (name.clone(), lane.clone())));
        all
    }

    /// Returns the host and the port of the engine of a lane.
    pub(crate) fn endpoint(&self, lane: &str) -> Option<&str> {
        self.0.get(lane).map(|lane| lane.address.authority.as_str())
    }

    /// Returns true if a request is the same for the engines of two lanes, so that a proxy can send
    /// it to either.
    pub(crate) fn are_alike(
        &self,
        request: &Request,
        topology: &Topology,
        (one, two): (LaneId, LaneId),
    ) -> bool {
        let name = |lane| topology.name(lane);
        let (Some(a), Some(b)) = (self.0.get(name(one)), self.0.get(name(two))) else {
            return false;
        };
        let model = |lane, of: &ProxyLane| {
            let adapter = topology.adapter(lane, request.model()).map(str::to_owned);
            let model = adapter.or_else(|| of.engine_model.clone());
            model.or_else(|| topology.model_of(lane, request.model()).map(str::to_owned))
        };
        let serving = |lane| topology.serving(lane, request.endpoint());
        // With the same key, or none: the key of one engine must not get to another one.
        let b_there =
            ExternalAddress { authority: b.address.authority.clone(), ..a.address.clone() };
        b_there == b.address
            && a.stream_usage == b.stream_usage
            && model(one, a) == model(two, b)
            && serving(one) == serving(two)
    }
}
