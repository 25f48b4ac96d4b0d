//! What the state directory hands to the keeper, and what it finds there.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{AfterCrash, StateDir};
use crate::process::adoptable::{AdoptableEngine, from_record};
use crate::process::keeper::{Held, Keeper};
use crate::process::marker::Marker;
use crate::process::proc;
use crate::process::record::Record;

/// The maximum time for a host that has failed to release what it has taken over.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(5);
const TAKE_BACK_INTERVAL: Duration = Duration::from_millis(10);

impl StateDir {
    /// Keeps a listening socket under a name, so that it stays open if the host is killed or
    /// replaced. A socket with the same name is replaced.
    ///
    /// # Errors
    /// Returns an error if there is no keeper.
    pub fn deposit(&self, name: &str, socket: OwnedFd) -> io::Result<()> {
        match self.keeper() {
            Some(keeper) => keeper.deposit(name, socket),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "there is no keeper")),
        }
    }

    /// Closes a socket that was deposited.
    pub fn withdraw(&self, name: &str) {
        if let Some(keeper) = self.keeper() {
            keeper.withdraw(name);
        }
    }

    /// Returns the listening sockets that this host or an earlier one has deposited.
    pub fn deposited(&self) -> Vec<(String, OwnedFd)> {
        self.keeper().map(Keeper::deposited).unwrap_or_default()
    }

    /// Returns true if another host can take the engines over.
    pub fn can_hand_over(&self) -> bool {
        self.0.paths.is_some() && self.keeper().is_some_and(|keeper| keeper.id().is_some())
    }

    /// Announces that the host with this process id takes the engines over: it attaches to the
    /// keeper while this host is still attached. From then on, this host ends none of the engines.
    /// `None` takes that back.
    pub fn hand_over(&self, successor: Option<u32>) {
        if let Some(keeper) = self.keeper() {
            keeper.hand_over(successor);
        }
    }

    /// Announces that the host stops. What is left of its engines when it ends, for whatever
    /// reason, is ended then.
    pub fn announce_stop(&self) {
        if let Some(keeper) = self.keeper() {
            keeper.farewell();
        }
    }

    /// Returns true if another host has taken the engines over.
    pub fn is_released(&self) -> bool {
        self.keeper().is_some_and(Keeper::is_released)
    }

    /// Releases the lock of the directory, for the host that takes the engines over.
    pub fn unlock(&self) {
        if let Some(paths) = &self.0.paths {
            paths.unlock();
        }
    }

    /// Takes the lock of the directory again.
    ///
    /// # Errors
    /// Returns an error if another host has it.
    pub fn lock_again(&self) -> io::Result<()> {
        self.0.paths.as_ref().map_or(Ok(()), super::LockedPaths::lock_again)
    }

    /// Takes the directory and the engines back from a host that was to take them over, and has
    /// failed. Blocks until they are taken back, for some seconds at most.
    ///
    /// # Errors
    /// Returns an error if another host has the directory or the engines.
    pub fn take_back(&self) -> io::Result<()> {
        self.hand_over(None);
        let deadline = Instant::now() + TAKE_BACK_TIMEOUT;
        loop {
            let locked = self.lock_again();
            match locked {
                Ok(()) if !self.is_released() => return Ok(()),
                Ok(()) | Err(_) if Instant::now() < deadline => proc::pause(TAKE_BACK_INTERVAL),
                Ok(()) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs `work` while this host has the engines, until it is done. Ends when the state directory
    /// is dropped.
    pub(in crate::process) async fn while_owned(&self, work: impl Future<Output = ()>) {
        let Some(mut released) = self.keeper().map(Keeper::released) else { return work.await };
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                () = &mut work => return,
                // The next host reads what engines write from then on.
                found = released.wait_for(|released| *released) => if found.is_err() { return },
            }
            if released.wait_for(|released| !*released).await.is_err() {
                return;
            }
        }
    }

    pub(in crate::process) fn keeper(&self) -> Option<&Keeper> {
        self.0.keeper.as_ref()
    }

    /// Returns true if engines end when the keeper ends.
    pub(in crate::process) fn dies_with_keeper(&self) -> bool {
        self.0.grace.is_zero()
    }

    /// Returns true if the pipes of engines have to outlive the host and the keeper.
    pub(in crate::process) fn keeps_pipes_open(&self) -> bool {
        self.0.after_crash == AfterCrash::Adopt
    }

    /// Forgets an engine of which no process is left.
    pub(in crate::process) fn forget(&self, marker: &Marker) {
        if let Some(keeper) = self.keeper() {
            keeper.forget(marker);
        }
    }

    /// Adds an engine that is taken over.
    pub(in crate::process) fn hold(&self, record: &Record) -> io::Result<Held> {
        self.running().insert(record.marker.clone(), record.clone());
        let held = self.keeper().and_then(|keeper| keeper.watch(&record.marker));
        held.ok_or_else(|| io::Error::other("the keeper does not have the engine"))
    }

    /// Finds engines that may be taken over although their keeper has ended, too.
    pub(super) fn find_adoptable(&self) {
        let Some(keeper) = self.keeper().filter(|_| self.keeps_pipes_open()) else { return };
        let known: BTreeSet<Marker> = self.0.adoptable.lock().keys().cloned().collect();
        for (record, _) in self.records() {
            if !known.contains(&record.marker)
                && let Some(engine) = from_record(record, self.boot(), keeper)
            {
                self.0.adoptable.lock().insert(engine.record.marker.clone(), engine);
            }
        }
    }

    /// Returns true if the engine may be taken over.
    pub(in crate::process) fn may_adopt(&self, marker: &Marker) -> bool {
        self.0.adoptable.lock().contains_key(marker)
    }

    /// Keeps of the engines that may be taken over those that `keep` returns true for. The others
    /// are ended by [`StateDir::sweep`].
    pub(crate) fn retain_adoptable(&self, mut keep: impl FnMut(&AdoptableEngine) -> bool) {
        self.0.adoptable.lock().retain(|_, engine| keep(engine));
    }

    /// Returns true if a lane has an engine that may be taken over.
    pub(crate) fn has_adoptable(&self, lane: &str) -> bool {
        self.0.adoptable.lock().keys().any(|marker| marker.lane == lane)
    }

    /// Returns the engine of a lane that an earlier host has left running. The caller has to take
    /// it over or to end it.
    pub(crate) fn take_adoptable(&self, lane: &str) -> Option<AdoptableEngine> {
        let mut adoptable = self.0.adoptable.lock();
        let marker = adoptable.keys().find(|marker| marker.lane == lane)?.clone();
        adoptable.remove(&marker)
    }
}
