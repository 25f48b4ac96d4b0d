//! Finds all processes of an engine, ends them, and verifies that they have ended.
//!
//! A process belongs to the engine if one of these criteria holds. Each has a gap that the others
//! close:
//!
//! | criterion | gap |
//! |---|---|
//! | it is the leader, known by process id and start time | children outlive it (vLLM's do) |
//! | it is in the group or the session of the leader | a child can leave both |
//! | its environment contains the marker | `setproctitle`, as used by vLLM, overwrites it |
//! | it writes to one of the engine's pipes | a child can redirect its output |
//! | it is in the engine's control group | the host may not be allowed to create one |
//! | it descends from such a process, or was one when last seen | |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cgroup::Cgroup;
use super::proc::{self, Environ, Id, ProcessSnapshot};
use super::record::{Note, Record};
use super::{scratch, shared};

/// The first interval between checks whether the processes have ended, doubled each time. The
/// kernel cannot be asked to report the end of processes that are not the host's children.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The maximum interval between checks.
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Where the knowledge about an engine's process group comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provenance {
    /// The leader is a child of this process, and another task reaps it.
    Child,
    /// The host has reported the leader since its start, so that its group id cannot have been
    /// reused.
    Reported,
    /// The leader was recorded in a file, possibly long ago. A group whose leader has ended belongs
    /// to the engine only if one of its processes meets another criterion too.
    Recorded,
}

/// A tracker of all processes of one engine.
#[derive(Debug)]
pub(super) struct ProcessTracker {
    record: Record,
    provenance: Provenance,
    cgroup: Option<Cgroup>,
    /// The processes found so far.
    known: HashSet<Id>,
    /// The leader, if the group with its id was the engine's at the last scan.
    leader: Option<Id>,
    /// Caches what each process's environment and pipes show between scans.
    evidence: HashMap<Id, Evidence>,
    /// The processes whose shared memory has been recorded.
    recorded: HashSet<Id>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    marker: bool,
    pipe: bool,
    /// The environment has variables, but not the marker.
    plain: bool,
}

impl ProcessTracker {
    pub(super) fn new(record: Record, provenance: Provenance) -> Self {
        let cgroup = record.cgroup.clone().map(Cgroup::from_dir);
        Self {
            record,
            provenance,
            cgroup,
            known: HashSet::new(),
            leader: None,
            evidence: HashMap::new(),
            recorded: HashSet::new(),
        }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the engine's processes that are alive, without the calling process. Reaps zombies
    /// that this process has inherited.
    pub(super) fn scan(&mut self) -> Vec<ProcessSnapshot> {
        let me = std::process::id();
        // Neither this process nor the init process of the machine or container can be an engine.
        let others: Vec<ProcessSnapshot> = proc::all()
            .into_iter()
            .filter(|process| process.id.pid != me && process.id.pid > 1)
            .collect();
        let evidence: Vec<Evidence> = others.iter().map(|process| self.evidence(process)).collect();
        let leader =
            self.record.leader.filter(|leader| self.owns_group_of(*leader, &others, &evidence));
        self.leader = leader;
        let contained: HashSet<u32> = self.cgroup.iter().flat_map(Cgroup::members).collect();

        let mut found: BTreeMap<u32, &ProcessSnapshot> = BTreeMap::new();
        for (process, evidence) in others.iter().zip(evidence) {
            let member = leader.is_some_and(|leader| is_member(process, leader));
            // An inode number that was recorded long ago may belong to another pipe today.
            let pipe = evidence.pipe && self.provenance != Provenance::Recorded;
            let known = self.known.contains(&process.id) || contained.contains(&process.id.pid);
            if member || known || evidence.marker || pipe {
                found.insert(process.id.pid, process);
            }
        }
        // Adds the descendants, one level at a time, until there are no more.
        let mut before = usize::MAX;
        while before != found.len() {
            before = found.len();
            let children = others.iter().filter(|process| found.contains_key(&process.parent));
            let children: Vec<&ProcessSnapshot> = children.collect();
            found.extend(children.into_iter().map(|process| (process.id.pid, process)));
        }
        self.known.extend(found.values().map(|process| process.id));
        for process in found.values().filter(|process| process.dead && process.parent == me) {
            // The leader's exit status belongs to the task that waits for it.
            if self.provenance != Provenance::Child || Some(process.id) != self.record.leader {
                proc::reap(process.id.pid);
            }
        }
        found.into_values().filter(|process| !process.dead).cloned().collect()
    }

    /// Returns true if the group with the leader's id is still the one that the leader created.
    fn owns_group_of(&self, leader: Id, others: &[ProcessSnapshot], evidence: &[Evidence]) -> bool {
        match others.iter().find(|process| process.id.pid == leader.pid) {
            // A record can be wrong, if only because it was restored from a backup. What it names
            // is not ended if nothing else says that it is an engine.
            Some(process) => {
                process.id == leader
                    && (self.provenance != Provenance::Recorded
                        || others.iter().zip(evidence).any(|(process, evidence)| {
                            is_member(process, leader)
                                && (evidence.marker || evidence.pipe || !evidence.plain)
                        }))
            }
            // An id is not reused while a group or a session has it. But the whole group may have
            // ended, and a later group with the same id may have lost its leader too.
            None => {
                self.provenance != Provenance::Recorded
                    || others.iter().zip(evidence).any(|(process, evidence)| {
                        is_member(process, leader) && (evidence.marker || evidence.pipe)
                    })
            }
        }
    }

    fn evidence(&mut self, process: &ProcessSnapshot) -> Evidence {
        if let Some(evidence) = self.evidence.get(&process.id) {
            return *evidence;
        }
        let environ = proc::environ(process.id.pid);
        let pipe = !self.record.pipes.is_empty()
            && proc::output_pipes(process.id.pid)
                .iter()
                .any(|pipe| self.record.pipes.contains(pipe));
        // A process that is about to exec shows no environment yet, so it is read again next time.
        let settled = environ != Environ::Hidden;
        let plain = environ == Environ::Plain;
        let marker = matches!(environ, Environ::Marked(marker) if marker == self.record.marker);
        let evidence = Evidence { marker, pipe, plain };
        if settled {
            self.evidence.insert(process.id, evidence);
        }
        evidence
    }

    /// Changes what the next host has to know. Returns true if that is new.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Note)) -> bool {
        let before = self.record.note.clone();
        change(&mut self.record.note);
        self.record.note != before
    }

