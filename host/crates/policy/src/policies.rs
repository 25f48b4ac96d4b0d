//! The policies of a host over time: loads them, proves new versions, swaps them in, takes bad ones back.
//!
//! ```text
//!   folder ─ read whole ─ scan ─ compile ─ link ─ describe ─ configure ─ golden cases ─ warm up ─> version
//!                                                                                                    │
//!                                                   Place: active, trial, history, set aside  <──────┘
//!                                                        │ publish: one atomic swap
//!                                                        ▼
//!   requests ───────────────────────────────────────> Chain (immutable; a request keeps the one it began with)
//! ```
//!
//! Invariant: what is in the slot is made of proven versions only, and changes in one step. Whatever fails before that step
//! leaves it as it was, and is shown.
//!
//! Two locks, always in this order: `changing` is held while versions are proven, which may take long; `shelf` for a moment,
//! so that going back never waits for a compiler.

mod intake;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use pointsman_domain::{Advisor, BuiltIn};

pub use self::status::{Aside, Earlier, Entry as PolicyStatus, Problem, Trial, WatchStatus};
use crate::background::{Background, FleetLink};
use crate::bundle::Stamp;
use crate::cases::FactsOf;
use crate::chain::{Chain, Link};
use crate::metrics::PolicyMetrics;
use crate::place::{PolicySlot, Refused, Versioned};
use crate::runtime::Runtime;
use crate::spec::{ChainSpec, PolicySpec, Rollout};
use crate::store::{Remembered, Store};
use crate::version::{Counts, LoadError, Version};

/// The advisor in force.
pub type AdvisorSlot = Arc<ArcSwap<Box<dyn Advisor>>>;

/// What became of a policy when it was looked at.
#[derive(Debug)]
pub enum Change {
    /// A version is in service.
    Active(String),
    /// A version is tried out.
    Trial(String),
    /// It is as it was.
    Same,
    /// It cannot be used; what was in service stays there.
    Failed(LoadError),
    /// It is no longer in the chain.
    Removed,
}

/// What an operator can want of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Give up what is tried out; else go back to this version, or the one before.
    RollBack(Option<String>),
    /// Put this version into service, or the one that is tried out.
    Promote(Option<String>),
    /// Take it out of the chain.
    Disable,
    /// Put it back into the chain.
    Enable,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no policy of that name.
    #[error("there is no policy `{0}`")]
    NoSuchPolicy(String),
    /// It cannot be done.
    #[error("{0}")]
    Refused(String),
}

/// The policies of a host.
pub struct Policies {
    runtime: Arc<Runtime>,
    metrics: Arc<PolicyMetrics>,
    facts_of: Box<FactsOf>,
    slot: AdvisorSlot,
    chain: ArcSwap<Chain>,
    background: OnceLock<Arc<Background>>,
    fleet: OnceLock<FleetLink>,
    changing: Mutex<()>,
    shelf: Mutex<Registry>,
    started: Instant,
}

/// All places.
#[derive(Debug, Default)]
struct Registry {
    spec: ChainSpec,
    places: BTreeMap<String, Kept>,
}

/// One policy's place, and what is known of its folder.
#[derive(Debug, Default)]
struct Kept {
    place: PolicySlot<Arc<Version>>,
    stamp: Stamp,
    problem: Option<(String, SystemTime)>,
}

impl Versioned for Arc<Version> {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn counts(&self) -> Counts {
        Version::counts(self)
    }

