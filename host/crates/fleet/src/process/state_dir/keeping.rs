//! What the state directory hands to the keeper, and what it finds there.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use super::{AfterCrash, StateDir};
use crate::process::adoptable::{AdoptableEngine, from_record};
use crate::process::keeper::{Held, Keeper};
use crate::process::marker::Marker;
use crate::process::record::Record;

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

    /// Waits until another host has taken the engines over.
    pub(in crate::process) async fn released(&self) {
        match self.keeper() {
            Some(keeper) => keeper.released().clone().cancelled_owned().await,
            None => std::future::pending().await,
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
