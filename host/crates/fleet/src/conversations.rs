//! Conversations that outlive the unloading of their lane: before an engine is stopped, what its
//! slots have cached is saved; after the next load it is restored, before the first request that
//! goes on with it is sent.
//!
//! ```text
//!   request ──Lease::place──> Session ──> slot (sent as `id_slot`), restored from a file
//!   usage   ────────────────> Session     what the slot has cached now; was the restore of use?
//!   unload  ──Session::save_all──> files, within the budget
//! ```
//!
//! A failure of any of this is counted, and is never the failure of a request.

mod engine;
mod files;
mod index;
mod metrics;
mod plan;
mod session;
mod settings;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use self::files::Folder;
use self::index::{Budget, Evicted, Index, Record};
use self::plan::{FileId, Stored};
use crate::launch::Launch;

pub(crate) use self::engine::{EngineCalls, launch_identity};
pub(crate) use self::metrics::ConversationMetrics;
pub use self::plan::{ConversationPrompt, Owner};
pub(crate) use self::session::{Placed, Session};
pub use self::settings::ConversationSettings;

/// What stands for the folder of a lane's conversations in the command line of its engine.
pub(crate) const FOLDER_PLACEHOLDER: &str = "{conversations}";
/// The interval between checks of the age of files.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(300);
/// Maximum time that a stop of the host waits for the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// Restores in a row that were of no use, after which a lane does without.
const MAX_MISSES: u32 = 2;

/// The saved conversations of all lanes. Clones share them.
#[derive(Debug, Clone)]
pub struct Conversations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: ConversationSettings,
    /// `None` if nothing is kept.
    folder: Option<Folder>,
    index: Mutex<Index>,
    lanes: Mutex<BTreeMap<String, LaneState>>,
    /// The engines that run, for erasures.
    sessions: Mutex<Vec<Weak<Session>>>,
    /// The number of erasures: what was taken for a save before one is not kept after it.
    erasures: AtomicU64,
    /// Files that the disk does not have yet.
    commits: Mutex<JoinSet<()>>,
    metrics: ConversationMetrics,
}

/// What was learned about saving and restoring the slots of a lane's engine.
#[derive(Debug, Default)]
struct LaneState {
    /// Restores in a row that were of no use.
    misses: u32,
    /// Why conversations are off, for engines with this fingerprint.
    off: Option<(u64, &'static str)>,
    /// Bytes that a token takes in a file; 0 if unknown.
    bytes_per_token: u64,
}

/// The saved conversations of a lane, as operators see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConversationStatus {
    /// Number of files.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// Why nothing is saved and restored any more.
    pub off: Option<&'static str>,
}

/// Saved conversations that were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErasedConversations {
    /// Number of files.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

impl Conversations {
    /// Opens the saved conversations in a state directory. Without `settings` or a directory,
    /// nothing is kept.
    pub(crate) fn open(
        settings: Option<ConversationSettings>,
        state_dir: Option<&Path>,
        metrics: ConversationMetrics,
    ) -> Self {
        let folder = settings.and(state_dir).and_then(|dir| {
            Folder::create(dir)
                .inspect_err(|error| {
                    tracing::warn!(
                        event = "conversations_unavailable", %error, "conversations are not kept"
                    );
                })
                .ok()
        });
        let settings = settings.unwrap_or_default();
        let budget = Budget { bytes: settings.max_bytes, age: settings.max_age };
        let index = Mutex::new(Index::new(budget, settings.share_tenants));
        let store = Self(Arc::new(Inner {
            settings,
            folder,
            index,
            lanes: Mutex::default(),
            sessions: Mutex::default(),
            erasures: AtomicU64::new(0),
            commits: Mutex::default(),
            metrics,
        }));
        if let Some(folder) = &store.0.folder {
            for (file, record) in folder.load() {
                store.insert(file, record);
            }
        }
        store
    }

