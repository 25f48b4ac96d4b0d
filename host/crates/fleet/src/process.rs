//! One engine process and everything that it starts: a session of its own, ended as a whole.
//!
//! Nothing of it survives us. While we live, [`Process::stop`] and [`Process::kill`] see it gone. When we are killed, the
//! keeper ends it, the kernel its first process. Should the keeper be killed too, the next host's [`Home::sweep`] does.

mod cgroup;
mod explain;
mod home;
mod hunt;
mod keeper;
mod lines;
mod marker;
mod proc;
mod record;
mod scratch;
mod shared;
mod sweep;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::io::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::driver::HOST;

use self::cgroup::Cgroup;
use self::hunt::{Hunt, Knows, names};
use self::lines::read_lines;
use self::marker::VARIABLE;
use self::proc::Seen;
use self::record::{Record, port_in};

pub(crate) use self::explain::explain;
pub use self::home::{Home, HomeError};
pub use self::keeper::keeper_main;
pub(crate) use self::lines::LastLines;

/// How long the kernel may take to end processes after SIGKILL. One that is deep in a driver ends when that lets it.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long the last lines of an engine that has ended may take to be read.
const LINES_LIMIT: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Program and arguments, all placeholders filled in.
    pub(crate) words: Vec<String>,
    /// Added to our own environment.
    pub(crate) env: Vec<(String, String)>,
    /// Taken out of our own environment.
    pub(crate) remove_env: Vec<String>,
    /// Where it runs; without it, where we do.
    pub(crate) directory: Option<PathBuf>,
}

/// A running engine. Dropping it kills it without waiting.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    id: u32,
    lines: LastLines,
    readers: JoinSet<()>,
    quarry: Quarry,
}

/// Processes that did not end, so that their memory is not free: no other engine may be started. Dropping it tries for a last
/// time, in the background.
#[derive(Debug)]
pub(crate) struct StillThere {
    left: Vec<Seen>,
    quarry: Quarry,
}

impl std::fmt::Display for StillThere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limit = KILL_LIMIT.as_secs();
        write!(
            f,
            "processes of the engine are still there {limit} s after SIGKILL: {}",
            names(&self.left)
        )
    }
}

impl std::error::Error for StillThere {}

impl StillThere {
    /// Numbers of the processes.
    #[cfg(test)]
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.left.iter().map(|process| process.id.pid).collect()
    }

    /// Try once more to end them.
    ///
    /// # Errors
    /// When they are still there.
    pub(crate) async fn again(self) -> Result<(), Self> {
        self.quarry.end(Duration::ZERO).await
    }
}

impl Process {
    /// Start a lane's engine. `on_line` gets each line that it writes, whichever way the line ends. Has to be called on a
    /// thread that lives as long as the host, such as a worker of the runtime: the kernel ends the engine when the thread
    /// that started it ends.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn start(
        lane: &str,
        launch: &Launch,
        home: &Home,
        on_line: impl Fn(&str) + Send + Sync + Clone + 'static,
    ) -> io::Result<Self> {
        let program = launch
            .words
            .first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let cgroup = home.cgroup(lane);
        let name =
            Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let marker = home.marker(lane);
        let mut record = Record {
            port: port_in(&launch.words),
            program: name,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned()),
            started: Some(SystemTime::now()),
            folder: if folder_variables(launch).is_empty() { None } else { home.folder(&marker) },
            ..Record::new(marker, home.boot())
        };
        home.add(&record);
        let mut child = command(launch, &record, cgroup.as_ref()).spawn().inspect_err(|_| {
            home.remove(&record.marker);
            cgroup.iter().for_each(Cgroup::remove);
            record.folder.iter().for_each(|folder| scratch::remove(folder, &record.marker));
        })?;
        record.pipes = child
            .stdout
            .iter()
            .filter_map(inode)
            .chain(child.stderr.iter().filter_map(inode))
            .collect();
        // Not reaped yet, so that it is there even if it has ended.
        record.leader = child.id().and_then(proc::seen).map(|seen| seen.id);
        home.add(&record);
        let id = child.id().unwrap_or_default();
        let hunt = Hunt::new(record, Knows::Child);
        let quarry = Quarry { prey: Some(Box::new(Prey { hunt, home: home.clone() })) };

        let lines = LastLines::default();
        let mut readers = JoinSet::new();
        if let Some(out) = child.stdout.take() {
            readers.spawn(read_lines(lane.to_owned(), out, lines.clone(), on_line.clone()));
        }
        if let Some(err) = child.stderr.take() {
            readers.spawn(read_lines(lane.to_owned(), err, lines.clone(), on_line));
        }
        Ok(Self { child, id, lines, readers, quarry })
    }

    /// Id of the process, of its group and of its session.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Note what it would leave behind, should all of it die before anybody looks. To be called when it has loaded. Blocks for
    /// some milliseconds: it reads what the kernel tells about processes.
    pub(crate) fn note(&mut self) {
        if let Some(prey) = &mut self.quarry.prey {
            let found = prey.hunt.look();
            prey.note(&found);
        }
    }

    /// What it wrote last.
    pub(crate) fn lines(&self) -> &LastLines {
        &self.lines
    }

    /// Wait until the process ends. Can be dropped and called again. What it started may live on.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// End the whole engine: SIGTERM, after `grace` SIGKILL, and wait until nothing of it is left.
    ///
    /// # Errors
    /// When something of it is still there.
    pub(crate) async fn stop(self, grace: Duration) -> Result<(), StillThere> {
        self.end(grace).await
    }

    /// End what is left of the engine at once, and wait until nothing of it is left.
    ///
    /// # Errors
    /// When something of it is still there.
    pub(crate) async fn kill(self) -> Result<(), StillThere> {
        self.end(Duration::ZERO).await
    }

    async fn end(mut self, grace: Duration) -> Result<(), StillThere> {
        let gone = self.quarry.end(grace).await;
        if gone.is_ok() {
            // Ended, so this is at once. A failing wait means that there is nothing to wait for.
            drop(self.child.wait().await);
            let read = async { while self.readers.join_next().await.is_some() {} };
            // Somebody else may have been given our pipes; then there is no end to read to.
            drop(tokio::time::timeout(LINES_LIMIT, read).await);
        }
        self.readers.shutdown().await;
        gone
    }
}

