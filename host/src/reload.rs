//! Takes up changes of the policies' folders, and of `[policies]` in the configuration, while the host serves.
//!
//! ```text
//!   notify ──event──> quiet for a moment ──┐
//!   SIGHUP, admin ─────────────────────────┼──> look at stamps ──> Policies::look, Policies::apply
//!   every `policies.poll` ─────────────────┘
//! ```
//!
//! Events only say that it is time to look: what has changed is found by looking. So a mount that sends no events, a folder
//! that is swapped by a link, and an editor that writes three files for one save are all the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use pointsman_policy::{Change, Policies};
use serde::Serialize;

use crate::config::Config;

/// Events that come closer together than this are one change.
const QUIET: Duration = Duration::from_millis(250);
/// Somebody who never stops writing is looked at this often.
const LONGEST_NOISE: Duration = Duration::from_secs(2);

/// What is running of a configuration, and what is wrong with the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigStatus {
    /// Why the file, as it is now, is not what runs.
    pub(crate) error: Option<String>,
    /// Sections that have changed since the start, and take effect at the next one.
    pub(crate) restart_for: Vec<String>,
}

/// What came of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reloaded {
    pub(crate) config: ConfigStatus,
    /// Policies and what became of each.
    pub(crate) policies: Vec<(String, String)>,
}

enum Wake {
    Changed,
    Reload(Option<Sender<Reloaded>>),
    Stop,
}

/// The thread that looks.
#[derive(Debug)]
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    status: Arc<Mutex<ConfigStatus>>,
}

impl Reloader {
    /// Look at the file that `config` was read from, and at the folders of its policies.
    pub(crate) fn start(
        file: &Path,
        config: &crate::config::Policies,
        policies: Arc<Policies>,
    ) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let status = Arc::<Mutex<ConfigStatus>>::default();
        let mut looker = Looker {
            file: file.to_owned(),
            stamp: stamp(file),
            started_with: sections(file).unwrap_or_default(),
            policies,
            poll: config.poll,
            watched: Watched::new(wake.clone()),
            status: Arc::clone(&status),
        };
        looker.watched.watch(file, config);
        let run = move || looker.run(&woken);
        std::thread::Builder::new().name("policy-reload".into()).spawn(run)?;
        Ok(Self { wake, status })
    }

    /// Look now, and do not wait for what comes of it.
    pub(crate) fn wake(&self) {
        // Without a thread there is nobody to look.
        drop(self.wake.send(Wake::Reload(None)));
    }

    /// Look now. `None` when the host stops.
    pub(crate) fn reload(&self) -> Option<Reloaded> {
        let (answer, answered) = channel();
        self.wake.send(Wake::Reload(Some(answer))).ok()?;
        answered.recv().ok()
    }

    /// What is running of the configuration.
    pub(crate) fn status(&self) -> ConfigStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        // Not waited for: it may be compiling, and a host that ends has no time for that.
        drop(self.wake.send(Wake::Stop));
    }
}

struct Looker {
    file: PathBuf,
    stamp: Stamp,
    /// What the sections of the file were when the host started.
    started_with: toml::Table,
    policies: Arc<Policies>,
    poll: Duration,
    watched: Watched,
    status: Arc<Mutex<ConfigStatus>>,
}

impl Looker {
    fn run(&mut self, woken: &Receiver<Wake>) {
        loop {
            let answer = match woken.recv_timeout(self.poll) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Reload(answer)) => answer,
                Ok(Wake::Changed) => match quiet(woken) {
                    Ok(answer) => answer,
                    Err(Stopped) => return,
                },
                Err(RecvTimeoutError::Timeout) => None,
            };
            let reloaded = self.look();
            if let Some(answer) = answer {
                // Whoever asked may be gone.
                drop(answer.send(reloaded));
            }
        }
    }

    fn look(&mut self) -> Reloaded {
        let stamp = stamp(&self.file);
        let mut changes = Vec::new();
        if stamp != self.stamp {
            self.stamp = stamp;
            changes.extend(self.take_up_config());
        }
        changes.extend(self.policies.look());
        let format_duration =
            changes.into_iter().map(|(name, change)| (name, format_duration(&change))).collect();
        let config = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Reloaded { config, policies: format_duration }
    }

    fn take_up_config(&mut self) -> Vec<(String, Change)> {
        let config = match Config::load(&self.file) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("the configuration stays as it was: {error}");
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
            |name: &str| name != "policies" && now.get(name) != self.started_with.get(name);
        let restart_for: Vec<String> =
            names.into_iter().filter(|name| differs(name)).cloned().collect();
        if !restart_for.is_empty() {
            tracing::warn!(
                "changed in the configuration, and in force from the next start on: {}",
                restart_for.join(", ")
            );
        }
        self.set_status(ConfigStatus { error: None, restart_for });
        self.poll = config.policies.poll;
        self.watched.watch(&self.file, &config.policies);
        self.policies.apply(config.policies.chain)
    }

    fn set_status(&self, status: ConfigStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

struct Stopped;

/// Wait until nothing has changed for a moment. Whoever asks for a reload meanwhile is answered after it.
fn quiet(woken: &Receiver<Wake>) -> Result<Option<Sender<Reloaded>>, Stopped> {
    let begun = Instant::now();
    while begun.elapsed() < LONGEST_NOISE {
        match woken.recv_timeout(QUIET) {
            Ok(Wake::Changed) => {}
            Ok(Wake::Reload(answer)) => return Ok(answer),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    Ok(None)
}

fn format_duration(change: &Change) -> String {
    match change {
        Change::Active(version) => format!("{version} is in service"),
        Change::Trial(version) => format!("{version} is tried out"),
        Change::Same => "as it was".to_owned(),
        Change::Failed(error) => format!("stays as it was: {error}"),
        Change::Removed => "is no longer in the chain".to_owned(),
    }
}

/// Device, inode, size and time of change of a file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(file: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The top level of a configuration file.
fn sections(file: &Path) -> Option<toml::Table> {
    std::fs::read_to_string(file).ok()?.parse().ok()
}

/// The folders that events come from. Without any, the poll is all there is.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(wake: Sender<Wake>) -> Self {
        let changed = move |event: notify::Result<notify::Event>| {
            // Reading is no change; our own reading of a policy would wake us for ever.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                drop(wake.send(Wake::Changed));
            }
        };
        let watcher = notify::recommended_watcher(changed);
        if let Err(error) = &watcher {
            tracing::warn!("changes of policies are seen by looking now and then: {error}");
        }
        Self { watcher: watcher.ok(), folders: BTreeSet::new() }
    }

    fn watch(&mut self, file: &Path, config: &crate::config::Policies) {
        let Some(watcher) = &mut self.watcher else { return };
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut wanted =
            BTreeSet::from([parent.unwrap_or(Path::new(".")).to_owned(), config.dir.clone()]);
        wanted.extend(config.chain.policies.iter().map(|policy| policy.dir.clone()));
        for folder in self.folders.difference(&wanted) {
            // It may be gone by itself.
            drop(watcher.unwatch(folder));
        }
        // Again and again: a folder that was replaced by another one of its name is not watched any more.
        self.folders = wanted
            .into_iter()
            .filter(|folder| match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!("{}: seen by looking now and then: {error}", folder.display());
                    false
                }
            })
            .collect();
    }
}
