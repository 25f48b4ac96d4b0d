//! Applies changes of policy folders, of the keys file, and of `[policies]`, `[access]` and
//! `[[keys]]` in the configuration, while the host serves.
//!
//! ```text
//!   notify ──event──> debounce ───────────┐
//!   SIGHUP, admin ────────────────────────┼──> compare stamps ──> Policies, KeySource
//!   every `policies.poll-interval` ───────┘
//! ```
//!
//! Events only trigger a scan; what changed is found by comparing file stamps. That makes mounts
//! that send no events, folders that are replaced through a symbolic link, and editors that write
//! several files for one save behave alike.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use pointsman_policy::{Change, Policies};
use serde::Serialize;

use pointsman_config::Config;
use pointsman_settings::folder_of;

use crate::key_source::KeySource;
use crate::stamp::{Stamp, stamp};

/// Events that are closer together than this count as one change.
const QUIET_PERIOD: Duration = Duration::from_millis(250);
/// Maximum delay of a scan while events keep arriving.
const MAX_DEBOUNCE: Duration = Duration::from_secs(2);

/// Sections whose changes are applied without a restart.
const APPLIED: [&str; 3] = ["policies", "keys", "access"];

/// Which part of the configuration file is active.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigStatus {
    /// Why the current content of the file is not active.
    pub(crate) error: Option<String>,
    /// Sections that have changed since the start and need a restart to take effect.
    pub(crate) restart_for: Vec<String>,
    /// Why the current content of the keys file is not active.
    pub(crate) keys_error: Option<String>,
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reloaded {
    pub(crate) config: ConfigStatus,
    /// Changed policies, and the result for each.
    pub(crate) policies: Vec<(String, String)>,
}

enum Wake {
    Changed,
    Reload(Option<Sender<Reloaded>>),
    Stop,
}

/// A handle to the thread that scans for changes.
#[derive(Debug)]
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    status: Arc<Mutex<ConfigStatus>>,
}

impl Reloader {
    /// Starts watching the file that `config` was read from and the folders of its policies.
    pub(crate) fn start(
        file: &Path,
        config: &pointsman_config::Policies,
        (policies, keys): (Arc<Policies>, KeySource),
    ) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let status = Arc::<Mutex<ConfigStatus>>::default();
        let mut watcher = ConfigWatcher {
            file: file.to_owned(),
            stamp: stamp(file),
            started_with: sections(file).unwrap_or_default(),
            policies,
            keys,
            poll_interval: config.poll_interval,
            has_store: config.chain.store.is_some(),
            watched: Watched::new(wake.clone()),
            status: Arc::clone(&status),
        };
        watcher.watched.watch(file, config, watcher.keys.keys_file());
        let run = move || watcher.run(&woken);
        std::thread::Builder::new().name("policy-reload".into()).spawn(run)?;
        Ok(Self { wake, status })
    }

    /// Triggers a scan without waiting for its result.
    pub(crate) fn wake(&self) {
        self.wake.send(Wake::Reload(None)).ok(); // Fails only while the host stops.
    }

    /// Scans now and returns the result; `None` if the host is stopping.
    pub(crate) fn reload(&self) -> Option<Reloaded> {
        let (reply, replied) = channel();
        self.wake.send(Wake::Reload(Some(reply))).ok()?;
        replied.recv().ok()
    }

    /// Returns which part of the configuration is active.
    pub(crate) fn status(&self) -> ConfigStatus {
        self.status.lock().clone()
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        // Not joined: the thread may be compiling a policy, which can take seconds.
        self.wake.send(Wake::Stop).ok(); // Fails only if the thread has ended.
    }
}

struct ConfigWatcher {
    file: PathBuf,
    stamp: Stamp,
    /// The sections of the file when the host started.
    started_with: toml::Table,
    policies: Arc<Policies>,
    keys: KeySource,
    poll_interval: Duration,
    /// False if the host runs without a state directory.
    has_store: bool,
    watched: Watched,
    status: Arc<Mutex<ConfigStatus>>,
}

