//! Decision records, asked again: what other policies would have decided about the requests that were there, and whether the same
//! ones decide the same.
//!
//! ```text
//!   Record ──> Scene: fleet, facts, what is known of the request
//!                │
//!                ▼           answers of the record
//!   Cast ──> Rehearsal::replay ──> advice ──> Merge ──> Plan ──> same as then, or what is otherwise
//!   (who is asked)     │
//!                      └─ questions that nobody can answer: it cannot be known
//! ```
//!
//! One record at a time goes in, and a [`Report`] of bounded size comes out.

mod again;
mod cast;
mod difference;
mod gaps;
mod report;
mod scene;
mod text;

use pointsman_record::{DecisionRecord, Record};

use self::again::again;
use self::cast::Casting;
pub use self::cast::{ReplayError, Who};
pub use self::difference::Difference;
pub use self::report::{Count, Effect, Kind, Lack, OfPolicy, Otherwise, Report, Shown};
use self::scene::{Scene, Topologies};
use crate::experiment::SimulationEnv;

/// Hooks, as records name them.
const ON_REQUEST: &str = "on-request";
const ON_FAILURE: &str = "on-failure";

/// Asks again what is in records.
#[derive(Debug)]
pub struct Replay<'a> {
    casting: Casting<'a>,
    topologies: Topologies,
    file: String,
    report: Report,
}

impl<'a> Replay<'a> {
    /// Ask `who`, and keep so many decisions that are made otherwise whole.
    ///
    /// # Errors
    /// When a policy cannot be used.
    pub fn new(
        stage: &'a SimulationEnv,
        who: Who,
        differences: usize,
    ) -> Result<Self, ReplayError> {
        Ok(Self {
            casting: Casting::new(stage, who)?,
            topologies: Topologies::default(),
            file: String::new(),
            report: Report::new(differences),
        })
    }

    /// Another file begins.
    pub fn file(&mut self, name: &str) {
        self.file = name.to_owned();
        self.topologies.clear();
        self.report.files += 1;
    }

    /// A line of the file cannot be used.
    pub fn skipped(&mut self, what: &str) {
        self.report.skip(format!("{}: {what}", self.file));
    }

    /// The next record of the file.
    ///
    /// # Errors
    /// When the policies that it calls for cannot be used.
    pub fn take(&mut self, record: Record) -> Result<(), ReplayError> {
        match record {
            Record::Topology(topology) => self.topologies.add(topology),
            Record::Policies(chain) => self.casting.add(chain),
            Record::Decision(decision) => self.decision(&decision)?,
        }
        Ok(())
    }

    fn decision(&mut self, record: &DecisionRecord) -> Result<(), ReplayError> {
        let Some(scene) = Scene::of(record, &self.topologies) else {
            let (id, topology) = (&record.request_id, record.topology);
            self.skipped(&format!(
                "the decision about request {id} names lanes (topology {topology}) that do not stand before it"
            ));
            return Ok(());
        };
        let cast = self.casting.cast(record)?;
        let made = again(record, &scene, &cast, self.casting.chain(record), &self.topologies);
        self.report.add(&self.file, record, &scene.fleet, made);
        Ok(())
    }

    /// How many decisions were made again.
    pub fn decisions(&self) -> u64 {
        self.report.decisions.all()
    }

    /// Before the end of the records: somebody does not want to wait for it.
    pub fn stops(&mut self) {
        self.report.stopped = true;
    }

    /// What came of it.
    pub fn finish(self) -> Report {
        self.report
    }
}
