//! Looks up one decision in decision records.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Result, bail};
use pointsman_domain::ChainInfo;
use pointsman_files::open_regular;
use pointsman_record::{DecisionRecord, Record, TopologyRecord, records};

use crate::replay::record_files;

/// A recorded decision with what it refers to.
#[derive(Debug)]
pub(super) struct RecordedDecision {
    pub(super) decision: Box<DecisionRecord>,
    pub(super) topology: TopologyRecord,
    pub(super) chain: Option<ChainInfo>,
}

/// Finds the decision about the request `id`. Lines that are not records are skipped.
pub(super) fn find(paths: &[PathBuf], id: &str) -> Result<RecordedDecision> {
    for file in record_files(paths)? {
        let mut topologies = HashMap::new();
        let mut chains = HashMap::new();
        for record in records(BufReader::new(open_regular(&file)?)).filter_map(Result::ok) {
            match record {
                Record::Topology(topology) => {
                    topologies.insert(topology.generation, topology);
                }
                Record::Policies(chain) => {
                    chains.insert(chain.chain.clone(), chain);
                }
                Record::Decision(decision) if *decision.request_id == *id => {
                    let Some(topology) = topologies.remove(&decision.topology) else {
                        bail!("{}: the lanes of request `{id}` are not recorded", file.display());
                    };
                    let chain = decision.chain.as_deref().and_then(|chain| chains.remove(chain));
                    return Ok(RecordedDecision { decision, topology, chain });
                }
                Record::Decision(_) => {}
            }
        }
    }
    bail!("no record of request `{id}`");
}