impl ConfigWatcher {
    fn run(&mut self, woken: &Receiver<Wake>) {
        loop {
            let reply = match woken.recv_timeout(self.poll_interval) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Reload(reply)) => reply,
                Ok(Wake::Changed) => match debounce(woken) {
                    Ok(reply) => reply,
                    Err(Stopped) => return,
                },
                Err(RecvTimeoutError::Timeout) => None,
            };
            let reloaded = self.scan();
            if let Some(reply) = reply {
                reply.send(reloaded).ok(); // The caller may have stopped waiting.
            }
        }
    }

    fn scan(&mut self) -> Reloaded {
        let stamp = stamp(&self.file);
        let mut changes = Vec::new();
        if stamp != self.stamp {
            self.stamp = stamp;
            changes.extend(self.apply_config());
        }
        // Before policies, whose compilation may take seconds: a revoked key must not wait for it.
        self.keys.look();
        self.status.lock().keys_error = self.keys.error().map(str::to_owned);
        changes.extend(self.policies.look());
        let policies =
            changes.into_iter().map(|(name, change)| (name, describe(&change))).collect();
        let config = self.status.lock().clone();
        Reloaded { config, policies }
    }

    fn apply_config(&mut self) -> Vec<(String, Change)> {
        let config = match Config::load(&self.file) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(
                    event = "config_reload_failed",
                    %error,
                    "configuration reload failed; keeping the current one"
                );
                self.set_status(ConfigStatus {
                    error: Some(error.to_string()),
                    ..ConfigStatus::default()
                });
                return Vec::new();
            }
        };
        let now = sections(&self.file).unwrap_or_default();
        let names: BTreeSet<&String> = now.keys().chain(self.started_with.keys()).collect();
        let differs =
            |name: &str| !APPLIED.contains(&name) && now.get(name) != self.started_with.get(name);
        let mut restart_for: Vec<String> =
            names.into_iter().filter(|name| differs(name)).cloned().collect();
        if tokens(&now) != tokens(&self.started_with) {
            restart_for.push("access.tokens".to_owned());
        }
        if !restart_for.is_empty() {
            let sections = restart_for.join(", ");
            tracing::warn!(sections, "configuration changes need a restart to take effect");
        }
        self.poll_interval = config.policies.poll_interval;
        self.keys.reconfigure(&config);
        self.watched.watch(&self.file, &config.policies, self.keys.keys_file());
        let mut chain = config.policies.chain;
        chain.store.take_if(|_| !self.has_store);
        let changes = self.policies.apply(chain);
        // Last: who reads the status of a new configuration can rely on its policies being active.
        self.set_status(ConfigStatus { restart_for, ..ConfigStatus::default() });
        changes
    }

    fn set_status(&self, status: ConfigStatus) {
        *self.status.lock() = status;
    }
}

/// Returns the settings of tokens, which are read at the start only.
fn tokens(sections: &toml::Table) -> Option<&toml::Value> {
    sections.get("access")?.get("tokens")
}

struct Stopped;

/// Waits until no change has arrived for [`QUIET_PERIOD`]. Returns a reload request that arrived
/// meanwhile, to be answered after the scan.
fn debounce(woken: &Receiver<Wake>) -> Result<Option<Sender<Reloaded>>, Stopped> {
    let begun = Instant::now();
    while begun.elapsed() < MAX_DEBOUNCE {
        match woken.recv_timeout(QUIET_PERIOD) {
            Ok(Wake::Changed) => {}
            Ok(Wake::Reload(reply)) => return Ok(reply),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    Ok(None)
}

/// Describes the result of a change for the operator.
fn describe(change: &Change) -> String {
    match change {
        Change::Active(version) => format!("{version} is active"),
        Change::Candidate(version) => format!("{version} is staged as a candidate"),
        Change::Unchanged => "unchanged".to_owned(),
        Change::Failed(error) => format!("unchanged, because loading failed: {error}"),
        Change::Removed => "removed from the chain".to_owned(),
    }
}

/// Reads the top-level tables of a configuration file.
fn sections(file: &Path) -> Option<toml::Table> {
    Config::source(file).ok()?.parse().ok()
}

/// The watched folders. Without a watcher only polling finds changes.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(wake: Sender<Wake>) -> Self {
        let changed = move |event: notify::Result<notify::Event>| {
            // Reads are not changes: reading a policy would trigger the next scan, endlessly.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                wake.send(Wake::Changed).ok(); // Fails only while the host stops.
            }
        };
        let watcher = notify::recommended_watcher(changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "file watching is unavailable; falling back to polling");
        }
        Self { watcher: watcher.ok(), folders: BTreeSet::new() }
    }

    fn watch(
        &mut self,
        file: &Path,
        config: &pointsman_config::Policies,
        keys_file: Option<&Path>,
    ) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted = BTreeSet::from([folder_of(file).to_owned(), config.dir.clone()]);
        wanted.extend(keys_file.map(|file| folder_of(file).to_owned()));
        wanted.extend(config.chain.policies.iter().map(|policy| policy.dir.clone()));
        for folder in self.folders.difference(&wanted) {
            watcher.unwatch(folder).ok(); // Fails if the folder was removed.
        }
        // Watches are renewed on every call: a folder that was replaced by another one of the same
        // name is not watched any more.
        self.folders = wanted
            .into_iter()
            .filter(|folder| match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    let folder = folder.display();
                    tracing::debug!(%folder, %error, "cannot watch the folder; polling it");
                    false
                }
            })
            .collect();
    }
}
