//! The state directory: which engines are running, and what was left of an earlier host.
//!
//! ```text
//!   <dir>/lock                 held by the one host that uses the directory; its process id
//!   <dir>/id                   tells its engines from those of other hosts
//!   <dir>/engines/<lane>.json  one running engine
//!   <dir>/tmp/<lane>-<nonce>/  its temporary files
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::cgroup::{self, Cgroup};
use super::keeper::Watchdog;
use super::marker::{Marker, escape};
use super::proc;
use super::record::Record;
use super::scratch;

/// How long to wait for the lock: children of an earlier host hold it until they have become another program.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Two hosts would end each other's engines.
    #[error("the state directory {} is in use by {}", dir.display(),
        pid.map_or_else(|| "another host".to_owned(), |pid| format!("the host with process id {pid}")))]
    Taken {
        /// The directory.
        dir: PathBuf,
        /// The other host, if it could write that down.
        pid: Option<u32>,
    },
    /// It cannot be read or written.
    #[error("the state directory {} cannot be used: {error}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// Engines could neither be found nor seen to be gone.
    #[error("processes cannot be seen: /proc is not mounted, or hidden from us")]
    NoProc,
}

/// Where the host keeps track of its engines, so that none of them outlives it. Cloning gives another handle to the same one.
#[derive(Debug, Clone)]
pub struct Home(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    boot: String,
    place: Option<Place>,
    /// The control group to make others in.
    cgroups: Option<PathBuf>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Place {
    engines: PathBuf,
    /// Of engines, with one folder for each.
    temporary: PathBuf,
    lock: File,
}

#[derive(Debug, Default)]
struct Running {
    keeper: Option<Watchdog>,
    engines: BTreeMap<Marker, Record>,
}

impl Home {
    /// Take a state directory, which is made if it is missing, and start `keeper`: a program whose argument `keeper` leads to
    /// [`keeper_main`](super::keeper_main) with its standard input.
    ///
    /// Without a directory nothing is written down, and without a keeper only the first process of each engine is sure to
    /// end with us when we are killed.
    ///
    /// Processes that engines leave without a parent become ours from here on, for the whole process (`prctl`,
    /// `PR_SET_CHILD_SUBREAPER`).
    ///
    /// # Errors
    /// When the directory cannot be used, or is used by another host.
    pub fn open(dir: Option<&Path>, keeper: Option<&Path>) -> Result<Self, HomeError> {
        if proc::seen(std::process::id()).is_none() {
            return Err(HomeError::NoProc);
        }
        let place = dir.map(|dir| take(dir).map_err(|error| error.at(dir))).transpose()?;
        let (id, place) = place.unzip();
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::warn!("processes without a parent cannot be adopted: {error}");
        }
        let mut keeper = keeper.map(|program| Watchdog::new(program.to_owned()));
        if let Some(Err(error)) = keeper.as_mut().map(Watchdog::ensure) {
            tracing::error!("the keeper cannot be started: {error}");
        }
        let self_cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            id: id.unwrap_or_else(proc::nonce),
            boot: proc::boot_id(),
            place,
            cgroups: cgroup::own(Path::new(cgroup::ROOT), &self_cgroup),
            running: Mutex::new(Running { keeper, engines: BTreeMap::new() }),
        })))
    }

    /// What tells its engines from those of other hosts.
    pub(super) fn id(&self) -> &str {
        &self.0.id
    }

    /// The machine's run that we are in.
    pub(super) fn boot(&self) -> &str {
        &self.0.boot
    }

    /// Where engines are written down.
    pub(super) fn engines(&self) -> Option<&Path> {
        self.0.place.as_ref().map(|place| place.engines.as_path())
    }

    /// The control group that engines' groups are made in, where that may be done.
    pub(super) fn cgroups(&self) -> Option<&Path> {
        self.0.cgroups.as_deref()
    }

    /// A mark for one start of a lane's engine.
    pub(super) fn marker(&self, lane: &str) -> Marker {
        Marker { home: self.0.id.clone(), lane: lane.to_owned(), nonce: proc::nonce() }
    }

    /// A control group for a lane's engine, where one may be made.
    pub(super) fn cgroup(&self, lane: &str) -> Option<Cgroup> {
        let made =
            Cgroup::create(self.cgroups()?, &format!("{}{}", self.cgroup_prefix(), escape(lane)));
        made.inspect_err(|error| tracing::debug!(lane, "no control group for the engine: {error}"))
            .ok()
    }

    /// A folder for an engine's temporary files, where one can be made.
    pub(super) fn folder(&self, marker: &Marker) -> Option<PathBuf> {
        scratch::make(self.temporary(), marker)
    }

    /// What holds the engines' folders for temporary files.
    pub(super) fn temporary(&self) -> Option<&Path> {
        self.0.place.as_ref().map(|place| place.temporary.as_path())
    }

    /// How the names of our engines' control groups begin. Two hosts may share a control group, so it has our mark in it.
    pub(super) fn cgroup_prefix(&self) -> String {
        format!("pointsman-{}-", self.0.id)
    }

    /// Whether an engine was started by ourselves and is not known to be gone.
    pub(super) fn has(&self, marker: &Marker) -> bool {
        self.running().engines.contains_key(marker)
    }

    /// Whether a control group is that of an engine of ours.
    pub(super) fn uses(&self, cgroup: &Cgroup) -> bool {
        self.running().engines.values().any(|record| record.cgroup.as_deref() == Some(cgroup.dir()))
    }

    /// Remember an engine: before its start, so that there is no moment at which nobody knows of it, and again when its
    /// process is known.
    pub(super) fn add(&self, record: &Record) {
        let mut running = self.running();
        running.engines.insert(record.marker.clone(), record.clone());
        let Running { keeper, engines } = &mut *running;
        if let Some(keeper) = keeper {
            keeper.add(record, engines.values());
        }
        self.write(record);
    }

    /// More is known of an engine that was not forgotten.
    pub(super) fn update(&self, record: &Record) {
        let mut running = self.running();
        let Some(known) = running.engines.get_mut(&record.marker) else { return };
        known.clone_from(record);
        let Running { keeper, engines } = &mut *running;
        if let Some(keeper) = keeper {
            keeper.add(record, engines.values());
        }
        if !has_later(engines, &record.marker) {
            self.write(record);
        }
    }

    fn write(&self, record: &Record) {
        if let Some(dir) = self.engines()
            && record.leader.is_some()
            && let Err(error) = record.write(&file(dir, &record.marker.lane))
        {
            tracing::warn!(lane = record.marker.lane, "the engine cannot be written down: {error}");
        }
    }

    /// Forget an engine of which nothing is left.
    pub(super) fn remove(&self, marker: &Marker) {
        let mut running = self.running();
        if running.engines.remove(marker).is_none() {
            return;
        }
        if let Some(keeper) = &mut running.keeper {
            keeper.remove(marker);
        }
        if let Some(dir) = self.engines()
            && !has_later(&running.engines, marker)
        {
            remove(&file(dir, &marker.lane));
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave everything as it would be had the host been killed, its keeper too.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        if let Some(place) = &self.0.place {
            rustix::fs::flock(&place.lock, FlockOperation::Unlock).unwrap();
        }
        assert!(self.running().keeper.is_none());
    }

    /// Close the keeper's input, and wait until it has ended.
    #[cfg(test)]
    pub(super) fn drop_keeper(&self) {
        self.running().keeper = None;
    }

    /// Process id of the keeper.
    #[cfg(test)]
    pub(super) fn keeper(&self) -> Option<u32> {
        self.running().keeper.as_ref().and_then(Watchdog::id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The keeper first: the next host shall find nothing of us.
        self.running.get_mut().unwrap_or_else(PoisonError::into_inner).keeper = None;
        if let Some(place) = &self.place {
            // Closing it is not enough while a child that is about to become another program holds it too.
            let _closed_anyway = rustix::fs::flock(&place.lock, FlockOperation::Unlock);
        }
    }
}

/// Whether a later engine of the lane has the file now.
fn has_later(engines: &BTreeMap<Marker, Record>, marker: &Marker) -> bool {
    engines.keys().any(|other| other.lane == marker.lane && other != marker)
}

/// The file of a lane's engine.
fn file(engines: &Path, lane: &str) -> PathBuf {
    engines.join(format!("{}.json", escape(lane)))
}

/// Remove a record, which may be gone already.
pub(super) fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("the record {} cannot be removed: {error}", file.display());
    }
}

