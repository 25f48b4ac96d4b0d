//! The state directory: records of the running engines, for the next host to find.
//!
//! ```text
//!   <dir>/lock                 locked by the host that uses the directory; holds its process id
//!   <dir>/id                   distinguishes its engines from those of other hosts
//!   <dir>/engines/<lane>.json  one running engine
//!   <dir>/tmp/<lane>-<nonce>/  its scratch directory
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use pointsman_files::{FolderError, create_private, open_private_with, read_private, write_atomic};
use rustix::fs::FlockOperation;

use super::cgroup::{self, Cgroup};
use super::marker::{Marker, escape};
use super::proc;
use super::record::Record;
use super::scratch;
use super::watchdog::Watchdog;

/// The maximum time to wait for the lock: children of an earlier host hold it until their exec.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size in bytes of the files with a process id or the id of the directory.
const MAX_WORD: u64 = 128;
/// The interval between attempts to take the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The reason why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another host uses the directory; two hosts would end each other's engines.
    #[error("the state directory {} is in use by {}", dir.display(),
        pid.map_or_else(
            || "another host".to_owned(),
            |pid| format!("the host with process id {pid}")
        ))]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process id of the other host, if its lock file contains one.
        pid: Option<u32>,
    },
    /// Other users may write to the directory, so its records cannot be trusted.
    #[error("unsafe state directory: {0}")]
    Unsafe(FolderError),
    /// The directory cannot be read or written.
    #[error("failed to open the state directory {}: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `/proc` is not available, so engines can be neither found nor verified to have ended.
    #[error("no process information: /proc is not mounted, or hides this process")]
    NoProc,
}

/// The host's record of its engines, which ensures that none of them outlives it. Clones share the
/// same directory.
#[derive(Debug, Clone)]
pub struct StateDir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    boot: String,
    paths: Option<LockedPaths>,
    /// The control group in which those of engines are created.
    cgroups: Option<PathBuf>,
    running: Mutex<Running>,
}

/// The paths in a state directory, with its lock.
#[derive(Debug)]
struct LockedPaths {
    engines: PathBuf,
    /// The parent of the engines' scratch directories.
    scratch: PathBuf,
    lock: File,
}

#[derive(Debug, Default)]
struct Running {
    watchdog: Option<Watchdog>,
    engines: BTreeMap<Marker, Record>,
}

