//! One engine process and everything it starts: a session of its own, ended as a whole.
//!
//! [`Process::stop`] and [`Process::kill`] wait until all of these processes have ended. When the
//! host is killed, its [`keeper`] keeps them for the next host for some time, and then ends them.
//! If the keeper is killed too, the next host's [`StateDir::sweep`] ends them, or it takes them
//! over.

mod adoptable;
mod cgroup;
mod command;
mod explain;
mod keeper;
mod keeper_spec;
mod leader;
mod listener;
mod marker;
mod observer;
mod output;
mod pipes;
mod proc;
mod reaper;
mod record;
mod scratch;
mod shared;
mod spawn;
mod state_dir;
mod sweep;
mod tracker;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tracing::Span;

use crate::launch::{HOST, Launch};

use self::cgroup::Cgroup;
use self::command::folder_variables;
use self::keeper::Held;
use self::leader::{KeptLeader, Leader};
use self::output::{Stream, read_lines};
use self::pipes::Pipes;
use self::proc::ProcessSnapshot;
use self::record::Record;
use self::spawn::SpawnError;
use self::tracker::{ProcessTracker, Provenance, describe};

pub use self::adoptable::AdoptableEngine;
pub(crate) use self::explain::{Explanation, explain};
pub use self::keeper::{Frame, FrameReceiver, OutgoingFrame, keeper_main};
pub use self::keeper_spec::{AfterCrash, KeeperSpec};
pub(crate) use self::marker::escape;
pub(crate) use self::observer::ProcessObserver;
pub(crate) use self::output::LogTail;
pub(crate) use self::reaper::reap_orphans;
pub(crate) use self::record::{Note, Stage};
pub use self::state_dir::{StateDir, StateDirError};

/// The maximum time for the kernel to end processes after SIGKILL. A process that is blocked in a
/// device driver ends when the driver returns.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time to read the last lines of an engine that has ended.
const DRAIN_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A running engine. Dropping it kills the engine without waiting.
#[derive(Debug)]
pub(crate) struct Process {
    leader: Leader,
    log_tail: LogTail,
    readers: JoinSet<()>,
    tree: TreeGuard,
    /// The record of the start, by which its processes are found.
    record: Record,
}

/// Processes that did not end after SIGKILL. Their memory is not free, so no other engine may be
/// started. Dropping this makes a last attempt in the background.
#[derive(Debug)]
pub(crate) struct SurvivingProcesses {
    survivors: Vec<ProcessSnapshot>,
    tree: TreeGuard,
}

impl std::fmt::Display for SurvivingProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let timeout = KILL_TIMEOUT.as_secs();
        write!(
            f,
            "processes of the engine still alive {timeout} s after SIGKILL: {}",
            describe(&self.survivors)
        )
    }
}

impl std::error::Error for SurvivingProcesses {}

impl SurvivingProcesses {
    /// Returns the process ids.
    #[cfg(test)]
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.survivors.iter().map(|process| process.id.pid).collect()
    }

    /// Tries again to end the processes.
    ///
    /// # Errors
    /// Returns the processes that are still alive.
    pub(crate) async fn retry(self) -> Result<(), Self> {
        self.tree.end(Duration::ZERO).await
    }
}

