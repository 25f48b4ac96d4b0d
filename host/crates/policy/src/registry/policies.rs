//! The policies of a running host: loads and validates versions, activates them, and rolls back bad
//! ones.
//!
//! ```text
//!   folder ─ read ─ scan ─ compile ─ link ─ describe ─ configure ─ golden cases ─> version
//!                                                                                     │
//!                           PolicySlot: active, candidate, history, rejected  <───────┘
//!                                │ publish: one atomic swap
//!                                ▼
//!   requests ──────────────────> Chain (immutable; a request keeps the chain it started with)
//! ```
//!
//! Invariant: the published chain only has validated versions, and changes atomically. An error
//! before the swap leaves the chain unchanged, and is reported in the status.
//!
//! There are two locks, always taken in this order: `changing` is held while versions are
//! validated, which may take long; `registry` is only held for short operations, so that a roll
//! back never waits for a compiler.

pub(crate) mod command;
mod refresh;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use pointsman_domain::{Advisor, BuiltIn, Outcome, Topology};

use crate::chain::Chain;
use crate::chain::baseline::Baseline;
use crate::chain::cases::FactsOf;
use crate::chain::link::Link;
use crate::chain::problem::PolicyProblem;
use crate::chain::queues::Queues;
use crate::chain::schedule::{Schedule, TickContext};
use crate::metrics::PolicyMetrics;
use crate::registry::background::{self, Heartbeat};
use crate::registry::events::{BY_HOST, Events, PolicyEvent, PolicyEventKind};
use crate::registry::fleet_link::FleetLink;
use crate::registry::slot::{PolicySlot, RejectReason, Versioned};
use crate::registry::status::{PolicyStatus, policy_status};
use crate::registry::store::{SlotRecord, Store};
use crate::trial::Verdict;
use crate::version::Version;
use crate::version::bundle::Stamp;
use crate::version::error::LoadError;
use crate::version::runtime::Runtime;
use crate::version::tally::Counts;
use pointsman_spec::{ChainSpec, JudgedOutcomes, PolicySpec, Rollout};

/// The current advisor of a host.
pub type AdvisorSlot = Arc<ArcSwap<Box<dyn Advisor>>>;

/// The result of looking for a new version of a policy.
#[derive(Debug)]
pub enum Change {
    /// A new version is active.
    Active(String),
    /// A new version is the candidate.
    Candidate(String),
    /// The folder has no new version.
    Unchanged,
    /// The new version cannot be loaded; the active version stays.
    Failed(LoadError),
    /// The policy was removed from the chain.
    Removed,
}

/// The policies of a host.
pub struct Policies {
    runtime: Arc<Runtime>,
    metrics: Arc<PolicyMetrics>,
    facts_of: Box<FactsOf>,
    slot: AdvisorSlot,
    chain: ArcSwap<Chain>,
    queues: Queues,
    fleet: OnceLock<FleetLink>,
    changing: Mutex<()>,
    registry: Mutex<Registry>,
    start: Instant,
}

/// The configured chain, and the slots of its policies.
#[derive(Debug, Default)]
struct Registry {
    spec: ChainSpec,
    entries: BTreeMap<String, SlotEntry>,
}

/// The slot of one policy, and the state of its folder.
#[derive(Debug, Default)]
struct SlotEntry {
    slot: PolicySlot<Arc<Version>>,
    stamp: Stamp,
    problem: Option<PolicyProblem>,
    events: Events,
}

impl SlotEntry {
    /// Adds an event, and stores the events. The store is that of the chain.
    fn add_event(&mut self, spec: &ChainSpec, name: &str, event: PolicyEvent) {
        if let (true, Some(store)) = (self.events.add(event), &spec.store) {
            Store::for_policy(store, name).write_events(&self.events);
        }
    }
}

impl Versioned for Arc<Version> {
    fn fingerprint(&self) -> &str {
        Version::fingerprint(self)
    }

    fn counts(&self) -> Counts {
        Version::counts(self)
    }

    fn is_breaker_open(&self) -> bool {
        !self.is_admitting()
    }

    fn begin_trial(&self, control: u16) {
        Version::begin_trial(self, control);
    }