impl StateDir {
    /// Opens and locks a state directory, creating it if it does not exist, and starts the
    /// watchdog: a program whose argument `watchdog` leads to
    /// [`watchdog_main`](super::watchdog_main) with its standard input.
    ///
    /// Without a directory no records are kept; without a watchdog only the first process of each
    /// engine is sure to end when the host is killed.
    ///
    /// Makes the host adopt processes that engines leave without a parent (`prctl`,
    /// `PR_SET_CHILD_SUBREAPER`).
    ///
    /// # Errors
    /// Returns an error if the directory cannot be used, or is in use by another host.
    pub fn open(dir: Option<&Path>, watchdog: Option<&Path>) -> Result<Self, StateDirError> {
        if proc::snapshot(std::process::id()).is_none() {
            return Err(StateDirError::NoProc);
        }
        let paths = dir.map(|dir| lock(dir).map_err(|error| error.at(dir))).transpose()?;
        let (id, paths) = paths.unzip();
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::warn!(error = %error, "failed to become a subreaper of orphaned processes");
        }
        let mut watchdog = watchdog.map(|program| Watchdog::new(program.to_owned()));
        if let Some(Err(error)) = watchdog.as_mut().map(Watchdog::ensure_running) {
            tracing::error!(error = %error, "failed to start the watchdog");
        }
        let self_cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            id: id.unwrap_or_else(proc::nonce),
            boot: proc::boot_id(),
            paths,
            cgroups: cgroup::delegated(Path::new(cgroup::ROOT), &self_cgroup),
            running: Mutex::new(Running { watchdog, engines: BTreeMap::new() }),
        })))
    }

    /// Returns the directory; `None` if no records are kept.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.engines().and_then(Path::parent)
    }

    /// Returns the id that distinguishes the directory's engines from those of other hosts.
    pub(super) fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the kernel's id of the current boot.
    pub(super) fn boot(&self) -> &str {
        &self.0.boot
    }

    /// Returns the directory of engine records.
    pub(super) fn engines(&self) -> Option<&Path> {
        self.0.paths.as_ref().map(|paths| paths.engines.as_path())
    }

    /// Returns the control group in which those of engines are created, if that is permitted.
    pub(super) fn cgroups(&self) -> Option<&Path> {
        self.0.cgroups.as_deref()
    }

    /// Returns a new marker for one start of a lane's engine.
    pub(super) fn new_marker(&self, lane: &str) -> Marker {
        Marker { state_dir: self.0.id.clone(), lane: lane.to_owned(), nonce: proc::nonce() }
    }

    /// Creates a control group for a lane's engine, if that is permitted.
    pub(super) fn create_cgroup(&self, lane: &str) -> Option<Cgroup> {
        let name = format!("{}{}", self.cgroup_prefix(), escape(lane));
        Cgroup::create(self.cgroups()?, &name)
            .inspect_err(|error| {
                tracing::debug!(error = %error, "failed to create a control group for the engine");
            })
            .ok()
    }

    /// Creates the scratch directory of an engine, if that is possible.
    pub(super) fn create_scratch(&self, marker: &Marker) -> Option<PathBuf> {
        scratch::create(self.scratch(), marker)
    }

    /// Returns the parent of the engines' scratch directories.
    pub(super) fn scratch(&self) -> Option<&Path> {
        self.0.paths.as_ref().map(|paths| paths.scratch.as_path())
    }

    /// Returns the prefix of the names of the engines' control groups. It contains the directory's
    /// id, because two hosts may share a control group.
    pub(super) fn cgroup_prefix(&self) -> String {
        format!("pointsman-{}-", self.0.id)
    }

    /// Returns true if this host has started the engine, and has not seen it end.
    pub(super) fn is_running(&self, marker: &Marker) -> bool {
        self.running().engines.contains_key(marker)
    }

    /// Returns true if the control group belongs to a running engine of this host.
    pub(super) fn uses(&self, cgroup: &Cgroup) -> bool {
        self.running().engines.values().any(|record| record.cgroup.as_deref() == Some(cgroup.dir()))
    }

    /// Adds an engine. To be called before its start, so that the engine is known at any moment at
    /// which the host may be killed, and again when its process is known.
    pub(super) fn add(&self, record: &Record) {
        let mut running = self.running();
        running.engines.insert(record.marker.clone(), record.clone());
        let Running { watchdog, engines } = &mut *running;
        if let Some(watchdog) = watchdog {
            watchdog.add(record, engines.values());
        }
        self.write(record);
    }

    /// Replaces the record of an engine that has not been removed.
    pub(super) fn update(&self, record: &Record) {
        let mut running = self.running();
        let Some(known) = running.engines.get_mut(&record.marker) else { return };
        known.clone_from(record);
        let Running { watchdog, engines } = &mut *running;
        if let Some(watchdog) = watchdog {
            watchdog.add(record, engines.values());
        }
        if !has_successor(engines, &record.marker) {
            self.write(record);
        }
    }

    fn write(&self, record: &Record) {
        if let Some(dir) = self.engines()
            && record.leader.is_some()
            && let Err(error) = record.write(&record_file(dir, &record.marker.lane))
        {
            tracing::warn!(error = %error, "failed to persist engine state");
        }
    }

    /// Removes an engine of which no process is left.
    pub(super) fn remove(&self, marker: &Marker) {
        let mut running = self.running();
        if running.engines.remove(marker).is_none() {
            return;
        }
        if let Some(watchdog) = &mut running.watchdog {
            watchdog.remove(marker);
        }
        if let Some(dir) = self.engines()
            && !has_successor(&running.engines, marker)
        {
            remove_record(&record_file(dir, &marker.lane));
        }
    }

    /// Returns the ids of the children that the host waits for itself: the first processes of its
    /// engines, and the watchdog.
    pub(super) fn children(&self) -> HashSet<u32> {
        let running = self.running();
        let leaders = running.engines.values().filter_map(|record| record.leader);
        let watchdog = running.watchdog.as_ref().and_then(Watchdog::id);
        leaders.map(|leader| leader.pid).chain(watchdog).collect()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.running.lock()
    }

    /// Leaves everything as if the host and its watchdog had been killed.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        if let Some(paths) = &self.0.paths {
            rustix::fs::flock(&paths.lock, FlockOperation::Unlock).unwrap();
        }
        assert!(self.running().watchdog.is_none());
    }

    /// Closes the watchdog's input, and waits until the watchdog has ended.
    #[cfg(test)]
    pub(super) fn drop_watchdog(&self) {
        self.running().watchdog = None;
    }

    /// Returns the process id of the watchdog.
    #[cfg(test)]
    pub(super) fn watchdog(&self) -> Option<u32> {
        self.running().watchdog.as_ref().and_then(Watchdog::id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Before the lock is released, so that the next host finds none of the engines.
        self.running.get_mut().watchdog = None;
        if let Some(paths) = &self.paths {
            // Closing the file is not enough while a child before its exec has it open too. If this
            // fails, the lock is released when that child has called exec.
            rustix::fs::flock(&paths.lock, FlockOperation::Unlock).ok();
        }
    }
}

