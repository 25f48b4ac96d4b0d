//! Ends the engines that an earlier host left running.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use pointsman_files::{is_temporary, read_private};

use super::KILL_TIMEOUT;
use super::cgroup::{self, Cgroup};
use super::marker::{Marker, unescape};
use super::proc::{self, Environ, ProcessSnapshot};
use super::record::{self, Record};
use super::scratch;
use super::state_dir::{StateDir, remove_record};
use super::tracker::{ProcessTracker, Provenance, describe};

/// The grace period of engines of an earlier host. Short, because no client waits for their
/// responses any more.
const GRACE: Duration = Duration::from_secs(3);

/// An engine that an earlier host left running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptEngine {
    /// The lane of the engine.
    pub lane: String,
    /// The process id of the leader, if known.
    pub pid: Option<u32>,
    /// What became of the engine.
    pub outcome: SweepOutcome,
    /// A summary for operators.
    pub summary: String,
}

/// What became of an engine that an earlier host left running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepOutcome {
    /// No process of the engine was left.
    AlreadyEnded,
    /// The engine's processes were ended.
    Ended,
    /// Processes survived SIGKILL, and still hold the engine's memory.
    Survived,
}

impl StateDir {
    /// Ends the engines of earlier hosts that used this state directory, except those that may be
    /// taken over. To be called before the
    /// first engine is started. Blocks for at most 13 s.
    ///
    /// Touches only processes with a marker of this directory, processes in a control group that is
    /// named after it, and processes that one of its records names: by process id and start time in
    /// the current boot, or as members of the group of a leader that has ended, in which a process
    /// still has the marker or writes to the engine's pipes.
    pub fn sweep(&self) -> Vec<SweptEngine> {
        let leftovers = self.leftovers();
        let swept = thread::scope(|scope| {
            let sweeps: Vec<_> = leftovers
                .into_iter()
                .map(|leftover| scope.spawn(|| self.sweep_one(leftover)))
                .collect();
            sweeps.into_iter().filter_map(|sweep| sweep.join().ok()).collect()
        });
        if let Some(keeper) = self.keeper() {
            keeper.retain(|marker| self.is_running(marker) || self.may_adopt(marker));
        }
        swept
    }

    /// Returns the engines of earlier hosts, with their record files.
    fn leftovers(&self) -> Vec<(Record, Option<PathBuf>)> {
        let mut leftovers: BTreeMap<Marker, (Record, Option<PathBuf>)> = BTreeMap::new();
        for (mut record, file) in self.records() {
            if record.boot != self.boot() || record.boot.is_empty() {
                // Process ids and inodes of an earlier boot belong to something else today.
                (record.leader, record.pipes, record.cgroup) = (None, Vec::new(), None);
                record.shared.clear();
            }
            leftovers.insert(record.marker.clone(), (record, Some(file)));
        }
        for process in proc::all() {
            if let Environ::Marked(marker) = proc::environ(process.id.pid)
                && marker.state_dir == self.id()
            {
                leftovers
                    .entry(marker)
                    .or_insert_with_key(|marker| (self.unrecorded(marker, &process), None));
            }
        }
        // Control groups are named after lanes, so there is at most one per lane.
        for cgroup in self.leftover_cgroups() {
            let lane = self.lane_of(&cgroup);
            let dir = Some(cgroup.dir().to_owned());
            let known = leftovers.values_mut().find(|(record, _)| record.marker.lane == lane);
            match known {
                Some((record, _)) => record.cgroup = dir,
                None => {
                    let record = Record { cgroup: dir, ..self.unnamed(self.new_marker(&lane)) };
                    leftovers.insert(record.marker.clone(), (record, None));
                }
            }
        }
        leftovers.retain(|marker, _| !self.is_running(marker) && !self.may_adopt(marker));
        leftovers.into_values().collect()
    }

    /// Returns the records of the directory, and removes what is not one.
    pub(super) fn records(&self) -> Vec<(Record, PathBuf)> {
        let files =
            self.engines().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let mut records = Vec::new();
        for file in files.map(|entry| entry.path()) {
            if is_temporary(&file) {
                // An earlier host was killed while it wrote a record.
                remove_record(&file);
                continue;
            }
            let content = read_private(&file, record::MAX_BYTES).ok();
            match content.as_deref().and_then(Record::parse) {
                Some(record) if record.marker.state_dir == self.id() => {
                    records.push((self.trusted(record), file));
                }
                Some(_) => {
                    tracing::warn!(
                        file = %file.display(),
                        "removing engine state file of another state directory"
                    );
                    remove_record(&file);
                }
                None => {
                    tracing::warn!(file = %file.display(), "removing invalid engine state file");
                    remove_record(&file);
                }
            }
        }
        records
    }

