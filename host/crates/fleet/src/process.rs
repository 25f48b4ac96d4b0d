//! One engine process and everything it starts: a session of its own, ended as a whole.
//!
//! None of these processes survives the host. While the host lives, [`Process::stop`] and
//! [`Process::kill`] wait until all of them have ended. When the host is killed, the watchdog ends
//! them, and the kernel the first one. If the watchdog is killed too, the next host's
//! [`StateDir::sweep`] does.

mod cgroup;
mod command;
mod explain;
mod listener;
mod marker;
mod observer;
mod output;
mod proc;
mod reaper;
mod record;
mod scratch;
mod shared;
mod state_dir;
mod sweep;
mod tracker;
mod watchdog;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::io::AsFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use tokio::process::Child;
use tokio::task::JoinSet;
use tracing::Span;

use crate::launch::{HOST, Launch};

use self::cgroup::Cgroup;
use self::command::{command, folder_variables};
use self::output::{Stream, read_lines};
use self::proc::ProcessSnapshot;
use self::record::{Record, port_in};
use self::tracker::{ProcessTracker, Provenance, describe};

pub(crate) use self::explain::{Explanation, explain};
pub(crate) use self::marker::escape;
pub(crate) use self::observer::ProcessObserver;
pub(crate) use self::output::LogTail;
pub(crate) use self::reaper::reap_orphans;
pub use self::state_dir::{StateDir, StateDirError};
pub use self::watchdog::watchdog_main;

/// The maximum time for the kernel to end processes after SIGKILL. A process that is blocked in a
/// device driver ends when the driver returns.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time to read the last lines of an engine that has ended.
const DRAIN_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A running engine. Dropping it kills the engine without waiting.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    id: u32,
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
    /// lives as long as the host, such as a worker of the runtime: the kernel kills the engine when
    /// the thread that started it ends.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub(crate) fn start(
        lane: &str,
        launch: &Launch,
        state_dir: &StateDir,
        on_line: impl Fn(&str) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let program = launch
            .command
            .first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
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
            port: port_in(&launch.command),
            program: name,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned()),
            started: Some(SystemTime::now()),
            folder: scratch,
            ..Record::new(marker, state_dir.boot())
        };
        // Before the start, so that the watchdog knows the engine whenever the host is killed.
        state_dir.add(&record);
        let mut child = command(launch, &record, cgroup.as_ref()).spawn().inspect_err(|_| {
            state_dir.remove(&record.marker);
            cgroup.iter().for_each(Cgroup::remove);
            record.folder.iter().for_each(|folder| scratch::remove(folder, &record.marker));
        })?;
        record.pipes = child
            .stdout
            .iter()
            .filter_map(inode)
            .chain(child.stderr.iter().filter_map(inode))
            .collect();
        // Not reaped yet, so /proc has an entry even if the process has already ended.
        record.leader = child.id().and_then(proc::snapshot).map(|process| process.id);
        state_dir.add(&record);
        let id = child.id().unwrap_or_default();
        let tree = TreeGuard {
            tree: Some(Box::new(TrackedTree {
                tracker: ProcessTracker::new(record.clone(), Provenance::Child),
                state_dir: state_dir.clone(),
                span: Span::current(),
            })),
        };

        let log_tail = LogTail::default();
        let mut readers = JoinSet::new();
        if let Some(pipe) = child.stdout.take() {
            let (lane, tail, on_line) = (lane.to_owned(), log_tail.clone(), on_line.clone());
            readers.spawn(read_lines(lane, Stream::Stdout, pipe, tail, on_line));
        }
        if let Some(pipe) = child.stderr.take() {
            let (lane, tail) = (lane.to_owned(), log_tail.clone());
            readers.spawn(read_lines(lane, Stream::Stderr, pipe, tail, on_line));
        }
        Ok(Self { child, id, log_tail, readers, tree, record })
    }

    /// Returns the id of the process, which is also that of its group and its session.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Returns an observer of the engine's processes.
    pub(crate) fn observer(&self) -> ProcessObserver {
        ProcessObserver::new(self.record.clone())
    }

    /// Records the resources that the engine would leave behind if all its processes died before
    /// the next scan. To be called once the engine has loaded. Blocks for some milliseconds,
    /// because it reads `/proc`.
    pub(crate) fn record_resources(&mut self) {
        if let Some(tree) = &mut self.tree.tree {
            let found = tree.tracker.scan();
            tree.record_resources(&found);
        }
    }

    /// Returns the last lines of the engine's output.
    pub(crate) fn log_tail(&self) -> &LogTail {
        &self.log_tail
    }

    /// Waits until the first process ends; processes that it started may still be alive.
    /// Cancel-safe.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
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
            // Reaps the child, which has ended. An error means that there is nothing to reap.
            drop(self.child.wait().await);
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
    /// Records the resources that these processes would leave behind, so that the watchdog or the
    /// next host can clean them up.
    fn record_resources(&mut self, found: &[ProcessSnapshot]) {
        if self.tracker.record_resources(found) {
            self.state_dir.update(self.tracker.record());
        }
    }

    /// Ends all processes. Blocks.
    fn end(&mut self, grace: Duration) -> Result<(), Vec<ProcessSnapshot>> {
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

/// Returns the inode of a pipe, which is the same at both ends.
fn inode(pipe: &impl AsFd) -> Option<u64> {
    let pipe = pipe.as_fd().try_clone_to_owned().ok()?;
    File::from(pipe).metadata().ok().map(|meta| meta.ino())
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