impl Process {
    /// Starts the engine of a lane. `on_line` is called with each line of its output, including
    /// states of progress bars, which end with a carriage return. Must be called on a thread that
    /// lives as long as the host, such as a worker of the runtime: without a keeper, the kernel
    /// kills the engine when the thread that started it ends.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub(crate) async fn start(
        lane: &str,
        launch: &Launch,
        note: Note,
        state_dir: &StateDir,
        on_line: impl Fn(&str) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let program = launch
            .command
            .first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let pipes = Pipes::new(state_dir.keeps_pipes_open())?;
        let cgroup = state_dir.create_cgroup(lane);
        let name =
            Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let marker = state_dir.new_marker(lane);
        let scratch = if folder_variables(launch).is_empty() {
            None
        } else {
            state_dir.create_scratch(&marker)
        };
        let mut record = Record {
            note,
            program: name,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned()),
            started: Some(SystemTime::now()),
            folder: scratch,
            pipes: pipes.inodes,
            ..Record::new(marker, state_dir.boot())
        };
        // Before the start, so that the keeper knows the engine whenever the host is killed. Ended
        // by the guard if this future is dropped.
        state_dir.add(&record, &pipes.read);
        let mut tree = TreeGuard::new(record.clone(), state_dir);
        let spawned = state_dir.spawn(launch, &record, pipes.write, &pipes.read).await;
        let (leader, id) = match spawned {
            Ok(started) => started,
            Err(SpawnError::Refused(error)) => {
                tree.tree = None;
                state_dir.remove(&record.marker);
                cgroup.iter().for_each(Cgroup::remove);
                record.folder.iter().for_each(|folder| scratch::remove(folder, &record.marker));
                return Err(error);
            }
            // Whether the engine was started is not known: the guard ends it.
            Err(SpawnError::Unknown(error)) => return Err(error),
        };
        record.leader = id;
        state_dir.update(&record);
        if let Some(tree) = &mut tree.tree {
            tree.tracker = ProcessTracker::new(record.clone(), Provenance::Child);
        }
        Self::new(leader, record, tree, (pipes.read, Default::default()), state_dir, on_line)
    }

    /// Takes over an engine that an earlier host has started. Must be called within a runtime.
    ///
    /// # Errors
    /// Returns an error if its output cannot be read. The engine is ended in the background then.
    pub(crate) fn adopt(
        engine: AdoptableEngine,
        state_dir: &StateDir,
        on_line: impl Fn(&str) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let AdoptableEngine { record, output } = engine;
        let tree = TreeGuard::new(record.clone(), state_dir);
        let Held { pipes, ended } = state_dir.hold(&record)?;
        let leader = Leader::Kept(KeptLeader::new(record.leader, ended));
        Self::new(leader, record, tree, (pipes, output), state_dir, on_line)
    }

    fn new(
        leader: Leader,
        record: Record,
        tree: TreeGuard,
        (pipes, output): (Vec<OwnedFd>, [String; 2]),
        state_dir: &StateDir,
        on_line: impl Fn(&str) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let log_tail = LogTail::default();
        let mut readers = JoinSet::new();
        let streams = [Stream::Stdout, Stream::Stderr].into_iter().zip(output);
        for (pipe, (stream, output)) in pipes.into_iter().zip(streams) {
            let pipe = pipe::Receiver::from_owned_fd(pipe)?;
            let all = io::Cursor::new(output.into_bytes()).chain(pipe);
            let (lane, tail) = (record.marker.lane.clone(), log_tail.clone());
            let lines = read_lines(lane, stream, all, tail, on_line.clone());
            let state_dir = state_dir.clone();
            readers.spawn(async move { state_dir.while_owned(lines).await });
        }
        Ok(Self { leader, log_tail, readers, tree, record })
    }

    /// Returns the id of the process, which is also that of its group and its session.
    pub(crate) fn id(&self) -> u32 {
        self.record.leader.map_or(0, |leader| leader.pid)
    }

    /// Returns an observer of the engine's processes.
    pub(crate) fn observer(&self) -> ProcessObserver {
        ProcessObserver::new(self.record.clone())
    }

    /// Records what the next host has to know, and the resources that the engine would leave behind
    /// if all its processes died before the next scan. To be called once the engine has loaded.
    /// Blocks for some milliseconds, because it reads `/proc`.
    pub(crate) fn note(&mut self, change: impl FnOnce(&mut Note)) {
        if let Some(tree) = &mut self.tree.tree {
            let found = tree.tracker.scan();
            let changed = tree.tracker.note(change);
            if tree.tracker.record_resources(&found) || changed {
                tree.state_dir.update(tree.tracker.record());
            }
        }
    }

    /// Returns the last lines of the engine's output.
    pub(crate) fn log_tail(&self) -> &LogTail {
        &self.log_tail
    }

    /// Waits until the first process ends; processes that it started may still be alive.
    /// Cancel-safe.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.leader.ended().await
    }

    /// Stops the whole engine: sends SIGTERM, after `grace` SIGKILL, and waits until none of its
    /// processes is left.
    ///
    /// # Errors
    /// Returns the processes that are still alive.
    pub(crate) async fn stop(self, grace: Duration) -> Result<(), SurvivingProcesses> {
        self.end(grace).await
    }

    /// Kills what is left of the engine, and waits until none of its processes is left.
    ///
    /// # Errors
    /// Returns the processes that are still alive.
    pub(crate) async fn kill(self) -> Result<(), SurvivingProcesses> {
        self.end(Duration::ZERO).await
    }

    async fn end(mut self, grace: Duration) -> Result<(), SurvivingProcesses> {
        let ended = self.tree.end(grace).await;
        if ended.is_ok() {
            self.leader.reap().await;
            let drained = async { while self.readers.join_next().await.is_some() {} };
            // A process outside the engine may have inherited the pipes; they never reach their end
            // then, so the rest of the output is given up.
            drop(tokio::time::timeout(DRAIN_OUTPUT_TIMEOUT, drained).await);
        }
        self.readers.shutdown().await;
        ended
    }
}