    /// Removes a control group from a record that cannot have been created for one of this
    /// directory's engines: all processes in it would be ended.
    fn trusted(&self, mut record: Record) -> Record {
        let prefix = self.cgroup_prefix();
        let is_own = |group: &PathBuf| {
            group.starts_with(cgroup::ROOT)
                && group.components().all(|part| !matches!(part, Component::ParentDir))
                && group.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        };
        record.cgroup = record.cgroup.filter(is_own);
        record
    }

    /// Returns the populated control groups of this directory's engines, and removes the empty
    /// ones.
    fn leftover_cgroups(&self) -> Vec<Cgroup> {
        let dirs =
            self.cgroups().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let prefix = self.cgroup_prefix();
        dirs.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| Cgroup::from_dir(entry.path()))
            .filter(|cgroup| !self.uses(cgroup))
            .filter(|cgroup| {
                // Empty groups do no harm, but clutter the listings of tools.
                cgroup.remove();
                cgroup.populated()
            })
            .collect()
    }

    fn lane_of(&self, cgroup: &Cgroup) -> String {
        let name = cgroup.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_prefix(&self.cgroup_prefix()).and_then(unescape).unwrap_or(name)
    }

    fn unrecorded(&self, marker: &Marker, process: &ProcessSnapshot) -> Record {
        let folder = scratch::find(self.scratch(), marker);
        Record { program: process.name.clone(), folder, ..self.unnamed(marker.clone()) }
    }

    fn unnamed(&self, marker: Marker) -> Record {
        Record::new(marker, self.boot())
    }

    fn sweep_one(&self, (record, file): (Record, Option<PathBuf>)) -> SweptEngine {
        let (lane, leader, program) =
            (record.marker.lane.clone(), record.leader, record.program.clone());
        // Events of the tracker name the lane, as they do when the lane's supervisor ends an
        // engine.
        let span = tracing::error_span!("lane", lane);
        let _entered = span.enter();
        let mut tracker = ProcessTracker::new(record, Provenance::Recorded);
        let found = tracker.scan();
        let oldest = found.iter().map(|process| process.id).min_by_key(|id| id.start);
        // Also if no process is left, to clean up.
        let ended = tracker.end(GRACE, KILL_TIMEOUT);
        let program = if program.is_empty() { "engine".to_owned() } else { format!("`{program}`") };
        let subject = match leader {
            Some(leader) => format!("{program} (process {})", leader.pid),
            None => program,
        };
        let age = oldest
            .and_then(proc::age)
            .map(|age| format!(" after running for {} s", age.as_secs()))
            .unwrap_or_default();
        let (outcome, summary) = match ended {
            Ok(()) if found.is_empty() => {
                (SweepOutcome::AlreadyEnded, format!("{subject} had already ended"))
            }
            Ok(()) => {
                (SweepOutcome::Ended, format!("{subject} was ended{age}: {}", describe(&found)))
            }
            Err(survivors) => {
                let timeout = KILL_TIMEOUT.as_secs();
                let survivors = describe(&survivors);
                let summary =
                    format!("{subject} is still alive {timeout} s after SIGKILL: {survivors}");
                (SweepOutcome::Survived, summary)
            }
        };
        let pid = leader.map(|leader| leader.pid);
        match outcome {
            SweepOutcome::AlreadyEnded | SweepOutcome::Ended => {
                tracing::warn!(
                    event = "orphan_ended",
                    lane,
                    pid,
                    ?outcome,
                    "swept engine of an earlier host: {summary}"
                );
                file.iter().for_each(|file| remove_record(file));
            }
            // The record stays, so that the next host tries again.
            SweepOutcome::Survived => {
                tracing::error!(
                    pid,
                    ?outcome,
                    "failed to end engine of an earlier host: {summary}"
                );
            }
        }
        SweptEngine { lane, pid, outcome, summary }
    }
}
