//! Find all processes of an engine, end them, and see that they are gone.
//!
//! A process is the engine's when one of these holds; each of them alone has a hole that the others close:
//!
//! | it | hole |
//! |---|---|
//! | is the first process, known by number and start time | children outlive it (vLLM's do) |
//! | is in the group or the session of the first process | a child can leave both |
//! | bears the marker in its environment | `setproctitle` writes over it, as vLLM's processes do |
//! | writes to one of the engine's pipes | a child can redirect its output |
//! | is in the engine's control group | not everywhere may we make one |
//! | descends from such a process, or was such a process when last seen | |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cgroup::Cgroup;
use super::proc::{self, Environ, Id, Seen};
use super::record::Record;
use super::{scratch, shared};

/// First pause between two looks whether the processes are gone; the kernel has no way to wait for that. Doubled each time.
const FIRST_POLL: Duration = Duration::from_millis(2);
/// Longest such pause.
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// How much is known of the group that a record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knows {
    /// The first process is our child, and somebody else takes notice of its end.
    Child,
    /// Whoever started it has told us all along, so that the group's number cannot have been given to another since.
    Told,
    /// Only what was written down, perhaps long ago: a group whose first process is gone is the engine's only if a
    /// process in it has something else of the engine's too.
    Written,
}

/// The search for one engine's processes.
#[derive(Debug)]
pub(super) struct Hunt {
    record: Record,
    knows: Knows,
    cgroup: Option<Cgroup>,
    /// Those that were found so far.
    ours: HashSet<Id>,
    /// The first process, if the group of its number was the engine's at the last look.
    leader: Option<Id>,
    /// What processes show of themselves, so that nobody's environment is read at each look.
    evidence: HashMap<Id, Evidence>,
    /// Those whose shared memory was noted.
    noted: HashSet<Id>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    marker: bool,
    pipe: bool,
}