/// A guard that ends an engine's processes in the background if it is dropped before they ended.
#[derive(Debug)]
struct TreeGuard {
    /// `None` when all processes have ended, or a background task has taken the tree over.
    tree: Option<Box<TrackedTree>>,
}

/// All processes of one engine, with the state directory that records them.
#[derive(Debug)]
struct TrackedTree {
    tracker: ProcessTracker,
    state_dir: StateDir,
    /// The span in which the engine was started, for the log events of background threads.
    span: Span,
}

impl TrackedTree {
    /// Records the resources that these processes would leave behind, so that the keeper or the
    /// next host can clean them up.
    fn record_resources(&mut self, found: &[ProcessSnapshot]) {
        if self.tracker.record_resources(found) {
            self.state_dir.update(self.tracker.record());
        }
    }

    /// Ends all processes. Blocks.
    fn end(&mut self, grace: Duration) -> Result<(), Vec<ProcessSnapshot>> {
        if self.state_dir.is_released() {
            // The next host has the engine.
            return Ok(());
        }
        let span = self.span.clone();
        let _entered = span.enter();
        let found = self.tracker.scan();
        self.record_resources(&found);
        let ended = self.tracker.end(grace, KILL_TIMEOUT);
        match &ended {
            Ok(()) => self.state_dir.remove(&self.tracker.record().marker),
            Err(survivors) => {
                tracing::error!(
                    timeout_s = KILL_TIMEOUT.as_secs(),
                    processes = describe(survivors),
                    "processes of the engine survived SIGKILL"
                );
                // The record stays, so that the next host tries again.
                self.state_dir.update(self.tracker.record());
            }
        }
        ended
    }
}

impl TreeGuard {
    fn new(record: Record, state_dir: &StateDir) -> Self {
        // The parent of the leader reaps it: the keeper, or the task that waits for it.
        let tracker = ProcessTracker::new(record, Provenance::Child);
        let (state_dir, span) = (state_dir.clone(), Span::current());
        Self { tree: Some(Box::new(TrackedTree { tracker, state_dir, span })) }
    }

    async fn end(mut self, grace: Duration) -> Result<(), SurvivingProcesses> {
        // The guard moves into the task: if this future is dropped, or the runtime ends before the
        // task has started, its `drop` still ends the processes.
        let ended = tokio::task::spawn_blocking(move || {
            let ended = self.tree.as_mut().map_or(Ok(()), |tree| tree.end(grace));
            if ended.is_ok() {
                self.tree = None;
            }
            ended.map_err(|survivors| SurvivingProcesses { survivors, tree: self })
        });
        // The task was dropped or has panicked: its guard ends the processes in the background, and
        // nothing is known about them here.
        ended.await.unwrap_or_else(|_| {
            Err(SurvivingProcesses { survivors: Vec::new(), tree: Self { tree: None } })
        })
    }
}

impl Drop for TreeGuard {
    fn drop(&mut self) {
        let Some(mut tree) = self.tree.take() else { return };
        if tree.state_dir.is_released() {
            // The next host has the engine.
            return;
        }
        // On this thread and before the background thread starts, because the host may be exiting.
        let found = tree.tracker.scan();
        tree.record_resources(&found);
        tree.tracker.signal_all(&found, Signal::KILL);
        let span = tree.span.clone();
        let thread = std::thread::Builder::new().name("engine-end".into());
        // The thread itself logs processes that survive.
        if let Err(error) = thread.spawn(move || drop(tree.end(Duration::ZERO))) {
            span.in_scope(|| {
                tracing::error!(error = %error, "failed to reap the engine process");
            });
        }
    }
}

/// Returns a free port of the loopback address. Another process may take the port before the engine
/// binds it; the engine then fails to start, and is started again on another port.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod cleanup_tests;
#[cfg(test)]
mod tests;
