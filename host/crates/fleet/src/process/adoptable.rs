//! Engines that an earlier host has left running, and that this one may take over.

use std::collections::BTreeMap;

use super::explain::explain;
use super::keeper::{Ended, Keeper, Reported};
use super::marker::Marker;
use super::pipes;
use super::proc;
use super::record::{Note, Record, Stage};

/// An engine that an earlier host has left running.
#[derive(Debug)]
pub struct AdoptableEngine {
    pub(super) record: Record,
    /// What it wrote to its outputs while no host was attached.
    pub(super) output: [String; 2],
}

impl AdoptableEngine {
    /// Returns the name of the engine's lane.
    pub fn lane(&self) -> &str {
        &self.record.marker.lane
    }

    /// Returns the process id of the engine's first process.
    pub fn pid(&self) -> Option<u32> {
        self.record.leader.map(|leader| leader.pid)
    }

    /// Returns what the last host has noted of the engine.
    pub(crate) fn note(&self) -> &Note {
        &self.record.note
    }

    /// Returns how long the engine has been running.
    pub(crate) fn age(&self) -> Option<std::time::Duration> {
        self.record.leader.and_then(proc::age)
    }
}

/// The engines that may be taken over, by marker.
pub(super) type Adoptables = BTreeMap<Marker, AdoptableEngine>;

/// Sorts out what the keeper of an earlier host has: returns the engines that are running. What is
/// left of the others is ended by the sweep.
pub(super) fn from_keeper(reported: Vec<Reported>, boot: &str) -> Adoptables {
    let mut adoptable = Adoptables::new();
    for Reported { record, output, ended, .. } in reported {
        if let Some(ended) = ended {
            report_end(&record, &output, ended);
        } else if may_be_adopted(&record, boot) {
            adoptable.insert(record.marker.clone(), AdoptableEngine { record, output });
        }
    }
    adoptable
}

/// Takes over an engine whose host and keeper have both ended, and whose record was found.
pub(super) fn from_record(record: Record, boot: &str, keeper: &Keeper) -> Option<AdoptableEngine> {
    if !may_be_adopted(&record, boot) {
        return None;
    }
    let pipes = pipes::reopen(&record);
    if pipes.is_empty() {
        return None;
    }
    keeper.adopt(&record, &pipes);
    Some(AdoptableEngine { record, output: Default::default() })
}

/// Returns true if the first process of the engine is running, is the one that was recorded, and
/// has loaded the model or is loading it.
fn may_be_adopted(record: &Record, boot: &str) -> bool {
    let is_current = !boot.is_empty() && record.boot == boot;
    let is_running = record.leader.is_some_and(proc::is_running);
    let is_known = !record.note.fingerprint.is_empty() && record.note.port.is_some();
    // A sleeping engine is verified with a baseline, which only its own host has.
    is_current && is_running && is_known && record.note.stage != Stage::Asleep
}

/// Reports an engine that has ended while no host was attached.
fn report_end(record: &Record, output: &[String; 2], Ended(status): Ended) {
    use std::os::unix::process::ExitStatusExt as _;
    let explanation = status.map(|status| explain(std::process::ExitStatus::from_raw(status)));
    let reason = explanation.as_ref().map_or("unknown", |explanation| explanation.reason.as_str());
    let last = output.iter().filter_map(|text| text.lines().last()).next_back().unwrap_or_default();
    tracing::warn!(
        event = "engine_ended_unattended",
        lane = record.marker.lane,
        pid = record.leader.map(|leader| leader.pid),
        reason,
        last_line = last,
        "engine ended while no host was attached"
    );
}