    /// Creates the folder for a lane's engine to write in, and replaces the placeholder in its
    /// command line. Returns false, and removes the option with the placeholder, if nothing is
    /// kept: an engine refuses to start with a folder that does not exist.
    pub(crate) fn prepare(&self, lane: &str, launch: &mut Launch) -> bool {
        let created = self.0.folder.as_ref().and_then(|folder| {
            folder
                .create_lane(lane)
                .inspect_err(|error| tracing::warn!(%error, "conversations are not kept"))
                .ok()
        });
        let is_kept = created.is_some();
        fill_folder(launch, created);
        is_kept
    }

    /// Returns the conversations of a start of a lane's engine, which has so many slots.
    pub(crate) fn session(&self, lane: &str, slots: u32) -> Arc<Session> {
        let session = Arc::new(Session::new(self.clone(), lane, slots));
        let mut sessions = self.0.sessions.lock();
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        session
    }

    /// Deletes files when they are too old. Runs until it is dropped.
    pub(crate) async fn expire(self) {
        if self.0.folder.is_none() {
            return;
        }
        loop {
            tokio::time::sleep(EXPIRY_INTERVAL).await;
            let evicted = self.0.index.lock().enforce(now());
            self.delete(evicted).await;
        }
    }

    /// Deletes what was saved for a tenant, or for one of its keys. Blocks on the disk.
    pub fn erase(&self, tenant: Option<&str>, key: Option<&str>) -> ErasedConversations {
        let is_erased = |owner: &Owner| {
            let is = |of: &Option<Arc<str>>, wanted: Option<&str>| {
                wanted.is_none_or(|wanted| of.as_deref() == Some(wanted))
            };
            is(&owner.tenant, tenant) && is(&owner.key, key)
        };
        // Before the files, so that none of it is saved after that. Relaxed: the locks of the table
        // and of the index order it.
        self.0.erasures.fetch_add(1, Ordering::Relaxed);
        for session in self.0.sessions.lock().iter().filter_map(Weak::upgrade) {
            session.forget(is_erased);
        }
        let erased = self.0.index.lock().erase(is_erased);
        let mut result = ErasedConversations::default();
        for (file, record) in &erased {
            result.files += 1;
            result.bytes = result.bytes.saturating_add(record.bytes);
            self.delete_one(*file, record);
        }
        result
    }

    /// Returns the saved conversations of a lane; `None` if nothing is kept.
    pub fn status(&self, lane: &str) -> Option<ConversationStatus> {
        self.0.folder.as_ref()?;
        let index = self.0.index.lock();
        let (files, bytes) = (index.files(lane), index.bytes(Some(lane)));
        drop(index);
        let off = self.0.lanes.lock().get(lane).and_then(|lane| lane.off);
        Some(ConversationStatus { files, bytes, off: off.map(|(_, reason)| reason) })
    }

    /// Returns the number of erasures.
    fn erasures(&self) -> u64 {
        self.0.erasures.load(Ordering::Relaxed)
    }

    /// Returns true if slots of this lane's engine are saved and restored.
    fn is_on(&self, lane: &str, fingerprint: u64) -> bool {
        let lanes = self.0.lanes.lock();
        let off = lanes.get(lane).and_then(|lane| lane.off);
        self.0.folder.is_some() && off.is_none_or(|(of, _)| of != fingerprint)
    }

    /// Saves and restores no more slots of this engine, until its model, version or settings
    /// change.
    fn turn_off(&self, lane: &str, fingerprint: u64, reason: &'static str) {
        self.0.lanes.lock().entry(lane.to_owned()).or_default().off = Some((fingerprint, reason));
        tracing::warn!(
            event = "conversations_off",
            lane,
            reason,
            "conversations of the lane are not saved any more"
        );
    }

    /// Notes whether the restore of a conversation was of use.
    fn note_restore(&self, lane: &str, fingerprint: u64, was_useful: bool) {
        let mut lanes = self.0.lanes.lock();
        let state = lanes.entry(lane.to_owned()).or_default();
        state.misses = if was_useful { 0 } else { state.misses + 1 };
        let is_useless = state.misses >= MAX_MISSES;
        if is_useless {
            // A later engine is tried again.
            state.misses = 0;
        }
        drop(lanes);
        if !was_useful {
            self.0.metrics.failed(lane, "useless");
        }
        if is_useless {
            self.turn_off(lane, fingerprint, "useless");
        }
    }

