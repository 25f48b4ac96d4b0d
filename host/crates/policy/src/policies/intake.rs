//! How a version gets from its folder into its place: read, proven, kept, offered.

use std::sync::Arc;
use std::time::SystemTime;

use super::{Change, Kept, Policies, remember};
use crate::bundle::{Bundle, Stamp};
use crate::cases;
use crate::place::{Offered, short};
use crate::proof::{self, ProofInstances};
use crate::signature;
use crate::spec::{ChainSpec, PolicySpec, Rollout, Settings};
use crate::store::{Remembered, Store};
use crate::version::{LoadError, Version};

impl Policies {
    /// Look at one policy's folder. The caller holds `changing`, and publishes what came of it.
    pub(super) fn refresh(&self, policy: &PolicySpec, spec: &ChainSpec) -> Change {
        let first = !self.shelf().places.contains_key(&policy.name);
        if first {
            let restored = self.restore(policy, spec);
            self.shelf().places.insert(policy.name.clone(), restored);
        }
        // Before it is read: what changes meanwhile differs from it afterwards.
        let stamp = Stamp::of(&policy.dir);
        let taken = self.take_up(policy, spec);
        let mut shelf = self.shelf();
        let Some(kept) = shelf.places.get_mut(&policy.name) else { return Change::Removed };
        kept.stamp = stamp;
        match &taken {
            Change::Failed(error) => {
                tracing::error!(policy = policy.name, "the policy is not in service: {error}");
                kept.problem = Some((error.to_string(), SystemTime::now()));
                self.metrics.load_failed(&policy.name);
                self.metrics.changed(&policy.name, "failed");
            }
            Change::Active(version) | Change::Trial(version) => {
                let what = if matches!(taken, Change::Active(_)) { "active" } else { "trial" };
                tracing::info!(policy = policy.name, version, "{what}");
                kept.problem = None;
                self.metrics.changed(&policy.name, what);
                remember(spec, &policy.name, &kept.place);
            }
            Change::Same | Change::Removed => kept.problem = None,
        }
        taken
    }

    /// Take up what is in the folder, if it is new.
    fn take_up(&self, policy: &PolicySpec, spec: &ChainSpec) -> Change {
        let bundle = match Bundle::read(&policy.dir) {
            Ok(bundle) => bundle,
            Err(error) => return Change::Failed(error),
        };
        // Also of what is in service already: whoever asks for signatures wants to hear of those that there are not.
        if let Err(error) = verify(&bundle, spec) {
            return Change::Failed(error);
        }
        let fingerprint = bundle.fingerprint(&policy.settings);
        let (known, is_first) = {
            let mut shelf = self.shelf();
            let Some(kept) = shelf.places.get_mut(&policy.name) else { return Change::Removed };
            let place = &mut kept.place;
            if place.active.as_ref().is_some_and(|active| active.fingerprint == fingerprint) {
                // The folder is what is in service: nothing else is to be tried out.
                place.trial = None;
                return Change::Same;
            }
            // In another way it is tried out, or in service, anew.
            let tried = place.trial.as_ref().filter(|(_, rollout)| *rollout == policy.rollout);
            if tried.is_some_and(|(trial, _)| trial.fingerprint == fingerprint) {
                return Change::Same;
            }
            if let Some(reason) = place.why_set_aside(&fingerprint) {
                let (version, reason) = (short(&fingerprint), reason.to_owned());
                return Change::Failed(LoadError::SetAside { version, reason });
            }
            let known =
                place.history.iter().find(|version| version.fingerprint == fingerprint).cloned();
            (known, place.active.is_none())
        };
        let is_shadow = policy.rollout == Rollout::Shadow && !is_first;
        let proven = match known {
            Some(version) if !is_shadow => version.warm_up().map(|()| version),
            _ => self.prove(policy, &bundle, &policy.settings, is_shadow).map(Arc::new),
        };
        let version = match proven {
            Ok(version) => version,
            Err(error) => return Change::Failed(error),
        };
        if let Some(store) = &spec.store {
            Store::of(store, &policy.name).keep(&fingerprint, &bundle, &policy.settings);
        }
        let id = version.id().to_owned();
        let now = self.now();
        let mut shelf = self.shelf();
        let Some(kept) = shelf.places.get_mut(&policy.name) else { return Change::Removed };
        match kept.place.offer(version, policy.rollout, policy.probation, now, spec.keep) {
            Offered::Active => Change::Active(id),
            Offered::Trial => Change::Trial(id),
        }
    }

    /// Everything that has to be true of a version, whose signature is good, before it takes part.
    fn prove(
        &self,
        policy: &PolicySpec,
        bundle: &Bundle,
        settings: &Settings,
        is_shadow: bool,
    ) -> Result<Version, LoadError> {
        let loaded = proof::component(&self.runtime, bundle)?;
        let state = if is_shadow { Arc::default() } else { self.runtime.state_of(&policy.name) };
        let version = Version::new(&self.runtime, bundle, settings, &loaded, &self.metrics, state);
        version.check_description(&policy.name)?;
        version.warm_up()?;
        if let Some(cases) = &bundle.cases {
            let specimens = ProofInstances::new(&self.runtime, bundle, &loaded, settings);
            let with = |config: &serde_json::Value, state| specimens.make(config, state);
            cases::prove(&bundle.dir.join(&bundle.manifest.cases), cases, with, &*self.facts_of)?;
        }
        Ok(version)
    }

    /// What was in service when a host of this configuration was last there.
    fn restore(&self, policy: &PolicySpec, spec: &ChainSpec) -> Kept {
        let mut kept = Kept::default();
        let Some(store) = spec.store.as_ref().map(|store| Store::of(store, &policy.name)) else {
            return kept;
        };
        let Remembered { active, trial: _, history, set_aside, disabled } = store.remembered();
        let again = |fingerprint: String| {
            let (bundle, settings) = store.load(&fingerprint)?;
            let version =
                verify(&bundle, spec).and_then(|()| self.prove(policy, &bundle, &settings, false));
            version.map(Arc::new).map_err(|error| error.to_string())
        };
        let mut again = |fingerprint| match again(fingerprint) {
            Ok(version) => Some(version),
            Err(error) => {
                tracing::warn!(
                    policy = policy.name,
                    "an earlier version cannot be used any more: {error}"
                );
                None
            }
        };
        kept.place.active = active.and_then(&mut again);
        kept.place.history = history.into_iter().filter_map(&mut again).collect();
        kept.place.history.iter().for_each(|version| version.rest());
        kept.place.set_aside = set_aside;
        kept.place.disabled = disabled;
        kept
    }
}

/// Did one of those sign the version whose word the operator takes? Asked before anything is made
/// of its bytes.
fn verify(bundle: &Bundle, spec: &ChainSpec) -> Result<(), LoadError> {
    let file = bundle.dir.join(signature::FILE).display().to_string();
    let Some(text) = bundle.signature.as_ref().filter(|_| !spec.signers.is_empty()) else {
        return if spec.require_signature { Err(LoadError::Missing { file }) } else { Ok(()) };
    };
    let message = signature::message(&bundle.component, bundle.manifest_text.as_bytes());
    match signature::verify(&spec.signers, &message, text) {
        Ok(signer) => {
            tracing::info!(policy = bundle.manifest.name, signer, "the signature is good");
            Ok(())
        }
        Err(error) => Err(LoadError::File { file, what: error.to_string() }),
    }
}
