//! Ending what an earlier host left behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use super::KILL_LIMIT;
use super::cgroup::Cgroup;
use super::home::{Home, remove};
use super::hunt::{Hunt, Knows, names};
use super::marker::{Marker, unescape};
use super::proc::{self, Environ, Seen};
use super::record::Record;
use super::scratch;

/// How long engines of an earlier host may take to end by themselves: nobody waits for their answers any more.
const GRACE: Duration = Duration::from_secs(3);

/// One engine of an earlier host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The lane that it was for.
    pub lane: String,
    /// Its first process, if known.
    pub pid: Option<u32>,
    /// What became of it.
    pub outcome: SweptOutcome,
    /// All that in a sentence.
    pub sentence: String,
}

/// What became of an engine of an earlier host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweptOutcome {
    /// There was nothing of it any more.
    WasGone,
    /// It was ended.
    Ended,
    /// It could not be ended, and holds its memory.
    StillThere,
}

impl Home {
    /// End the engines of earlier hosts with this state directory. To be called before the first engine is started. Blocks,
    /// for 13 s at most.
    ///
    /// Touches nothing but processes with a marker of this directory, processes in a control group that is named after it,
    /// and processes that a record of it names: by number and start time in this run of the machine, or as members of the
    /// group of a first process that has gone, in which something still has the marker or writes to the engine's pipes.
    pub fn sweep(&self) -> Vec<Swept> {
        let left = self.left();
        thread::scope(|scope| {
            let sweeps: Vec<_> =
                left.into_iter().map(|left| scope.spawn(|| self.sweep_one(left))).collect();
            sweeps.into_iter().filter_map(|sweep| sweep.join().ok()).collect()
        })
    }

    /// Engines that something was left of, with their record's file.
    fn left(&self) -> Vec<(Record, Option<PathBuf>)> {
        let mut left: BTreeMap<Marker, (Record, Option<PathBuf>)> = BTreeMap::new();
        for (mut record, file) in self.records() {
            if record.boot != self.boot() || record.boot.is_empty() {
                // Another process has its numbers now.
                (record.leader, record.pipes, record.cgroup) = (None, Vec::new(), None);
                record.shared.clear();
            }
            left.insert(record.marker.clone(), (record, Some(file)));
        }
        for process in proc::all() {
            if let Environ::Marked(marker) = proc::environ(process.id.pid)
                && marker.home == self.id()
            {
                left.entry(marker)
                    .or_insert_with_key(|marker| (self.unrecorded(marker, &process), None));
            }
        }
        // One per lane, whose name it has.
        for cgroup in self.leftover_cgroups() {
            let lane = self.lane_of(&cgroup);
            let dir = Some(cgroup.dir().to_owned());
            let known = left.values_mut().find(|(record, _)| record.marker.lane == lane);
            match known {
                Some((record, _)) => record.cgroup = dir,
                None => {
                    let record = Record { cgroup: dir, ..self.nameless(self.marker(&lane)) };
                    left.insert(record.marker.clone(), (record, None));
                }
            }
        }
        left.retain(|marker, _| !self.has(marker));
        left.into_values().collect()
    }

    fn records(&self) -> Vec<(Record, PathBuf)> {
        let files =
            self.engines().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let mut records = Vec::new();
        for file in files.map(|entry| entry.path()) {
            match fs::read(&file).ok().as_deref().and_then(Record::parse) {
                Some(record) if record.marker.home == self.id() => records.push((record, file)),
                Some(_) => {
                    tracing::warn!(
                        "the record {} is of another state directory and is removed",
                        file.display()
                    );
                    remove(&file);
                }
                None => {
                    tracing::warn!("the record {} cannot be read and is removed", file.display());
                    remove(&file);
                }
            }
        }
        records
    }

    /// Control groups of our engines, whichever host made them.
    fn leftover_cgroups(&self) -> Vec<Cgroup> {
        let dirs =
            self.cgroups().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let prefix = self.cgroup_prefix();
        dirs.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| Cgroup::at(entry.path()))
            .filter(|cgroup| !self.uses(cgroup))
            .filter(|cgroup| {
                // An empty one is in nobody's way, except in the listings of tools.
                cgroup.remove();
                cgroup.populated()
            })
            .collect()
    }

    fn lane_of(&self, cgroup: &Cgroup) -> String {
        let name = cgroup.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_prefix(&self.cgroup_prefix()).and_then(unescape).unwrap_or(name)
    }

    fn unrecorded(&self, marker: &Marker, process: &Seen) -> Record {
        let folder = scratch::find(self.temporary(), marker);
        Record { program: process.name.clone(), folder, ..self.nameless(marker.clone()) }
    }

    fn nameless(&self, marker: Marker) -> Record {
        Record::new(marker, self.boot())
    }

    fn sweep_one(&self, (record, file): (Record, Option<PathBuf>)) -> Swept {
        let (lane, leader, program) =
            (record.marker.lane.clone(), record.leader, record.program.clone());
        let mut hunt = Hunt::new(record, Knows::Written);
        let found = hunt.look();
        let oldest = found.iter().map(|process| process.id).min_by_key(|id| id.start);
        // Also when it is gone, to clean up after it.
        let ended = hunt.end(GRACE, KILL_LIMIT);
        let program =
            if program.is_empty() { "an engine".to_owned() } else { format!("`{program}`") };
        let who = match leader {
            Some(leader) => {
                format!("lane {lane}: {program} of an earlier host (process {})", leader.pid)
            }
            None => format!("lane {lane}: {program} of an earlier host"),
        };
        let age = oldest.and_then(proc::age);
        let age =
            age.map(|age| format!(" after running for {} s", age.as_secs())).unwrap_or_default();
        let (outcome, sentence) = match ended {
            Ok(()) if found.is_empty() => {
                (SweptOutcome::WasGone, format!("{who} was gone already"))
            }
            Ok(()) => (SweptOutcome::Ended, format!("{who} was ended{age}: {}", names(&found))),
            Err(left) => {
                let limit = KILL_LIMIT.as_secs();
                let left = names(&left);
                (
                    SweptOutcome::StillThere,
                    format!("{who} is still there {limit} s after SIGKILL: {left}"),
                )
            }
        };
        if outcome == SweptOutcome::StillThere {
            tracing::error!("{sentence}");
        } else {
            tracing::info!("{sentence}");
            file.iter().for_each(|file| remove(file));
        }
        Swept { lane, pid: leader.map(|leader| leader.pid), outcome, sentence }
    }
}