impl Hunt {
    pub(super) fn new(record: Record, knows: Knows) -> Self {
        let cgroup = record.cgroup.clone().map(Cgroup::at);
        let (ours, noted) = (HashSet::new(), HashSet::new());
        Self { record, knows, cgroup, ours, leader: None, evidence: HashMap::new(), noted }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The engine's processes that are alive now, without ourselves. Takes notice of dead ones that were left to us.
    pub(super) fn look(&mut self) -> Vec<Seen> {
        let me = std::process::id();
        // Neither we nor the first process of the machine or container can be an engine.
        let others: Vec<Seen> =
            proc::all().into_iter().filter(|it| it.id.pid != me && it.id.pid > 1).collect();
        let evidence: Vec<Evidence> = others.iter().map(|process| self.evidence(process)).collect();
        let leader = self.record.leader.filter(|leader| self.leads(*leader, &others, &evidence));
        self.leader = leader;
        let contained: HashSet<u32> = self.cgroup.iter().flat_map(Cgroup::members).collect();

        let mut found: BTreeMap<u32, &Seen> = BTreeMap::new();
        for (process, evidence) in others.iter().zip(evidence) {
            let member = leader.is_some_and(|leader| belongs(process, leader));
            let pipe = evidence.pipe && self.knows != Knows::Written;
            let known = self.ours.contains(&process.id) || contained.contains(&process.id.pid);
            if member || known || evidence.marker || pipe {
                found.insert(process.id.pid, process);
            }
        }
        let mut before = usize::MAX;
        while before != found.len() {
            before = found.len();
            let children = others.iter().filter(|process| found.contains_key(&process.parent));
            let children: Vec<&Seen> = children.collect();
            found.extend(children.into_iter().map(|process| (process.id.pid, process)));
        }
        self.ours.extend(found.values().map(|process| process.id));
        for process in found.values().filter(|process| process.dead && process.parent == me) {
            if self.knows != Knows::Child || Some(process.id) != self.record.leader {
                proc::reap(process.id.pid);
            }
        }
        found.into_values().filter(|process| !process.dead).cloned().collect()
    }

    /// Whether the group of that number is still the one that the engine's first process made.
    fn leads(&self, leader: Id, others: &[Seen], evidence: &[Evidence]) -> bool {
        match others.iter().find(|process| process.id.pid == leader.pid) {
            Some(process) => process.id == leader,
            // A number is not given away while a group or a session has it. But all of it may have ended, another group may
            // have got the number, and lost its first process too.
            None => {
                self.knows != Knows::Written
                    || others.iter().zip(evidence).any(|(process, evidence)| {
                        belongs(process, leader) && (evidence.marker || evidence.pipe)
                    })
            }
        }
    }

    fn evidence(&mut self, process: &Seen) -> Evidence {
        if let Some(evidence) = self.evidence.get(&process.id) {
            return *evidence;
        }
        let environ = proc::environ(process.id.pid);
        let pipe = !self.record.pipes.is_empty()
            && proc::outputs(process.id.pid).iter().any(|pipe| self.record.pipes.contains(pipe));
        // A process that was seen in the middle of becoming another program is looked at again.
        let settled = environ != Environ::Hidden;
        let marker = matches!(environ, Environ::Marked(marker) if marker == self.record.marker);
        let evidence = Evidence { marker, pipe };
        if settled {
            self.evidence.insert(process.id, evidence);
        }
        evidence
    }

    /// Note the shared memory of these that was not noted yet, while they can be asked. Returns whether there was any.
    pub(super) fn note(&mut self, found: &[Seen]) -> bool {
        // Without it, what the engine made cannot be told from what it found.
        let Some(started) = self.record.started else { return false };
        let new = found.iter().filter(|process| self.noted.insert(process.id));
        let new: Vec<u32> = new.map(|process| process.id.pid).collect();
        let before = self.record.shared.len();
        if !new.is_empty() {
            self.record.shared.extend(shared::made_by(new, started));
        }
        self.record.shared.len() > before
    }

    /// Remove what killed processes leave in the file system. Nothing of the engine may be alive.
    fn clean(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let Record { marker, shared, folder, .. } = &mut self.record;
        shared::remove(&std::mem::take(shared), &marker.lane);
        if let Some(folder) = folder.take() {
            scratch::remove(&folder, marker);
        }
    }

    /// Send a signal to each of these, which [`Hunt::look`] has just found.
    pub(super) fn strike(&mut self, found: &[Seen], signal: Signal) {
        self.note(found);
        if signal == Signal::KILL {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            // The group at one blow, so that nothing in it can fork its way past us. It is the engine's: a member of it was
            // just found alive, and a number is not given away before the last member has gone.
            let leader = self.leader.filter(|leader| found.iter().any(|it| it.group == leader.pid));
            if let Some(group) = leader.and_then(|leader| proc::raw(leader.pid)) {
                let _gone = rustix::process::kill_process_group(group, signal);
            }
        }
        for process in found {
            proc::signal(process.id, signal);
        }
    }

    /// Whether nothing of the engine is alive; what is, otherwise. Looks twice, because a process can be born behind the
    /// back of one look while its parent goes.
    pub(super) fn alive(&mut self) -> Option<Vec<Seen>> {
        for _ in 0..2 {
            let alive = self.look();
            if !alive.is_empty() || self.cgroup.as_ref().is_some_and(Cgroup::populated) {
                return Some(alive);
            }
        }
        None
    }

    /// End everything: SIGTERM, after `grace` SIGKILL again and again, for at most `limit`. No `grace`, no SIGTERM. Then clean
    /// up after it. Blocks.
    ///
    /// # Errors
    /// What is still there.
    pub(super) fn end(&mut self, grace: Duration, limit: Duration) -> Result<(), Vec<Seen>> {
        if !grace.is_zero() {
            let found = self.look();
            self.strike(&found, Signal::TERM);
            if self.wait(grace, None).is_ok() {
                return Ok(());
            }
            let pid = self.record.leader.map(|leader| leader.pid);
            let lane = &self.record.marker.lane;
            tracing::warn!(
                lane,
                pid,
                "the engine did not end within {} s of SIGTERM",
                grace.as_secs_f32()
            );
            // They may have made more of it.
            self.noted.clear();
        }
        self.wait(limit, Some(Signal::KILL))
    }

    fn wait(&mut self, limit: Duration, signal: Option<Signal>) -> Result<(), Vec<Seen>> {
        let until = Instant::now() + limit;
        let mut pause = FIRST_POLL;
        while let Some(alive) = self.alive() {
            if let Some(signal) = signal {
                self.strike(&alive, signal);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(alive);
            }
            proc::pause(pause.min(left));
            pause = (pause * 2).min(LONGEST_POLL);
        }
        self.clean();
        Ok(())
    }
}

fn belongs(process: &Seen, leader: Id) -> bool {
    process.group == leader.pid || process.session == leader.pid
}

/// Processes by number and name, for a message.
pub(super) fn names(found: &[Seen]) -> String {
    let names: Vec<String> =
        found.iter().map(|it| format!("{} ({})", it.id.pid, it.name)).collect();
    names.join(", ")
}