    /// Returns the best saved conversation for a prompt.
    fn best(&self, lane: &str, fingerprint: u64, prompt: &ConversationPrompt) -> Option<Stored> {
        self.0.index.lock().best(lane, fingerprint, prompt, self.0.settings.min_tokens)
    }

    /// Adds a file, and deletes what it replaces.
    fn insert(&self, file: FileId, record: Record) -> bool {
        let evicted = self.0.index.lock().insert(file, record, now());
        for (file, record) in &evicted {
            self.delete_one(*file, record);
        }
        evicted.iter().all(|(evicted, _)| *evicted != file)
    }

    /// Makes a file durable, in the background.
    fn commit(&self, file: FileId, record: Record) {
        let store = self.clone();
        let mut commits = self.0.commits.lock();
        while commits.try_join_next().is_some() {}
        commits.spawn_blocking(move || {
            let Some(folder) = &store.0.folder else { return };
            if let Err(error) = folder.commit(file, &record) {
                tracing::warn!(lane = record.lane, %error, "failed to save a conversation");
                store.0.metrics.failed(&record.lane, "disk");
                store.remove(file);
            } else if store.0.index.lock().get(file).is_none() {
                // It was replaced or erased meanwhile.
                folder.delete(&record.lane, file);
            }
        });
    }

    /// Waits until the disk has what was saved, for a limited time.
    pub(crate) async fn flush(&self) {
        let mut commits = std::mem::take(&mut *self.0.commits.lock());
        let flushed = async { while commits.join_next().await.is_some() {} };
        // What the disk does not have by then is deleted at the next start.
        tokio::time::timeout(FLUSH_TIMEOUT, flushed).await.ok();
    }

    /// Removes a file that is of no use.
    fn remove(&self, file: FileId) {
        let removed = self.0.index.lock().remove(file);
        if let Some(record) = removed {
            self.delete_one(file, &record);
        }
    }

    async fn delete(&self, evicted: Vec<Evicted>) {
        let store = self.clone();
        let delete =
            move || evicted.iter().for_each(|(file, record)| store.delete_one(*file, record));
        // Fails only if the deletion panicked, or the runtime ends.
        tokio::task::spawn_blocking(delete).await.ok();
    }

    fn delete_one(&self, file: FileId, record: &Record) {
        if let Some(folder) = &self.0.folder {
            folder.delete(&record.lane, file);
        }
    }
}

/// Replaces the placeholder of the folder; without one, removes the option whose value it is.
fn fill_folder(launch: &mut Launch, folder: Option<PathBuf>) {
    let has_placeholder = |word: &String| word.contains(FOLDER_PLACEHOLDER);
    let Some(folder) = folder else {
        while let Some(at) = launch.command.iter().position(has_placeholder) {
            let is_value = launch.command[at] == FOLDER_PLACEHOLDER
                && at > 1
                && launch.command[at - 1].starts_with('-');
            launch.command.drain(at - usize::from(is_value)..=at);
        }
        launch.env.retain(|(_, value)| !has_placeholder(value));
        return;
    };
    // The engine's own folder may be another one.
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let folder = folder.to_string_lossy();
    let values = launch.env.iter_mut().map(|(_, value)| value);
    for word in launch.command.iter_mut().chain(values) {
        *word = word.replace(FOLDER_PLACEHOLDER, &folder);
    }
}

/// Returns the time since the Unix epoch.
fn now() -> Duration {
    // A clock before the epoch only makes files look new.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns an id that no other file has.
fn new_id() -> FileId {
    // Each state has random keys.
    let half = || u128::from(RandomState::new().hash_one(0));
    FileId(half() << 64 | half())
}

#[cfg(test)]
mod tests;