    fn verdict(&self, outcomes: JudgedOutcomes) -> Option<Verdict> {
        self.judge()?.verdict(outcomes)
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Policies {
    /// Creates an empty chain. [`Policies::apply`] loads policies.
    ///
    /// # Errors
    /// If the background threads cannot be spawned.
    pub fn new(
        runtime: &Arc<Runtime>,
        metrics: &Arc<PolicyMetrics>,
        facts_of: Box<FactsOf>,
    ) -> std::io::Result<Arc<Self>> {
        let built_in: Box<dyn Advisor> = Box::new(BuiltIn);
        let (queues, inboxes) = Queues::new();
        let policies = Arc::new(Self {
            runtime: Arc::clone(runtime),
            metrics: Arc::clone(metrics),
            facts_of,
            slot: Arc::new(ArcSwap::from_pointee(built_in)),
            chain: ArcSwap::from_pointee(Chain::default()),
            queues,
            fleet: OnceLock::new(),
            changing: Mutex::default(),
            registry: Mutex::default(),
            start: Instant::now(),
        });
        background::start(Arc::downgrade(&policies), inboxes)?;
        Ok(policies)
    }

    /// Returns the slot that always has the current advisor.
    pub fn slot(&self) -> AdvisorSlot {
        Arc::clone(&self.slot)
    }

    /// Connects the policies to the fleet, which enables the hooks `on-complete`, `on-outcome`
    /// and `on-tick`.
    pub fn attach(&self, fleet: FleetLink) {
        self.fleet.get_or_init(|| fleet);
    }

    /// Applies a configured chain. Policies whose settings and folders are unchanged keep their
    /// versions.
    pub fn apply(&self, spec: ChainSpec) -> Vec<(String, Change)> {
        let _changing = self.changing.lock();
        let refreshed =
            spec.policies.iter().map(|policy| (policy.name.clone(), self.refresh(policy, &spec)));
        let mut changes: Vec<(String, Change)> = refreshed.collect();
        // Versions, order, weights and failure modes change atomically, after all are validated.
        let mut registry = self.registry();
        let is_configured = |name: &str| spec.policies.iter().any(|policy| policy.name == name);
        let removed: Vec<String> =
            registry.entries.keys().filter(|name| !is_configured(name)).cloned().collect();
        for name in removed {
            registry.entries.remove(&name);
            changes.push((name, Change::Removed));
        }
        registry.spec = spec;
        self.publish(&mut registry);
        changes
    }

    /// Returns the status of all policies, in the order of the chain.
    pub fn status(&self) -> Vec<PolicyStatus> {
        let registry = self.registry();
        let status = |policy: &PolicySpec| {
            let entry = registry.entries.get(&policy.name)?;
            Some(policy_status(policy, &entry.slot, entry.problem.as_ref(), self.now()))
        };
        registry.spec.policies.iter().filter_map(status).collect()
    }

    /// Returns what happened to the versions of a policy, oldest first; `None` if the chain has no
    /// policy of this name.
    pub fn events(&self, name: &str) -> Option<Vec<PolicyEvent>> {
        self.registry().entries.get(name).map(|entry| entry.events.to_vec())
    }

    /// Returns the lanes of the host; `None` before the policies are attached to a fleet.
    pub fn topology(&self) -> Option<Arc<Topology>> {
        self.fleet.get().map(|fleet| Arc::clone(&(fleet.view)().topology))
    }

    /// Looks for changes in the folders of the policies, and loads new versions.
    pub fn look(&self) -> Vec<(String, Change)> {
        let known: Vec<(PolicySpec, Option<Stamp>)> = {
            let registry = self.registry();
            let stamp = |policy: &PolicySpec| {
                let entry = registry.entries.get(&policy.name);
                (policy.clone(), entry.map(|entry| entry.stamp.clone()))
            };
            registry.spec.policies.iter().map(stamp).collect()
        };
        // Without the lock: a hanging mount must not block a roll back.
        let differs = |(policy, stamp): &(PolicySpec, Option<Stamp>)| {
            *stamp != Some(Stamp::read(&policy.dir))
        };
        let changed: Vec<PolicySpec> =
            known.into_iter().filter(differs).map(|(policy, _)| policy).collect();
        if changed.is_empty() {
            return Vec::new();
        }
        let _changing = self.changing.lock();
        // The chain may have been reconfigured before the lock was taken.
        let spec = self.registry().spec.clone();
        let current =
            |policy: &PolicySpec| spec.policies.iter().find(|other| other.name == policy.name);
        let refresh = |policy: &PolicySpec| {
            let change = self.refresh(policy, &spec);
            // One at a time: a policy that compiles for long does not delay the others.
            self.publish(&mut self.registry());
            (policy.name.clone(), change)
        };
        changed.iter().filter_map(current).map(refresh).collect()
    }

    /// Rolls back versions that fail their probation, and canaries that fail.
    fn evaluate_probations(&self) {
        let mut registry = self.registry();
        let now = self.now();
        let Registry { spec, entries } = &mut *registry;
        let mut changed = false;
        for policy in &spec.policies {
            let Some(entry) = entries.get_mut(&policy.name) else { continue };
            let before = entry.slot.clone();
            let Some((replaced, reason)) = entry.slot.evaluate(policy.probation, now) else {
                // Once a probation is over, the version before decides nothing any more.
                changed |= before.watch.is_some() && entry.slot.watch.is_none();
                continue;
            };
            let _span =
                tracing::error_span!("policy", policy = policy.name, version = replaced.id())
                    .entered();
            if let Err(error) = self.activate_instances(&mut entry.slot, &before) {
                tracing::error!(
                    code = error.code(), %error, "failed to roll back to the earlier version"
                );
                entry.slot = before;
                // Otherwise every heartbeat would attempt it again.
                entry.slot.watch = None;
                continue;
            }
            let RejectReason { code, message: reason } = reason;
            let code = code.as_str();
            let trial = replaced.judge().and_then(|judge| judge.status(policy.probation.outcomes));
            let (new, control) = trial.map(|trial| (trial.new, trial.control)).unwrap_or_default();
            tracing::error!(
                event = "policy_rolled_back",
                code,
                reason,
                new_requests = new.requests,
                control_requests = control.requests,
                "rolled back automatically"
            );
            let event = PolicyEventKind::RolledBack;
            let event = PolicyEvent::new(event, now_ms(), replaced.id(), BY_HOST);
            entry.add_event(spec, &policy.name, event.because(code, &reason));
            let message = format!("version {} was rolled back: {reason}", replaced.id());
            entry.problem = Some(PolicyProblem::new("rolled_back", message));
            self.metrics.record_change(&policy.name, "auto-rolled-back");
            write_slot(spec, &policy.name, &entry.slot);
            changed = true;
        }
        if changed {
            self.publish(&mut registry);
        }
    }

    /// Warms up the active version if it has changed, and gives a shadow that became active the
    /// state of the policy.
    fn activate_instances(
        &self,
        slot: &mut PolicySlot<Arc<Version>>,
        before: &PolicySlot<Arc<Version>>,
    ) -> Result<(), LoadError> {
        let Some(active) = &mut slot.active else { return Ok(()) };
        if before.active.as_ref().is_some_and(|before| Arc::ptr_eq(before, active)) {
            return Ok(());
        }
        let was_shadow = before.candidate.as_ref().is_some_and(|(candidate, rollout)| {
            *rollout == Rollout::Shadow && candidate.fingerprint() == active.fingerprint()
        });
        if was_shadow {
            *active = Arc::new(active.fork(self.runtime.states.state_of(&active.reference().name)));
        }
        active.warm_up()
    }

    /// Publishes a chain of the current slots, atomically.
    fn publish(&self, registry: &mut Registry) {
        let Registry { spec, entries } = registry;
        let link = |policy: &PolicySpec| {
            let entry = entries.get(&policy.name)?;
            if entry.slot.disabled {
                return None;
            }
            let problem = || entry.problem.clone().unwrap_or_else(PolicyProblem::unknown);
            Some(Link {
                name: policy.name.clone(),
                weight: policy.weight,
                on_error: policy.on_error,
                on_open: policy.on_open.unwrap_or(policy.on_error),
                active: entry.slot.active.clone().ok_or_else(problem),
                candidate: entry.slot.candidate.clone(),
                baselines: baselines(&entry.slot),
            })
        };
        let links = spec.policies.iter().filter_map(link).collect();
        let new = Arc::new(Chain::new(links, spec.on_conflict, Some(self.queues.clone())));
        // A version that was released before, as when its policy was disabled.
        new.versions().for_each(|version| version.keep_instances());
        let old = self.chain.swap(Arc::clone(&new));
        self.slot.store(Arc::new(Box::new(Arc::clone(&new))));
        let is_active = |version: &Version| {
            new.active_versions().any(|active| active.fingerprint() == version.fingerprint())
        };
        new.active_versions().for_each(|version| version.metrics().set_active(true));
        for version in old.versions() {
            if !is_active(version) {
                version.metrics().set_active(false);
            }
            if !new.versions().any(|other| Arc::ptr_eq(other, version)) {
                version.release_instances();
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    /// Returns the time since this value was created, which is the time base of probations.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Evaluates probations, delivers outcomes, and calls `on-tick`.
impl Heartbeat for Policies {
    type Memory = Schedule;

    fn heartbeat(&self, schedule: &mut Schedule, ended: &[Outcome], now: Duration) {
        self.evaluate_probations();
        let chain = self.chain.load_full();
        chain.versions().for_each(|version| version.restock());
        let Some(fleet) = self.fleet.get() else { return };
        if !ended.is_empty() {
            chain.observe(&(fleet.view)(), now_ms(), ended);
        }
        let now_ms = now_ms();
        let at = TickContext { now, now_ms, seed: now_ms };
        let mut hint = |lane, hint, ttl| (fleet.hint)(lane, hint, ttl);
        schedule.tick(chain.active_versions(), at, &fleet.view, &mut hint);
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Returns what a canary and a version on probation are compared with: the version before.
fn baselines(slot: &PolicySlot<Arc<Version>>) -> Vec<Baseline> {
    let Some(active) = &slot.active else { return Vec::new() };
    let canary = slot.candidate.iter().filter(|(_, rollout)| *rollout != Rollout::Shadow);
    let canary = canary.map(|(canary, _)| Baseline::new(canary, active));
    let watched = slot.watch.and_then(|_| Some(Baseline::new(active, slot.earlier()?)));
    canary.chain(watched).collect()
}

fn write_slot(spec: &ChainSpec, name: &str, slot: &PolicySlot<Arc<Version>>) {
    let Some(store) = &spec.store else { return };
    Store::for_policy(store, name).write_slot(&SlotRecord {
        active: slot.active.as_ref().map(|version| version.fingerprint().to_owned()),
        candidate: slot.candidate.as_ref().map(|(version, _)| version.fingerprint().to_owned()),
        history: slot.history.iter().map(|version| version.fingerprint().to_owned()).collect(),
        rejected: slot.rejected.clone(),
        disabled: slot.disabled,
        ..SlotRecord::default()
    });
}

#[cfg(test)]
mod tests;
