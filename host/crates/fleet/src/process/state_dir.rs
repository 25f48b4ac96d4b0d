//! The state directory: records of the running engines, for the next host to find.
//!
//! ```text
//!   <dir>/lock                 locked by the host that uses the directory; holds its process id
//!   <dir>/id                   distinguishes its engines from those of other hosts
//!   <dir>/engines/<lane>.json  one running engine
//!   <dir>/tmp/<lane>-<nonce>/  its scratch directory
//!   <dir>/keeper.sock          the keeper, which is the parent of the engines
//! ```

mod keeping;
mod lock;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, iter};

use parking_lot::{Mutex, MutexGuard};
use pointsman_files::FolderError;

use self::lock::{LockedPaths, lock};
use super::adoptable::{Adoptables, from_keeper};
use super::cgroup::{self, Cgroup};
use super::keeper::{Keeper, KeeperError, KeeperSettings};
use super::keeper_spec::{AfterCrash, KeeperSpec};
use super::marker::{Marker, escape};
use super::proc;
use super::record::Record;
use super::scratch;

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
    /// The keeper that an earlier host has left has another version.
    #[error("the keeper of the state directory {} has version {theirs} of the protocol, which this \
        version of the host does not know [protocol]; end the engines with the version of the host \
        that has started them, or wait for `orphan-grace`", dir.display())]
    KeeperVersion {
        /// The directory.
        dir: PathBuf,
        /// The version of the keeper.
        theirs: u32,
    },
    /// `/proc` is not available, so engines can be neither found nor verified to have ended.
    #[error("no process information: /proc is not mounted, or hides this process")]
    NoProc,
}

/// The host's record of its engines, which ensures that none of them is forgotten. Clones share the
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
    /// `None` if there is none, and the host starts the engines itself.
    keeper: Option<Keeper>,
    grace: Duration,
    after_crash: AfterCrash,
    engines: Mutex<BTreeMap<Marker, Record>>,
    /// Engines of an earlier host that no lane has taken over yet.
    adoptable: Mutex<Adoptables>,
}

