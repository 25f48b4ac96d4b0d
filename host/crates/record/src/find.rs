//! Finds the record of one request.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

use pointsman_domain::{ChainInfo, FleetView, LaneInfo, LaneStat, LaneState, Topology};
use serde_json::json;

use crate::format::{DecisionRecord, Record, TopologyRecord};
use crate::read::selected_records;

/// A recorded decision with what it refers to.
#[derive(Debug)]
pub struct RecordedDecision {
    /// The decision.
    pub decision: Box<DecisionRecord>,
    /// The lanes that it refers to.
    pub topology: TopologyRecord,
    /// The policies that made it.
    pub chain: Option<ChainInfo>,
}

/// The lanes that a recorded decision refers to are not recorded before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the lanes of request `{0}` are not recorded")]
pub struct MissingTopology(pub String);

/// Finds the last decision about the request `id` in a file of records; `None` if it has none.
/// Lines that are not records are skipped.
///
/// # Errors
/// If the file does not have the lanes of the decision before it.
pub fn find(input: impl BufRead, id: &str) -> Result<Option<RecordedDecision>, MissingTopology> {
    let written = json!(id).to_string();
    // Most lines of a file are decisions about other requests, which need not be parsed.
    let is_wanted = |line: &[u8]| match std::str::from_utf8(line) {
        Ok(line) => !line.contains("\"kind\":\"decision\"") || line.contains(&written),
        Err(_) => false,
    };
    let (mut topologies, mut chains) = (HashMap::new(), HashMap::new());
    let mut found = None;
    for record in selected_records(input, is_wanted).filter_map(Result::ok) {
        match record {
            Record::Topology(topology) => {
                topologies.insert(topology.generation, topology);
            }
            Record::Policies(chain) => {
                chains.insert(chain.chain.clone(), chain);
            }
            Record::Decision(decision) if *decision.request_id == *id => {
                let topology = topologies.get(&decision.topology).cloned();
                let topology = topology.ok_or_else(|| MissingTopology(id.to_owned()))?;
                let chain = decision.chain.as_deref().and_then(|chain| chains.get(chain)).cloned();
                found = Some(RecordedDecision { decision, topology, chain });
            }
            Record::Decision(_) => {}
        }
    }
    Ok(found)
}

impl DecisionRecord {
    /// Returns a view of lanes with these statistics as the policies of the request saw it: lanes
    /// that guards forbid cannot serve it, and a lane without statistics is down.
    pub fn view_of(&self, topology: &Arc<Topology>, stats: &[LaneStat]) -> FleetView {
        let stat = |lane: &LaneInfo| {
            let found = stats.iter().find(|stat| stat.id == lane.id).copied();
            found.unwrap_or_else(|| LaneStat::idle(lane.id, LaneState::Down, lane.slots))
        };
        let stats = topology.lanes().iter().map(stat).collect();
        let view = FleetView::new(Arc::clone(topology), stats);
        match &self.guards {
            Some(constraint) => constraint.restrict(&view),
            None => view,
        }
    }
}