    /// Records the shared memory of processes that have not been recorded, while they can still be
    /// inspected. Returns true if there was any.
    pub(super) fn record_resources(&mut self, found: &[ProcessSnapshot]) -> bool {
        // Without the start time, files that the engine created cannot be distinguished from older
        // ones.
        let Some(started) = self.record.started else { return false };
        let new = found.iter().filter(|process| self.recorded.insert(process.id));
        let new: Vec<u32> = new.map(|process| process.id.pid).collect();
        let before = self.record.shared.len();
        if !new.is_empty() {
            self.record.shared.extend(shared::created_by(new, started));
        }
        self.record.shared.len() > before
    }

    /// Removes what killed processes leave in the file system. No process of the engine may be
    /// alive.
    fn clean_up(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let Record { marker, shared, folder, .. } = &mut self.record;
        shared::remove(&std::mem::take(shared));
        if let Some(folder) = folder.take() {
            scratch::remove(&folder, marker);
        }
    }

    /// Sends a signal to each of these processes, which [`ProcessTracker::scan`] has just found.
    pub(super) fn signal_all(&mut self, found: &[ProcessSnapshot], signal: Signal) {
        self.record_resources(found);
        if signal == Signal::KILL {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            // The group is killed atomically (killpg), so that no child can escape by forking. It
            // is the engine's: a member was just found alive, and an id is not reused before the
            // last member has ended.
            let leader = self
                .leader
                .filter(|leader| found.iter().any(|process| process.group == leader.pid));
            if let Some(group) = leader.and_then(|leader| proc::to_raw(leader.pid)) {
                // Fails only if the group has ended meanwhile.
                rustix::process::kill_process_group(group, signal).ok();
            }
        }
        for process in found {
            proc::signal(process.id, signal);
        }
    }

    /// Returns the processes that are alive, or `None` if there are none. Scans twice, because one
    /// scan can miss a process that is forked while its parent ends.
    pub(super) fn alive(&mut self) -> Option<Vec<ProcessSnapshot>> {
        for _ in 0..2 {
            let alive = self.scan();
            if !alive.is_empty() || self.cgroup.as_ref().is_some_and(Cgroup::populated) {
                return Some(alive);
            }
        }
        None
    }

    /// Ends all processes: sends SIGTERM unless `grace` is zero, then SIGKILL repeatedly for at
    /// most `timeout`, and cleans up. Blocks.
    ///
    /// # Errors
    /// Returns the processes that are still alive.
    pub(super) fn end(
        &mut self,
        grace: Duration,
        timeout: Duration,
    ) -> Result<(), Vec<ProcessSnapshot>> {
        if !grace.is_zero() {
            let found = self.scan();
            self.signal_all(&found, Signal::TERM);
            if self.wait(grace, None).is_ok() {
                return Ok(());
            }
            tracing::warn!(
                leader = self.record.leader.map(|leader| leader.pid),
                grace_s = grace.as_secs_f32(),
                "engine did not end after SIGTERM; killing it"
            );
            // The processes may have created more shared memory during the grace period.
            self.recorded.clear();
        }
        self.wait(timeout, Some(Signal::KILL))
    }

    fn wait(
        &mut self,
        timeout: Duration,
        signal: Option<Signal>,
    ) -> Result<(), Vec<ProcessSnapshot>> {
        let deadline = Instant::now() + timeout;
        let mut interval = MIN_POLL_INTERVAL;
        while let Some(alive) = self.alive() {
            if let Some(signal) = signal {
                self.signal_all(&alive, signal);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(alive);
            }
            proc::pause(interval.min(left));
            interval = (interval * 2).min(MAX_POLL_INTERVAL);
        }
        self.clean_up();
        Ok(())
    }
}

/// Returns true if the process is in the group or the session of the leader.
fn is_member(process: &ProcessSnapshot, leader: Id) -> bool {
    process.group == leader.pid || process.session == leader.pid
}

/// Formats processes as a list of ids and names.
pub(super) fn describe(found: &[ProcessSnapshot]) -> String {
    let names: Vec<String> =
        found.iter().map(|process| format!("{} ({})", process.id.pid, process.name)).collect();
    names.join(", ")
}