impl StateDir {
    /// Opens and locks a state directory, creating it if it does not exist, and attaches to the
    /// keeper that an earlier host has left, or starts one: a program whose argument `keeper` leads
    /// to [`keeper_main`](super::keeper_main) with its standard input. Blocks.
    ///
    /// Without a directory no records are kept, and engines end with the host. Without a keeper
    /// only the first process of each engine is sure to end when the host is killed.
    ///
    /// Makes the host adopt processes that engines leave without a parent (`prctl`,
    /// `PR_SET_CHILD_SUBREAPER`), and engines whose keeper has ended.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be used, or is in use by another host.
    pub fn open(dir: Option<&Path>, spec: &KeeperSpec) -> Result<Self, StateDirError> {
        if proc::snapshot(std::process::id()).is_none() {
            return Err(StateDirError::NoProc);
        }
        let paths = dir.map(|dir| lock(dir).map_err(|error| error.at(dir))).transpose()?;
        let (id, paths) = paths.unzip();
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::warn!(error = %error, "failed to become a subreaper of orphaned processes");
        }
        // Without a directory, no other host could find the engines.
        let grace = if paths.is_some() { spec.orphan_grace } else { Duration::ZERO };
        let after_crash = if paths.is_some() { spec.after_crash } else { AfterCrash::End };
        let boot = proc::boot_id();
        let dir = paths.as_ref().map(|paths: &LockedPaths| paths.dir.clone());
        let opened =
            spec.program.clone().map(|program| open_keeper(KeeperSettings { program, dir, grace }));
        let (keeper, reported) = opened.transpose()?.flatten().unzip();
        let adoptable = from_keeper(reported.unwrap_or_default(), &boot);
        let self_cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let state_dir = Self(Arc::new(Inner {
            id: id.unwrap_or_else(proc::nonce),
            boot,
            paths,
            cgroups: cgroup::delegated(Path::new(cgroup::ROOT), &self_cgroup),
            keeper,
            grace,
            after_crash,
            engines: Mutex::default(),
            adoptable: Mutex::new(adoptable),
        }));
        state_dir.find_adoptable();
        Ok(state_dir)
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
        self.running().contains_key(marker)
    }

    /// Returns true if the control group belongs to a running engine, or to one that may be taken
    /// over.
    pub(super) fn uses(&self, cgroup: &Cgroup) -> bool {
        let is_its = |record: &Record| record.cgroup.as_deref() == Some(cgroup.dir());
        self.running().values().any(is_its)
            || self.0.adoptable.lock().values().any(|engine| is_its(&engine.record))
    }

    /// Adds an engine, with the read ends of its pipes. To be called before its start, so that the
    /// engine is known at any moment at which the keeper may be killed.
    pub(super) fn add(&self, record: &Record, pipes: &[OwnedFd]) {
        self.running().insert(record.marker.clone(), record.clone());
        if let Some(keeper) = &self.0.keeper {
            keeper.note(record, pipes);
        }
    }

    /// Replaces the record of an engine that has not been removed.
    pub(super) fn update(&self, record: &Record) {
        let mut running = self.running();
        let Some(known) = running.get_mut(&record.marker) else { return };
        known.clone_from(record);
        if let Some(keeper) = &self.0.keeper {
            keeper.update(record);
        }
        if !has_successor(&running, &record.marker) {
            self.write(record);
        }
    }

    fn write(&self, record: &Record) {
        // The record of an engine that the next host has is its own.
        if let Some(dir) = self.engines().filter(|_| !self.is_released())
            && record.leader.is_some()
            && let Err(error) = record.write(&record_file(dir, &record.marker.lane))
        {
            tracing::warn!(error = %error, "failed to persist engine state");
        }
    }

    /// Removes an engine of which no process is left.
    pub(super) fn remove(&self, marker: &Marker) {
        let mut running = self.running();
        if running.remove(marker).is_none() {
            return;
        }
        self.forget(marker);
        if let Some(dir) = self.engines().filter(|_| !self.is_released())
            && !has_successor(&running, marker)
        {
            remove_record(&record_file(dir, &marker.lane));
        }
    }

    /// Returns the ids of the children that the host waits for itself: the first processes of its
    /// engines, and the keeper.
    pub(super) fn children(&self) -> HashSet<u32> {
        let running = self.running();
        let leaders: Vec<u32> =
            running.values().filter_map(|record| record.leader).map(|leader| leader.pid).collect();
        drop(running);
        let keeper = self.0.keeper.as_ref().and_then(Keeper::id);
        leaders.into_iter().chain(iter::once(keeper).flatten()).collect()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Marker, Record>> {
        self.0.engines.lock()
    }

    /// Leaves everything as if the host and its keeper had been killed.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        if let Some(paths) = &self.0.paths {
            paths.unlock();
        }
        assert!(self.0.keeper.is_none(), "use `cut_keeper`");
    }

    /// Ends the connection to the keeper as if the host had been killed.
    #[cfg(test)]
    pub(super) fn cut_keeper(&self) {
        self.0.keeper.as_ref().unwrap().cut();
        self.unlock();
    }

    /// Returns the process id of the keeper.
    #[cfg(test)]
    pub(super) fn keeper_id(&self) -> Option<u32> {
        self.0.keeper.as_ref().and_then(Keeper::id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Before the lock is released, so that the next host finds none of the engines.
        self.keeper = None;
        if let Some(paths) = &self.paths {
            paths.unlock();
        }
    }
}

/// Attaches to a keeper or starts one; `None` if that is not possible.
fn open_keeper(
    settings: KeeperSettings,
) -> Result<Option<(Keeper, Vec<super::keeper::Reported>)>, StateDirError> {
    let dir = settings.dir.clone().unwrap_or_default();
    match Keeper::open(settings) {
        Ok(opened) => Ok(Some(opened)),
        Err(KeeperError::InUse(pid)) => Err(StateDirError::InUse { dir, pid }),
        Err(KeeperError::Protocol { theirs }) => Err(StateDirError::KeeperVersion { dir, theirs }),
        Err(error @ KeeperError::Io(_)) => {
            tracing::error!(%error, "running without a keeper: engines end with the host");
            Ok(None)
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
