//! The replicator: namespaces, and the thread that keeps them up to date.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::namespace::Namespace;
use crate::replica::Replica;
use crate::settings::{Settings, SettingsError};
use crate::status::{Status, StatusCell};
use crate::worker::{Namespaces, Worker};

/// Shares namespaces with other processes, by a thread of its own. Clones share the thread, which
/// ends after a last round when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Replicator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    replica: Arc<Replica>,
    namespaces: Namespaces,
    status: Arc<StatusCell>,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A replicator cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are invalid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The thread or its runtime cannot be created.
    #[error("failed to start the thread of the shared state")]
    Thread(#[from] io::Error),
}

impl Replicator {
    /// Starts the thread. Does not wait for the store, which need not be available.
    ///
    /// # Errors
    /// If the settings are invalid, or the thread cannot be created.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        settings.validate()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let replica = Arc::new(Replica::new());
        let namespaces = Namespaces::default();
        let status = Arc::<StatusCell>::default();
        let (stop, stopped) = watch::channel(false);
        let worker = Worker::new(
            settings.clone(),
            Arc::clone(&replica),
            Arc::clone(&namespaces),
            Arc::clone(&status),
        );
        let thread = std::thread::Builder::new().name("shared-state".to_owned());
        let thread = thread.spawn(move || runtime.block_on(worker.run(stopped)))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self(Arc::new(Inner { settings, replica, namespaces, status, stop, thread })))
    }

    /// Returns the namespace of a name without braces, and begins to read what the store has of it.
    /// `max_bytes` limits what is kept in memory of a namespace that is new: the entries that were
    /// not used for the longest time are forgotten, which the store keeps.
    pub fn namespace(&self, name: &str, max_bytes: usize) -> Namespace {
        let mut namespaces = self.0.namespaces.lock();
        if let Some(namespace) = namespaces.get(name) {
            return namespace.clone();
        }
        let Settings { prefix, max_keys, .. } = &self.0.settings;
        let replica = Arc::clone(&self.0.replica);
        let namespace = Namespace::new(replica, prefix, name, max_bytes, *max_keys);
        namespaces.insert(name.to_owned(), namespace.clone());
        namespace
    }

    /// Returns whether the store is available, and how much it has not confirmed.
    pub fn status(&self) -> Status {
        let namespaces: Vec<Namespace> = self.0.namespaces.lock().values().cloned().collect();
        let counts = namespaces.iter().map(Namespace::pending_and_dropped);
        let (pending, dropped) = counts.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        self.0.status.status(self.0.replica.now().mono, pending, dropped)
    }

    /// Returns the number of rounds that have succeeded. Unlike [`Replicator::status`], this looks
    /// at no entries, so that each request may ask for it.
    pub fn rounds(&self) -> u64 {
        self.0.status.rounds()
    }

    /// Makes a last round, and ends the thread. Blocks for a second or so at most.
    pub fn finish(&self) {
        self.0.stop.send_replace(true);
        if let Some(thread) = self.0.thread.lock().take() {
            // A thread that has panicked has nothing left to send.
            thread.join().ok();
        }
    }
}
