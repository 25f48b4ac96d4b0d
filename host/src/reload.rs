//! Applies changes of the configuration, of the keys file and of policy folders, while the host
//! serves.
//!
//! ```text
//!   event: a file is complete ─────────────┐
//!   other events ──> quiet for 250 ms ─────┤
//!   SIGHUP, admin ─────────────────────────┼──> stamps differ ──> read, validate ──> plan
//!   every `policies.poll-interval` ────────┘                                           │
//!                                                                                      ▼
//!     policies <── own thread <── keys <── records, usage, log <── gateway <── fleet <─┘
//! ```
//!
//! Events only trigger a scan; what changed is found by comparing file stamps. That makes mounts
//! that send no events, folders that are replaced through a symbolic link, and editors that write
//! several files for one save behave alike. An invalid file changes nothing. Policies are loaded by
//! a thread of their own (`policies.rs`): a revoked key never waits for a compiler.

mod hosts;
mod plan;
mod policies;
mod source;
mod status;
mod target;
mod watched;
mod watcher;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use pointsman_config::{Config, EndpointsFile};
use pointsman_policy::Policies;
use serde::Serialize;

use self::hosts::HostLanes;
pub(crate) use self::plan::Plan;
use self::policies::{PolicyChange, PolicyLoader};
use self::source::Source;
use self::status::ConfigStatus;
pub(crate) use self::status::{ReloadMetrics, ReloadResult};
pub(crate) use self::target::Target;
use self::watched::{FileEvent, Watched};
use self::watcher::{ConfigWatcher, watch};
use crate::key_source::KeySource;
use crate::registry::PolicySources;

/// What a reload has done, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) result: ReloadResult,
    /// Number of the configuration in force.
    pub(crate) generation: u64,
    /// Why the file was rejected.
    pub(crate) error: Option<String>,
    /// Why the keys file is not in force as it is.
    pub(crate) keys_error: Option<String>,
    pub(crate) plan: Plan,
    /// Changed policies, and the result for each.
    pub(crate) policy_changes: Vec<PolicyChange>,
}

impl Outcome {
    fn new(result: ReloadResult, generation: u64, plan: Plan) -> Self {
        let (error, keys_error, policy_changes) = Default::default();
        Self { result, generation, error, keys_error, plan, policy_changes }
    }

    fn rejected(generation: u64, error: String) -> Self {
        let rejected = Self::new(ReloadResult::Rejected, generation, Plan::default());
        Self { error: Some(error), ..rejected }
    }

    fn of_reload(status: &ConfigStatus, policy_changes: Vec<PolicyChange>) -> Self {
        let last = status.last_reload.clone();
        let (result, plan) = last.map_or_else(
            || (ReloadResult::Unchanged, Plan::default()),
            |last| (last.result, last.plan),
        );
        Self {
            error: status.error.clone(),
            keys_error: status.keys_error.clone(),
            policy_changes,
            ..Self::new(result, status.generation, plan)
        }
    }
}

enum Wake {
    Changed(FileEvent),
    Reload(Option<Sender<Outcome>>),
    /// What would the file, or this text, change?
    Plan(Option<String>, Sender<Outcome>),
    Stop,
}

/// A handle to the thread that looks for changes. It works from [`Reloader::start`] on; what is
/// asked before waits.
#[derive(Debug)]
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    woken: Mutex<Option<Receiver<Wake>>>,
    status: Arc<Mutex<ConfigStatus>>,
}

/// The files and parts that a reload is about.
pub(crate) struct Reloaded<'a> {
    pub(crate) file: &'a Path,
    /// The text with which the host was started.
    pub(crate) text: String,
    pub(crate) config: &'a Config,
    pub(crate) policies: Arc<Policies>,
    pub(crate) sources: Arc<PolicySources>,
    pub(crate) keys: KeySource,
    pub(crate) target: Target,
    pub(crate) metrics: ReloadMetrics,
}

impl Reloader {
    /// Creates a handle, for parts that are made before those that are reloaded.
    pub(crate) fn new() -> Arc<Self> {
        let (wake, woken) = channel();
        let status = ConfigStatus { generation: 1, ..ConfigStatus::default() };
        let (woken, status) = (Mutex::new(Some(woken)), Arc::new(Mutex::new(status)));
        Arc::new(Self { wake, woken, status })
    }

    /// Starts the threads, and watches the files and the folders of policies.
    ///
    /// # Errors
    /// If a thread cannot be spawned.
    pub(crate) fn start(&self, reloaded: Reloaded<'_>) -> std::io::Result<()> {
        let Reloaded { file, text, config, policies, sources, keys, target, metrics } = reloaded;
        let Some(woken) = self.woken.lock().take() else { return Ok(()) };
        let wake = self.wake.clone();
        let mut watched = Watched::new(move |event| {
            wake.send(Wake::Changed(event)).ok(); // Fails only while the host stops.
        });
        let wake = self.wake.clone();
        let hosts = HostLanes::new(target.fleet.peers(), &target.runtime, move || {
            let changed = Wake::Changed(FileEvent { is_complete: false });
            wake.send(changed).ok(); // Fails only while the host stops.
        });
        let mut source = Source::new(file, text, vec![Arc::new(EndpointsFile), Arc::new(hosts)]);
        source.set_pick(config.pick.as_ref());
        watch(&mut watched, &source, &keys, config);
        let mut watcher = ConfigWatcher {
            source,
            target,
            keys,
            policies: PolicyLoader::start(policies, sources)?,
            poll_interval: config.policies.poll_interval,
            store: config.policies.chain.store.clone(),
            watched,
            status: Arc::clone(&self.status),
            metrics,
        };
        let run = move || watcher.run(&woken);
        std::thread::Builder::new().name("reload".into()).spawn(run).map(drop)
    }

    /// Has the folders of policies scanned soon.
    pub(crate) fn policies_changed(&self) {
        let changed = Wake::Changed(FileEvent { is_complete: false });
        self.wake.send(changed).ok(); // Fails only while the host stops.
    }

    /// Triggers a reload without waiting for its result.
    pub(crate) fn wake(&self) {
        self.wake.send(Wake::Reload(None)).ok(); // Fails only while the host stops.
    }

    /// Reloads now and returns the result; `None` if the host is stopping.
    pub(crate) fn reload(&self) -> Option<Outcome> {
        let (reply, replied) = channel();
        self.wake.send(Wake::Reload(Some(reply))).ok()?;
        replied.recv().ok()
    }

    /// Returns what a reload of the file, or of `text`, would do; `None` if the host is stopping.
    pub(crate) fn plan(&self, text: Option<String>) -> Option<Outcome> {
        let (reply, replied) = channel();
        self.wake.send(Wake::Plan(text, reply)).ok()?;
        replied.recv().ok()
    }

    /// Ends the thread, which then gives up the parts of the host that it changes, such as the
    /// store. Does not wait for it: it may be reading from a disk that hangs.
    pub(crate) fn stop(&self) {
        self.wake.send(Wake::Stop).ok(); // Fails only if the thread has ended.
    }

    /// Returns which configuration is in force.
    pub(crate) fn status(&self) -> ConfigStatus {
        self.status.lock().clone()
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        self.stop();
    }
}