/// Returns true if a later engine of the same lane owns the record file now.
fn has_successor(engines: &BTreeMap<Marker, Record>, marker: &Marker) -> bool {
    engines.keys().any(|other| other.lane == marker.lane && other != marker)
}

/// Returns the path of a lane's record file.
fn record_file(engines: &Path, lane: &str) -> PathBuf {
    engines.join(format!("{}.json", escape(lane)))
}

/// Removes a record file; does nothing if it does not exist.
pub(super) fn remove_record(file: &Path) {
    if let Err(error) = fs::remove_file(file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(
            file = %file.display(),
            error = %error,
            "failed to remove engine state file"
        );
    }
}

/// The reason why a state directory cannot be locked.
enum LockError {
    InUse(Option<u32>),
    Folder(FolderError),
    Io(io::Error),
}

impl From<FolderError> for LockError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Io { .. } | FolderError::NotAFolder(_) => Self::Io(error.into()),
            FolderError::ForeignLink { .. }
            | FolderError::ForeignOwner { .. }
            | FolderError::Writable { .. } => Self::Folder(error),
        }
    }
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LockError {
    fn at(self, dir: &Path) -> StateDirError {
        let dir = dir.to_owned();
        match self {
            Self::InUse(pid) => StateDirError::InUse { dir, pid },
            Self::Folder(error) => StateDirError::Unsafe(error),
            Self::Io(source) => StateDirError::Io { dir, source },
        }
    }
}

/// Locks a state directory, and returns its id and its paths. The lock is held until they are
/// dropped.
fn lock(dir: &Path) -> Result<(String, LockedPaths), LockError> {
    let engines = dir.join("engines");
    create_private(dir)?;
    create_private(&engines)?;
    let lock_file = dir.join("lock");
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut lock = open_private_with(&lock_file, &mut options).map_err(io::Error::from)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(LockError::Io(error.into()));
        }
        if Instant::now() >= deadline {
            let mut text = String::new();
            // If this fails, the error message does not name the other host.
            drop(Read::by_ref(&mut lock).take(MAX_WORD).read_to_string(&mut text));
            return Err(LockError::InUse(text.trim().parse().ok()));
        }
        proc::pause(LOCK_RETRY_INTERVAL);
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    if let Err(error) = written {
        // The lock itself is held; only the process id is missing in the other host's message.
        tracing::warn!(
            file = %lock_file.display(),
            error = %error,
            "failed to write the process id to the lock file"
        );
    }
    // Absolute, because engines may have another working directory.
    let scratch = fs::canonicalize(dir)?.join("tmp");
    Ok((read_or_create_id(dir)?, LockedPaths { engines, scratch, lock }))
}

/// Returns the id of a directory: a random word stored in it, and its inode number, so that a copy
/// of the directory has another id.
fn read_or_create_id(dir: &Path) -> io::Result<String> {
    let meta = fs::metadata(dir)?;
    let path = dir.join("id");
    let is_word = |word: &str| {
        (8..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let known = read_private(&path, MAX_WORD).ok().and_then(|word| String::from_utf8(word).ok());
    if let Some(word) = known.as_deref().map(str::trim)
        && is_word(word)
    {
        return Ok(format!("{word}-{:x}", meta.ino()));
    }
    let word: String = proc::nonce().chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    match write_atomic(&path, format!("{word}\n").as_bytes(), 0o600) {
        Ok(()) => Ok(format!("{word}-{:x}", meta.ino())),
        Err(error) => {
            tracing::warn!(
                file = %path.display(),
                error = %error,
                "failed to write the id of the state directory"
            );
            // Derived from the file system, so that the next host computes the same id.
            Ok(format!("dev{:x}-{:x}", meta.dev(), meta.ino()))
        }
    }
}
