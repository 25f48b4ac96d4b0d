//! The thread that looks for changes, and applies those of the configuration and of keys.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pointsman_config::{Config, ConfigError, KeyChange, differences};
use pointsman_policy::ChainSpec;
use pointsman_settings::{Code, Diagnostic};

use super::plan::Plan;
use super::policies::{OnScanned, PolicyLoader};
use super::source::{Candidate, Source};
use super::status::{ConfigStatus, LastReload, ReloadMetrics, ReloadResult};
use super::target::Target;
use super::watched::{FileEvent, Watched};
use super::{Outcome, Wake};
use crate::key_source::{KeySource, PreparedKeys};
use crate::service_manager;

/// Events that are closer together than this count as one change. A file that is complete is looked
/// at without waiting.
const QUIET_PERIOD: Duration = Duration::from_millis(250);
/// Maximum delay of a scan while events keep arriving.
const MAX_DEBOUNCE: Duration = Duration::from_secs(2);

/// Why the files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// An event says that a file is complete.
    Completed,
    /// Nothing has happened for a while, or it is time to look.
    Settled,
    /// An operator wants it.
    Command,
}

/// A scan that is due when events cease.
#[derive(Debug, Clone, Copy)]
struct Settling {
    at: Instant,
    at_latest: Instant,
}

impl Settling {
    fn after(earlier: Option<Self>) -> Self {
        let now = Instant::now();
        let at_latest = earlier.map_or(now + MAX_DEBOUNCE, |settling| settling.at_latest);
        Self { at: (now + QUIET_PERIOD).min(at_latest), at_latest }
    }
}

/// The state of the thread.
pub(super) struct ConfigWatcher {
    pub(super) source: Source,
    pub(super) target: Target,
    pub(super) keys: KeySource,
    pub(super) policies: PolicyLoader,
    pub(super) poll_interval: Duration,
    /// Where versions of policies are stored; `None` without a state directory.
    pub(super) store: Option<PathBuf>,
    pub(super) watched: Watched,
    pub(super) status: Arc<Mutex<ConfigStatus>>,
    pub(super) metrics: ReloadMetrics,
}

impl ConfigWatcher {
    /// Runs until the host stops.
    pub(super) fn run(&mut self, woken: &Receiver<Wake>) {
        let mut settling: Option<Settling> = None;
        let mut next_poll = Instant::now() + self.poll_interval;
        loop {
            let until = settling.map_or(next_poll, |settling| settling.at.min(next_poll));
            let left = until.saturating_duration_since(Instant::now());
            // Events that never cease do not put off what is due.
            let wake = match left.is_zero() {
                true => Err(RecvTimeoutError::Timeout),
                false => woken.recv_timeout(left),
            };
            match wake {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Reload(reply)) => {
                    settling = None;
                    self.command(reply);
                }
                Ok(Wake::Plan(text, reply)) => {
                    reply.send(self.plan(text)).ok(); // The caller may have stopped waiting.
                }
                Ok(Wake::Changed(FileEvent { is_complete })) => {
                    settling = Some(Settling::after(settling));
                    if is_complete {
                        self.look(Cause::Completed);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    next_poll = Instant::now() + self.poll_interval;
                    // Before the scan, so that no change between the two is missed.
                    self.watched.renew();
                    // A writer that works slowly sends no events that tell when it is done.
                    settling = match self.look(Cause::Settled) {
                        Looked::Done(chain) => {
                            self.policies.scan(chain, None);
                            None
                        }
                        Looked::TooEarly => Some(Settling::after(None)),
                    };
                }
            }
        }
    }

    /// Reloads everything, and replies when policies are loaded, too.
    fn command(&mut self, reply: Option<Sender<Outcome>>) {
        service_manager::reloading();
        let chain = match self.look(Cause::Command) {
            Looked::Done(chain) => chain,
            Looked::TooEarly => None,
        };
        let status = self.status.lock().clone();
        match status.error {
            None => service_manager::ready(),
            Some(_) => service_manager::reload_failed(),
        }
        let on_scanned = reply.map(|reply| -> OnScanned {
            Box::new(move |policies| {
                let outcome = Outcome::of_reload(&status, policies);
                reply.send(outcome).ok(); // The caller may have stopped waiting.
            })
        });
        self.policies.scan(chain, on_scanned);
    }

    /// Looks at the configuration and at the keys file, and applies what has changed.
    fn look(&mut self, cause: Cause) -> Looked {
        let is_rejected = self.status.lock().error.is_some();
        let is_current = !is_rejected && !self.source.has_changed();
        let is_too_early =
            !is_current && cause == Cause::Settled && !self.source.is_quiet(QUIET_PERIOD);
        let chain = match cause {
            Cause::Completed | Cause::Settled if is_current || is_too_early => None,
            Cause::Completed | Cause::Settled | Cause::Command => self.reload(cause),
        };
        self.keys.look();
        for (tenant, key) in self.keys.take_removed() {
            self.target.forget_key(&tenant, &key);
        }
        self.status.lock().keys_error = self.keys.error().map(str::to_owned);
        match (cause, chain) {
            (Cause::Completed, Some(chain)) => {
                self.policies.scan(Some(chain), None);
                Looked::Done(None)
            }
            _ if is_too_early => Looked::TooEarly,
            (_, chain) => Looked::Done(chain),
        }
    }

