//! Replay of decision records: whether the same policies still make the same decisions, and what
//! other policies would have decided about the recorded requests.
//!
//! ```text
//!   Record ──> ReplayContext: fleet, facts, the request as far as it was recorded
//!                    │
//!                    ▼         recorded host calls
//!   ReplayChain ──> DryRunChain::replay ──> advice ──> Merge ──> Plan ──> compared with record
//!   (the policies)   │
//!                    └─ host calls that the record cannot answer: the result is unknown
//! ```
//!
//! Records are replayed one at a time, and the size of the resulting [`ReplayReport`] is bounded.

mod chain;
mod context;
mod decision;
mod divergence;
mod missing;
mod report;
mod text;

use pointsman_record::{DecisionRecord, Record};

use self::chain::ReplayChains;
pub use self::chain::{ChainSource, ReplayError};
use self::context::{ReplayContext, Topologies};
use self::decision::replay_decision;
pub use self::divergence::Divergence;
pub use self::report::{
    Agreement, CallDivergence, DecisionDivergence, DivergenceKind, MissingInputCount,
    PolicyStatistics, ReplayEffect, ReplayReport,
};
use crate::experiment::SimulationEnv;

/// Hooks, as they are named in records.
const ON_REQUEST: &str = "on-request";
const ON_FAILURE: &str = "on-failure";

/// A replay of decision records.
#[derive(Debug)]
pub struct Replay<'a> {
    chains: ReplayChains<'a>,
    topologies: Topologies,
    file: String,
    report: ReplayReport,
}

impl<'a> Replay<'a> {
    /// Creates a replay with the policies of `source`. The report lists at most `max_differences`
    /// decisions that differ from the record.
    ///
    /// # Errors
    /// Returns an error if a policy cannot be loaded.
    pub fn new(
        env: &'a SimulationEnv,
        source: ChainSource,
        max_differences: usize,
    ) -> Result<Self, ReplayError> {
        Ok(Self {
            chains: ReplayChains::new(env, source)?,
            topologies: Topologies::default(),
            file: String::new(),
            report: ReplayReport::new(max_differences),
        })
    }

    /// Starts a new file. The topologies of the previous file do not apply to it.
    pub fn start_file(&mut self, name: &str) {
        self.file = name.to_owned();
        self.topologies.clear();
        self.report.files += 1;
    }

    /// Counts a line of the current file that cannot be used.
    pub fn skip_line(&mut self, reason: &str) {
        self.report.skip(format!("{}: {reason}", self.file));
    }

    /// Replays the next record of the current file.
    ///
    /// # Errors
    /// Returns an error if a policy that the record calls for cannot be loaded.
    pub fn push(&mut self, record: Record) -> Result<(), ReplayError> {
        match record {
            Record::Topology(topology) => self.topologies.add(topology),
            Record::Policies(chain) => self.chains.add(chain),
            Record::Decision(decision) => self.decision(&decision)?,
        }
        Ok(())
    }

    fn decision(&mut self, record: &DecisionRecord) -> Result<(), ReplayError> {
        let Some(context) = ReplayContext::new(record, &self.topologies) else {
            let (id, topology) = (&record.request_id, record.topology);
            self.skip_line(&format!(
                "decision of request {id}: topology {topology} is not defined before it"
            ));
            return Ok(());
        };
        let chain = self.chains.for_record(record)?;
        let recorded_chain = self.chains.recorded(record);
        let replayed = replay_decision(record, &context, &chain, recorded_chain, &self.topologies);
        self.report.add(&self.file, record, &context.fleet, replayed);
        Ok(())
    }

    /// Returns the number of decisions that have been replayed.
    pub fn decisions(&self) -> u64 {
        self.report.decisions.all()
    }

    /// Marks the report as incomplete, because the replay ended before the records did.
    pub fn interrupt(&mut self) {
        self.report.interrupted = true;
    }

    /// Returns the report.
    pub fn finish(self) -> ReplayReport {
        self.report
    }
}