    fn out_of_service(&self) -> bool {
        !self.in_service()
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Policies {
    /// No policies yet: [`Policies::apply`] loads them.
    ///
    /// # Errors
    /// When there are no threads for what is done beside the requests.
    pub fn new(
        runtime: &Arc<Runtime>,
        metrics: &Arc<PolicyMetrics>,
        facts_of: Box<FactsOf>,
    ) -> std::io::Result<Arc<Self>> {
        let built_in: Box<dyn Advisor> = Box::new(BuiltIn);
        let policies = Arc::new(Self {
            runtime: Arc::clone(runtime),
            metrics: Arc::clone(metrics),
            facts_of,
            slot: Arc::new(ArcSwap::from_pointee(built_in)),
            chain: ArcSwap::from_pointee(Chain::default()),
            background: OnceLock::new(),
            fleet: OnceLock::new(),
            changing: Mutex::default(),
            shelf: Mutex::default(),
            started: Instant::now(),
        });
        let background = Background::start(Arc::downgrade(&policies))?;
        policies.background.get_or_init(|| background);
        Ok(policies)
    }

    /// Where the advisor in force always is.
    pub fn slot(&self) -> AdvisorSlot {
        Arc::clone(&self.slot)
    }

    /// Join them with the fleet: from now on they learn from outcomes, and have wishes.
    pub fn attach(&self, fleet: FleetLink) {
        self.fleet.get_or_init(|| fleet);
    }

    pub(crate) fn fleet(&self) -> Option<&FleetLink> {
        self.fleet.get()
    }

    pub(crate) fn chain(&self) -> Arc<Chain> {
        self.chain.load_full()
    }

    /// Make the chain what the operator wants. Policies whose settings and folders are as they were keep their versions.
    pub fn apply(&self, spec: ChainSpec) -> Vec<(String, Change)> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let refreshed =
            spec.policies.iter().map(|policy| (policy.name.clone(), self.refresh(policy, &spec)));
        let mut changes: Vec<(String, Change)> = refreshed.collect();
        // Versions, order, weights and failure modes: in one step, when all that is new is proven.
        let mut shelf = self.shelf();
        let stays = |name: &str| spec.policies.iter().any(|policy| policy.name == name);
        let gone: Vec<String> = shelf.places.keys().filter(|name| !stays(name)).cloned().collect();
        for name in gone {
            shelf.places.remove(&name);
            changes.push((name, Change::Removed));
        }
        shelf.spec = spec;
        self.publish(&mut shelf);
        changes
    }

    /// Look for changes in the policies' folders, and take them up.
    pub fn look(&self) -> Vec<(String, Change)> {
        let known: Vec<(PolicySpec, Option<Stamp>)> = {
            let shelf = self.shelf();
            let stamp = |policy: &PolicySpec| Some(shelf.places.get(&policy.name)?.stamp.clone());
            shelf.spec.policies.iter().map(|policy| (policy.clone(), stamp(policy))).collect()
        };
        // Without the lock: a mount that hangs must not hold up whoever wants to go back.
        let differs =
            |(policy, stamp): &(PolicySpec, Option<Stamp>)| *stamp != Some(Stamp::of(&policy.dir));
        let changed: Vec<PolicySpec> =
            known.into_iter().filter(differs).map(|(policy, _)| policy).collect();
        if changed.is_empty() {
            return Vec::new();
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let spec = self.shelf().spec.clone();
        let still = |policy: &PolicySpec| spec.policies.iter().find(|it| it.name == policy.name);
        let refresh = |policy: &PolicySpec| {
            let change = self.refresh(policy, &spec);
            // Each by itself: one that compiles for long does not hold up the others.
            self.publish(&mut self.shelf());
            (policy.name.clone(), change)
        };
        changed.iter().filter_map(still).map(refresh).collect()
    }

    /// Do what an operator wants.
    ///
    /// # Errors
    /// When there is no such policy, or it cannot be done; nothing has changed then.
    pub fn command(&self, name: &str, command: &Command) -> Result<String, CommandError> {
        let mut shelf = self.shelf();
        let Registry { spec, places } = &mut *shelf;
        let policy = spec.policies.iter().find(|policy| policy.name == name);
        let (Some(policy), Some(kept)) = (policy, places.get_mut(name)) else {
            return Err(CommandError::NoSuchPolicy(name.to_owned()));
        };
        let refused = |refused: Refused| CommandError::Refused(refused.to_string());
        let place = &mut kept.place;
        let before = place.clone();
        let (result, said) = match command {
            Command::RollBack(to) => {
                let left =
                    place.roll_back(to.as_deref(), "rolled back by hand").map_err(refused)?;
                let active = place.active.as_ref().map_or("none", |version| version.id());
                ("rolled-back", format!("{} was left; {active} is in service", left.id()))
            }
            Command::Promote(version) => {
                let now = self.now();
                let chosen = place
                    .promote(version.as_deref(), policy.probation, now, spec.keep)
                    .map_err(refused)?;
                ("promoted", format!("{} is in service", chosen.id()))
            }
            Command::Disable => {
                place.disabled = true;
                ("disabled", "it is out of the chain".to_owned())
            }
            Command::Enable => {
                place.disabled = false;
                ("enabled", "it is in the chain".to_owned())
            }
        };
        if let Err(error) = self.awake(place, &before) {
            *place = before;
            return Err(CommandError::Refused(error.to_string()));
        }
        self.metrics.changed(name, result);
        tracing::info!(policy = name, "{result} by hand: {said}");
        remember(spec, name, place);
        self.publish(&mut shelf);
        Ok(said)
    }

    /// Take back what does not stand its probation.
    pub(crate) fn judge(&self) {
        let mut shelf = self.shelf();
        let now = self.now();
        let Registry { spec, places } = &mut *shelf;
        let mut changed = false;
        for policy in &spec.policies {
            let Some(kept) = places.get_mut(&policy.name) else { continue };
            let before = kept.place.clone();
            let Some((left, why)) = kept.place.judge(policy.probation, now) else { continue };
            if let Err(error) = self.awake(&mut kept.place, &before) {
                tracing::error!(
                    policy = policy.name,
                    "the earlier version cannot be put into service: {error}"
                );
                kept.place = before;
                kept.place.watch = None;
                continue;
            }
            tracing::error!(policy = policy.name, version = left.id(), "taken back: {why}");
            kept.problem =
                Some((format!("version {} was taken back: {why}", left.id()), SystemTime::now()));
            self.metrics.changed(&policy.name, "taken-back");
            remember(spec, &policy.name, &kept.place);
            changed = true;
        }
        if changed {
            self.publish(&mut shelf);
        }
    }

    /// See that whoever is in service now can be asked at once, and that a shadow which got there has the policy's own state.
    fn awake(
        &self,
        place: &mut PolicySlot<Arc<Version>>,
        before: &PolicySlot<Arc<Version>>,
    ) -> Result<(), LoadError> {
        let Some(active) = &mut place.active else { return Ok(()) };
        if before.active.as_ref().is_some_and(|before| Arc::ptr_eq(before, active)) {
            return Ok(());
        }
        let was_shadow = before.trial.as_ref().is_some_and(|(trial, rollout)| {
            *rollout == Rollout::Shadow && trial.fingerprint == active.fingerprint
        });
        if was_shadow {
            *active = Arc::new(active.anew(self.runtime.state_of(&active.reference.name)));
        }
        active.warm_up()
    }

    /// Put what the places say into force, in one step.
    fn publish(&self, shelf: &mut Registry) {
        let Registry { spec, places } = shelf;
        let link = |policy: &PolicySpec| {
            let kept = places.get(&policy.name)?;
            if kept.place.disabled {
                return None;
            }
            let problem =
                || kept.problem.as_ref().map_or_else(String::new, |(what, _)| what.clone());
            Some(Link {
                name: policy.name.clone(),
                weight: policy.weight,
                on_error: policy.on_error,
                active: kept.place.active.clone().ok_or_else(problem),
                trial: kept.place.trial.clone(),
            })
        };
        let links = spec.policies.iter().filter_map(link).collect();
        let new = Arc::new(Chain::new(links, spec.on_conflict, self.background.get().cloned()));
        let old = self.chain.swap(Arc::clone(&new));
        self.slot.store(Arc::new(Box::new(Arc::clone(&new))));
        let in_service =
            |version: &Version| new.in_service().any(|it| it.fingerprint == version.fingerprint);
        new.in_service().for_each(|version| version.figures().active(true));
        for version in old.versions() {
            if !in_service(version) {
                version.figures().active(false);
            }
            if !new.versions().any(|it| Arc::ptr_eq(it, version)) {
                version.rest();
            }
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Registry> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since this was made; for what is left of a probation.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn remember(spec: &ChainSpec, name: &str, place: &PolicySlot<Arc<Version>>) {
    let Some(store) = &spec.store else { return };
    Store::of(store, name).remember(&Remembered {
        active: place.active.as_ref().map(|version| version.fingerprint.clone()),
        trial: place.trial.as_ref().map(|(version, _)| version.fingerprint.clone()),
        history: place.history.iter().map(|version| version.fingerprint.clone()).collect(),
        set_aside: place.set_aside.clone(),
        disabled: place.disabled,
    });
}