    /// Reads the configuration, and applies it if it is valid. Returns the changed chain.
    fn reload(&mut self, cause: Cause) -> Option<ChainSpec> {
        let read = self.source.read().map_err(|error| error.to_string());
        let checked = read.and_then(|candidate| Ok((self.validate(&candidate, cause)?, candidate)));
        let applied = checked.and_then(|(valid, candidate)| self.apply(valid, candidate));
        match applied {
            Ok(chain) => Some(chain),
            // What an event calls complete may still be one of several steps of an editor.
            Err(_) if cause == Cause::Completed => None,
            Err(error) => {
                self.reject(error, cause);
                None
            }
        }
    }

    /// Applies a valid configuration, except for its policies, whose chain it returns.
    fn apply(&mut self, valid: Valid, candidate: Candidate) -> Result<ChainSpec, String> {
        let Valid { mut config, keys } = valid;
        let applied = differences(self.source.table(), &candidate.table);
        let plan = self.plan_of(&config, &candidate.table);
        self.target.apply(&mut config, &applied).map_err(|error| {
            let file = self.source.file().display();
            format!("{file}: records.dir: {error} [{}]", Code::Unavailable)
        })?;
        self.keys.apply(keys);
        self.poll_interval = config.policies.poll_interval;
        self.watch(&config);
        self.source.applied(candidate, config.pick.as_ref());
        self.report(plan, &applied);
        let mut chain = config.policies.chain;
        chain.store.clone_from(&self.store);
        Ok(chain)
    }

    /// Returns the configuration if all of it can be applied.
    fn validate(&self, candidate: &Candidate, cause: Cause) -> Result<Valid, String> {
        let file = self.source.file();
        if cause != Cause::Command && self.source.is_cut_off(candidate) {
            let problem = Code::CutOff.with(
                "the file is only the beginning of the configuration in force; write all of it, or \
                 confirm it with `pointsman reload` or SIGHUP",
            );
            let error = Diagnostic {
                line: candidate.text.lines().count(),
                key: String::new(),
                code: problem.code,
                message: problem.message,
            };
            return Err(ConfigError::new(file, vec![error]).to_string());
        }
        let config = Config::discover(&candidate.text, file, &self.source.discovery())
            .map_err(|error| error.to_string())?;
        let keys = self.keys.prepare(&config).map_err(|error| error.to_string())?;
        Ok(Valid { config, keys })
    }

    /// Returns what another text, or the file, would change.
    fn plan(&self, text: Option<String>) -> Outcome {
        let generation = self.status.lock().generation;
        let candidate = match text {
            Some(text) => Ok(Candidate::from_text(text)),
            None => self.source.read().map_err(|error| error.to_string()),
        };
        let checked = candidate.and_then(|candidate| {
            let valid = self.validate(&candidate, Cause::Command)?;
            Ok(self.plan_of(&valid.config, &candidate.table))
        });
        match checked {
            Ok(plan) => Outcome::new(ReloadResult::Planned, generation, plan),
            Err(error) => Outcome::rejected(generation, error),
        }
    }

    fn plan_of(&self, config: &Config, table: &toml::Table) -> Plan {
        let applied = differences(self.source.table(), table);
        let started = differences(self.source.started(), table);
        Plan::new(applied, started, &self.target.changes_to(config))
    }

    fn watch(&mut self, config: &Config) {
        watch(&mut self.watched, &self.source, &self.keys, config);
    }

    /// Reports why the file is not in force, once: it is examined again at each look, because the
    /// cause may be in another file.
    fn reject(&self, error: String, cause: Cause) {
        let mut status = self.status.lock();
        if cause != Cause::Command && status.error.as_ref() == Some(&error) {
            return;
        }
        tracing::error!(
            event = "config_reload_failed",
            error,
            "configuration reload failed; keeping the current one"
        );
        status.error = Some(error);
        status.last_reload = Some(LastReload::now(ReloadResult::Rejected, Plan::default()));
        self.metrics.ended(ReloadResult::Rejected, status.generation);
    }

    /// Publishes that a configuration is in force.
    fn report(&self, plan: Plan, applied: &[KeyChange]) {
        let mut status = self.status.lock();
        let is_unchanged = applied.is_empty() && plan.is_empty();
        let result = match is_unchanged {
            true => ReloadResult::Unchanged,
            false => ReloadResult::Applied,
        };
        if !is_unchanged {
            status.generation += 1;
            let generation = status.generation;
            tracing::info!(event = "config_reloaded", generation, %plan, "configuration reloaded");
        }
        let waiting = [plan.handover.as_slice(), plan.restart.as_slice()].concat();
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "some changes take effect in the next process of the host only");
        }
        status.error = None;
        status.handover_for.clone_from(&plan.handover);
        status.restart_for.clone_from(&plan.restart);
        status.last_reload = Some(LastReload::now(result, plan));
        self.metrics.ended(result, status.generation);
    }
}

/// A configuration of which all can be applied.
struct Valid {
    config: Config,
    keys: PreparedKeys,
}

/// What looking at the files has led to.
enum Looked {
    /// The files were looked at; the chain is the one that is to be applied.
    Done(Option<ChainSpec>),
    /// The configuration may not be complete yet.
    TooEarly,
}

/// Watches the files and the policies of a configuration.
pub(super) fn watch(watched: &mut Watched, source: &Source, keys: &KeySource, config: &Config) {
    let endpoints = config.pick.as_ref().and_then(|pick| pick.endpoints.as_deref());
    let files = std::iter::once(source.file()).chain(keys.keys_file()).chain(endpoints);
    let files: Vec<_> = files.collect();
    let policies = &config.policies;
    let of_policies = policies.chain.policies.iter().map(|policy| policy.dir.clone());
    watched.watch(&files, of_policies.chain([policies.dir.clone()]));
}
