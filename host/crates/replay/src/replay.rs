//! A replay, record by record.

use std::sync::Arc;

use pointsman_policy::Runtime;
use pointsman_record::{DecisionRecord, Explanation, Record};

use crate::chain::{ChainSource, ReplayChains, ReplayError};
use crate::context::{ReplayContext, Topologies};
use crate::decision::replay_decision;
use crate::report::ReplayReport;
use crate::trace::trace;

/// A replay of decision records.
#[derive(Debug)]
pub struct Replay<'a> {
    chains: ReplayChains<'a>,
    topologies: Topologies,
    file: String,
    report: ReplayReport,
    /// The request whose decision is traced; all others are skipped.
    traced: Option<String>,
    trace: Option<Explanation>,
}

impl<'a> Replay<'a> {
    /// Creates a replay with the policies of `source`, which run in `runtime`. The runtime has to
    /// meter fuel, because results must not depend on the speed of the machine. The report lists at
    /// most `max_differences` decisions that differ from the record.
    ///
    /// # Errors
    /// Returns an error if a policy cannot be loaded.
    pub fn new(
        runtime: &'a Arc<Runtime>,
        source: ChainSource,
        max_differences: usize,
    ) -> Result<Self, ReplayError> {
        Ok(Self {
            chains: ReplayChains::new(runtime, source)?,
            topologies: Topologies::default(),
            file: String::new(),
            report: ReplayReport::new(max_differences),
            traced: None,
            trace: None,
        })
    }

    /// Replays only the decision about this request, and traces it.
    pub fn trace_request(&mut self, id: &str) {
        self.traced = Some(id.to_owned());
    }

    /// Returns the trace of the request, once its record was replayed.
    pub fn trace(&self) -> Option<&Explanation> {
        self.trace.as_ref()
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
        if self.traced.as_ref().is_some_and(|id| **id != *record.request_id) {
            return Ok(());
        }
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
        if self.traced.is_some() {
            self.trace = Some(trace(record, &context, &replayed));
        }
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
