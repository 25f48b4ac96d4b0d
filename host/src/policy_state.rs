//! The states of policies in the store: restored at the start, and written twice a second.
//!
//! ```text
//!   call of a policy ──> memory, marks the key ──thread, every 500 ms──> one transaction, fsync
//! ```
//!
//! Calls never wait for the disk. What cannot be written stays marked, and is written later.

mod format;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pointsman_policy::{Policies, StateBacking, StateBackingError, StateChanges, StateEntry};
use pointsman_store::{OrderedTable, Store, StoreError};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use self::format::{FORMAT, ROWS, VERSIONS, range, row, version};

/// Interval of writes. With the time that a write takes, at most a second is lost by a kill.
const INTERVAL: Duration = Duration::from_millis(500);

/// Interval of log lines about the same problem.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Rows that are looked for at a time when a state is removed.
const STEP: usize = 1000;

/// Restores the states, and starts the thread that writes them; `None` without a state directory.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(
    policies: &Arc<Policies>,
    store: &Store,
    registry: &mut Registry,
) -> Result<Option<StateWriter>> {
    let failures = Counter::default();
    registry.register(
        "pointsman_state_write_failures",
        "Failed attempts to write the states of policies to the store",
        failures.clone(),
    );
    if store.is_in_memory() {
        return Ok(None);
    }
    policies.attach_state(Arc::new(StoredStates(store.clone())));
    let (commands, received) = channel();
    let mut writer =
        Writer { policies: Arc::clone(policies), failures, next_log: None, is_failing: false };
    let thread = std::thread::Builder::new().name("state-writer".to_owned());
    let thread = thread.spawn(move || writer.run(&received));
    let thread = thread.context("failed to start the writer of the policy states")?;
    Ok(Some(StateWriter { commands, thread }))
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct StateWriter {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

enum Command {
    /// Write, say so, and wait for the next command.
    Pause(Sender<()>),
    /// Write at intervals again.
    Resume,
    /// Another host has the store.
    End,
}

impl StateWriter {
    /// Writes what has changed, and nothing more until another call. Blocks.
    pub(crate) fn pause(&self) {
        let (reply, paused) = channel();
        // Fails only if the thread has panicked.
        self.commands.send(Command::Pause(reply)).ok();
        paused.recv().ok();
    }

    /// Writes at intervals again.
    pub(crate) fn resume(&self) {
        self.commands.send(Command::Resume).ok();
    }

    /// Ends without writing: another host has the states.
    pub(crate) fn abandon(&self) {
        self.commands.send(Command::End).ok();
    }

    /// Writes what is left, and waits for that. All requests have ended. Blocks.
    pub(crate) fn finish(self) {
        drop(self.commands);
        // A writer that panicked has nothing left to write.
        self.thread.join().ok();
    }
}

struct Writer {
    policies: Arc<Policies>,
    failures: Counter,
    next_log: Option<Instant>,
    is_failing: bool,
}

impl Writer {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            let is_over = match commands.recv_timeout(INTERVAL) {
                Ok(Command::Pause(reply)) => {
                    self.save();
                    reply.send(()).ok(); // Fails only if the caller does not wait.
                    match commands.recv() {
                        Ok(Command::Pause(_) | Command::Resume) => false,
                        Ok(Command::End) => return,
                        Err(_) => true,
                    }
                }
                Ok(Command::End) => return,
                Ok(Command::Resume) | Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            self.save();
            if is_over {
                return;
            }
        }
    }

    fn save(&mut self) {
        let error = match self.policies.save_state() {
            Ok(0) => return,
            Ok(_) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(event = "state_written", "policy states are written again");
                }
                return;
            }
            Err(error) => error,
        };
        self.failures.inc();
        let now = Instant::now();
        if !self.is_failing || self.next_log.is_none_or(|next| now >= next) {
            self.next_log = Some(now + LOG_INTERVAL);
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(
                event = "state_not_written",
                %error,
                cause,
                "policy states cannot be written; what changes is kept in memory"
            );
        }
        self.is_failing = true;
    }
}

/// The states in a store.
#[derive(Debug)]
pub(crate) struct StoredStates(pub(crate) Store);

impl StoredStates {
    /// Returns the format version of a state; `None` if there is none of this policy.
    fn version(&self, policy: &str) -> Result<Option<u32>, StoreError> {
        let mut found = None;
        let name = policy.as_bytes();
        self.0.scan(VERSIONS, (name, &[name, &[0]].concat()), |_, value| {
            found = Some(version(value));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn read(&self, policy: &str) -> Result<Vec<StateEntry>, StoreError> {
        match self.version(policy)? {
            None => return Ok(Vec::new()),
            Some(FORMAT) => {}
            Some(found) => {
                tracing::warn!(
                    event = "state_format_newer",
                    policy,
                    found,
                    known = FORMAT,
                    "a later version of the host has written the state of the policy; it begins \
                     empty, and what was written is kept for that version"
                );
                return Ok(Vec::new());
            }
        }
        let (mut entries, mut unreadable) = (Vec::new(), 0_u32);
        let (from, to) = range(policy);
        self.0.scan(ROWS, (&from, &to), |key, value| {
            match format::entry(&key[from.len().min(key.len())..], value) {
                Some(entry) => entries.push(entry),
                None => unreadable += 1,
            }
            ControlFlow::Continue(())
        })?;
        if unreadable > 0 {
            tracing::warn!(event = "state_rows_invalid", policy, unreadable, "invalid rows");
        }
        Ok(entries)
    }

    fn write(&self, changes: &[StateChanges]) -> Result<(), StoreError> {
        self.0.update(|transaction| {
            let mut versions = transaction.table(VERSIONS)?;
            let mut rows = transaction.table(ROWS)?;
            for StateChanges { policy, is_whole, entries, removed } in changes {
                let name = policy.as_bytes();
                let is_known = versions.get(name)?.is_some_and(|value| version(&value) == FORMAT);
                if *is_whole || !is_known {
                    // Rows from before a later version wrote the state are not part of it.
                    remove_all(&mut rows, policy)?;
                }
                for key in removed {
                    rows.remove(&row(policy, key))?;
                }
                for entry in entries {
                    rows.put(&row(policy, &entry.key), &format::value(entry))?;
                }
                if *is_whole && entries.is_empty() {
                    versions.remove(name)?;
                } else if !is_known {
                    versions.put(name, &FORMAT.to_be_bytes())?;
                }
            }
            Ok(())
        })
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        self.0.scan(VERSIONS, (&[], &[u8::MAX]), |name, value| {
            let name = Some(name).filter(|_| version(value) == FORMAT);
            names.extend(name.and_then(|name| String::from_utf8(name.to_vec()).ok()));
            ControlFlow::Continue(())
        })?;
        Ok(names)
    }
}

fn remove_all(rows: &mut OrderedTable<'_>, policy: &str) -> Result<(), StoreError> {
    let (from, to) = range(policy);
    loop {
        let some = rows.first(&from, &to, STEP)?;
        some.iter().try_for_each(|(key, _)| rows.remove(key))?;
        if some.len() < STEP {
            return Ok(());
        }
    }
}

impl StateBacking for StoredStates {
    fn load(&self, policy: &str) -> Result<Vec<StateEntry>, StateBackingError> {
        self.read(policy).map_err(failed)
    }

    fn save(&self, changes: &[StateChanges]) -> Result<(), StateBackingError> {
        self.write(changes).map_err(failed)
    }

    fn policies(&self) -> Result<Vec<String>, StateBackingError> {
        self.names().map_err(failed)
    }
}

fn failed(error: StoreError) -> StateBackingError {
    StateBackingError(Box::new(error))
}