/// An engine's processes as something that is ended, whatever becomes of who holds it.
#[derive(Debug)]
struct Quarry {
    /// None when nothing is left of it, or somebody else sees to it.
    prey: Option<Box<Prey>>,
}

#[derive(Debug)]
struct Prey {
    hunt: Hunt,
    home: Home,
}

impl Prey {
    /// Note what these processes would leave, so that whoever comes after us can clean up too.
    fn note(&mut self, found: &[Seen]) {
        if self.hunt.note(found) {
            self.home.update(self.hunt.record());
        }
    }

    fn end(&mut self, grace: Duration) -> Result<(), Vec<Seen>> {
        let found = self.hunt.look();
        self.note(&found);
        let ended = self.hunt.end(grace, KILL_LIMIT);
        let marker = &self.hunt.record().marker;
        match &ended {
            Ok(()) => self.home.remove(marker),
            Err(left) => {
                let limit = KILL_LIMIT.as_secs();
                tracing::error!(
                    lane = marker.lane,
                    "still there {limit} s after SIGKILL: {}",
                    names(left)
                );
                self.home.update(self.hunt.record());
            }
        }
        ended
    }
}

impl Quarry {
    async fn end(mut self, grace: Duration) -> Result<(), StillThere> {
        // It goes along, so that it is still looked after when nobody waits for the answer, and when the runtime ends
        // before the task starts.
        let ended = tokio::task::spawn_blocking(move || {
            let ended = self.prey.as_mut().map_or(Ok(()), |prey| prey.end(grace));
            if ended.is_ok() {
                self.prey = None;
            }
            ended.map_err(|left| StillThere { left, quarry: self })
        });
        // Without an answer the task is dropped, or has failed: its quarry is looked after in the background.
        ended
            .await
            .unwrap_or_else(|_| Err(StillThere { left: Vec::new(), quarry: Self { prey: None } }))
    }
}

impl Drop for Quarry {
    fn drop(&mut self) {
        let Some(mut prey) = self.prey.take() else { return };
        // At once, in case that we are about to end.
        let found = prey.hunt.look();
        prey.note(&found);
        prey.hunt.strike(&found, Signal::KILL);
        let lane = prey.hunt.record().marker.lane.clone();
        let thread = std::thread::Builder::new().name("engine-end".into());
        if let Err(error) = thread.spawn(move || drop(prey.end(Duration::ZERO))) {
            tracing::error!(lane, "nobody waits for the end of the engine: {error}");
        }
    }
}

/// Inode of a pipe, which is the same at both its ends.
fn inode(pipe: &impl AsFd) -> Option<u64> {
    let pipe = pipe.as_fd().try_clone_to_owned().ok()?;
    File::from(pipe).metadata().ok().map(|meta| meta.ino())
}

/// Variables that lead the engine to its folder for temporary files: those that its owner has not set.
fn folder_variables(launch: &Launch) -> Vec<&'static str> {
    let is_set = |name: &str| launch.env.iter().any(|(set, _)| set == name);
    scratch::VARIABLES.into_iter().filter(|name| !is_set(name)).collect()
}

fn command(launch: &Launch, record: &Record, cgroup: Option<&Cgroup>) -> Command {
    let (program, arguments) =
        launch.words.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let mut command = Command::new(program);
    command.args(arguments);
    launch.remove_env.iter().for_each(|name| {
        command.env_remove(name);
    });
    command
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .env(VARIABLE, record.marker.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(folder) = &record.folder {
        command.envs(folder_variables(launch).into_iter().map(|name| (name, folder)));
    }
    if let Some(directory) = &launch.directory {
        command.current_dir(directory);
    }
    tie(&mut command, cgroup.and_then(|cgroup| cgroup.entrance().ok()));
    command
}

/// Let the kernel know what belongs together: a session of its own, which no `setproctitle` can write over; an end with us,
/// however that comes about; and the control group that `entrance` leads to.
#[expect(
    unsafe_code,
    reason = "code between fork and exec is unsafe by nature; there is no other way to say this"
)]
fn tie(command: &mut Command, entrance: Option<File>) {
    let host = rustix::process::getpid();
    // SAFETY: between fork and exec only functions that are async-signal-safe may run. This makes the system calls setsid,
    // prctl, getppid and write, takes no lock and allocates nothing: errors are made of their numbers.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(host) {
                // We ended before the kernel was asked to tell.
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            if let Some(entrance) = &entrance {
                // Without it, the other ways to find the engine's processes are left.
                let _outside = rustix::io::write(entrance, b"0");
            }
            Ok(())
        });
    }
}

/// A free port on our loopback address. Free a moment ago, that is: should another process be quicker, the engine fails to
/// start and is started again on another one.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod litter_tests;
#[cfg(test)]
mod tests;