enum Refused {
    Taken(Option<u32>),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Refused {
    fn at(self, dir: &Path) -> HomeError {
        let dir = dir.to_owned();
        match self {
            Self::Taken(pid) => HomeError::Taken { dir, pid },
            Self::Io(error) => HomeError::Io { dir, error },
        }
    }
}

/// Take a state directory: its id, and what is held while it is ours.
fn take(dir: &Path) -> Result<(String, Place), Refused> {
    let engines = dir.join("engines");
    fs::create_dir_all(&engines)?;
    let mut lock = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))?;
    let until = Instant::now() + LOCK_WAIT;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(Refused::Io(error.into()));
        }
        if Instant::now() >= until {
            let mut text = String::new();
            // Without it the message names nobody.
            drop(lock.read_to_string(&mut text));
            return Err(Refused::Taken(text.trim().parse().ok()));
        }
        proc::pause(LOCK_PAUSE);
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::warn!(
            "our process id cannot be written to {}: {error}",
            dir.join("lock").display()
        );
    }
    // Whole, because engines may run elsewhere.
    let temporary = fs::canonicalize(dir)?.join("tmp");
    Ok((id(dir)?, Place { engines, temporary, lock }))
}

/// What tells this directory from all others: a random word that is kept in it, and its number, so that a copy of the
/// directory is another one.
fn id(dir: &Path) -> io::Result<String> {
    let meta = fs::metadata(dir)?;
    let path = dir.join("id");
    let is_word = |word: &str| {
        (8..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if let Some(word) = fs::read_to_string(&path).ok().map(|word| word.trim().to_owned())
        && is_word(&word)
    {
        return Ok(format!("{word}-{:x}", meta.ino()));
    }
    let word: String = proc::nonce().chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    let new = dir.join("id.new");
    match fs::write(&new, format!("{word}\n")).and_then(|()| fs::rename(&new, &path)) {
        Ok(()) => Ok(format!("{word}-{:x}", meta.ino())),
        Err(error) => {
            tracing::warn!("{} cannot be written: {error}", path.display());
            Ok(format!("dev{:x}-{:x}", meta.dev(), meta.ino()))
        }
    }
}
