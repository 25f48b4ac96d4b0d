//! Loads a version from a policy's folder into its slot: read, verified, validated, stored, staged.

use std::sync::Arc;

use crate::chain::cases;
use crate::chain::problem::PolicyProblem;
use crate::registry::events::{BY_FILE, PolicyEvent, PolicyEventKind};
use crate::registry::policies::{Change, Policies, SlotEntry, now_ms, write_slot};
use crate::registry::slot::{Staged, short};
use crate::registry::store::{SlotRecord, Store, StoreError};
use crate::version::Version;
use crate::version::artifact::PolicyArtifact;
use crate::version::bundle::{Bundle, Stamp};
use crate::version::config::VersionConfig;
use crate::version::error::LoadError;
use crate::version::signature;
use crate::version::validate::ValidationInstances;
use pointsman_spec::{ChainSpec, PolicySpec, Rollout, Settings, VersionNumber};

impl Policies {
    /// Loads the version in the folder of a policy, if it is new. The caller holds `changing`, and
    /// publishes the result.
    pub(super) fn refresh(&self, policy: &PolicySpec, spec: &ChainSpec) -> Change {
        let _span = tracing::error_span!("policy", policy = policy.name).entered();
        let is_first = !self.registry().entries.contains_key(&policy.name);
        if is_first {
            let restored = self.restore(policy, spec);
            self.registry().entries.insert(policy.name.clone(), restored);
        }
        // Read before the files, so that a change in between is seen as a difference next time.
        let stamp = Stamp::read(&policy.dir);
        let change = self.load_new_version(policy, spec);
        let mut registry = self.registry();
        let Some(entry) = registry.entries.get_mut(&policy.name) else { return Change::Removed };
        entry.stamp = stamp;
        if let Some(event) = event(&change) {
            entry.add_event(spec, &policy.name, event);
        }
        match &change {
            Change::Failed(error) => {
                log_failure(error, entry.slot.active.as_deref());
                entry.problem = Some(PolicyProblem::new(error.code(), error.to_string()));
                self.metrics.record_load_failure(&policy.name);
                self.metrics.record_change(&policy.name, "failed");
            }
            Change::Active(version) | Change::Candidate(version) => {
                let role = if matches!(change, Change::Active(_)) { "active" } else { "candidate" };
                tracing::info!(version, role, "loaded policy version");
                entry.problem = None;
                self.metrics.record_change(&policy.name, role);
                write_slot(spec, &policy.name, &entry.slot);
            }
            Change::Unchanged | Change::Removed => entry.problem = None,
        }
        change
    }

    fn load_new_version(&self, policy: &PolicySpec, spec: &ChainSpec) -> Change {
        let bundle = match Bundle::read(&policy.dir) {
            Ok(bundle) => bundle,
            Err(error) => return Change::Failed(error.in_folder(policy)),
        };
        // Even if this version is active already: signatures may have become required since.
        if let Err(error) = verify(&bundle, policy, spec) {
            return Change::Failed(error);
        }
        let fingerprint = bundle.fingerprint(&policy.settings);
        let (known, is_first) = {
            let mut registry = self.registry();
            let Some(entry) = registry.entries.get_mut(&policy.name) else {
                return Change::Removed;
            };
            let slot = &mut entry.slot;
            if slot.active.as_ref().is_some_and(|active| active.fingerprint() == fingerprint) {
                // The folder has the active version again, so the candidate is obsolete.
                slot.candidate = None;
                return Change::Unchanged;
            }
            // With another rollout, the same version is staged again.
            let candidate =
                slot.candidate.as_ref().filter(|(_, rollout)| *rollout == policy.rollout);
            if candidate.is_some_and(|(candidate, _)| candidate.fingerprint() == fingerprint) {
                return Change::Unchanged;
            }
            if let Some(reason) = slot.rejection_reason(&fingerprint) {
                let (version, reason) = (short(&fingerprint), reason.message.clone());
                return Change::Failed(LoadError::Rejected { version, reason });
            }
            let mut history = slot.history.iter();
            let known = history.find(|version| version.fingerprint() == fingerprint).cloned();
            (known, slot.active.is_none())
        };
        let is_shadow = policy.rollout == Rollout::Shadow && !is_first;
        let validated = match known {
            // Validated before. A shadow needs a state of its own, and so a new version.
            Some(version) if !is_shadow => version.warm_up().map(|()| version),
            _ => self.validate(policy, &bundle, &policy.settings, is_shadow).map(Arc::new),
        };
        let version = match validated {
            Ok(version) => version,
            Err(error) => return Change::Failed(error),
        };
        if let Some(store) = &spec.store {
            Store::for_policy(store, &policy.name).save(&fingerprint, &bundle, &policy.settings);
        }
        let id = version.id().to_owned();
        let now = self.now();
        let mut registry = self.registry();
        let Some(entry) = registry.entries.get_mut(&policy.name) else { return Change::Removed };
        match entry.slot.stage(version, policy.rollout, policy.probation, now, spec.keep) {
            Staged::Active => Change::Active(id),
            Staged::Candidate => Change::Candidate(id),
        }
    }

    /// Validates a version whose signature has been verified.
    fn validate(
        &self,
        policy: &PolicySpec,
        bundle: &Bundle,
        settings: &Settings,
        is_shadow: bool,
    ) -> Result<Version, LoadError> {
        let artifact = PolicyArtifact::load(&self.runtime, bundle)?;
        self.runtime.states.set_scope(&policy.name, policy.state);
        let state =
            if is_shadow { Arc::default() } else { self.runtime.states.state_of(&policy.name) };
        let config = VersionConfig::new(&self.runtime, bundle, settings);
        let engine = &self.runtime.engine;
        let version = Version::new(engine, &artifact, Arc::new(config), &self.metrics, state);
        version.check_description(&policy.name)?;
        version.warm_up()?;
        if let Some(cases) = &bundle.cases {
            let instances = ValidationInstances::new(&self.runtime, bundle, &artifact, settings);
            let with = |config: &serde_json::Value, state| instances.create(config, state);
            let file = bundle.dir.join(&bundle.manifest.cases);
            cases::validate(&file, cases, with, &*self.facts_of)?;
        }
        Ok(version)
    }

    /// Restores the slot that a previous process of this host stored.
    fn restore(&self, policy: &PolicySpec, spec: &ChainSpec) -> SlotEntry {
        let mut entry = SlotEntry::default();
        let store = spec.store.as_ref().map(|store| Store::for_policy(store, &policy.name));
        let Some(store) = store else { return entry };
        entry.events = store.read_events();
        let record = store.read_slot();
        // The candidate is staged again from the folder.
        let SlotRecord { format: _, active, candidate: _, history, rejected, disabled } = record;
        let load = |fingerprint: &str| -> Result<Arc<Version>, StoreError> {
            let (bundle, settings) = store.load(fingerprint)?;
            verify(&bundle, policy, spec)?;
            Ok(Arc::new(self.validate(policy, &bundle, &settings, false)?))
        };
        let mut load = |fingerprint: String| match load(&fingerprint) {
            Ok(version) => Some(version),
            Err(error) => {
                let version = short(&fingerprint);
                tracing::warn!(
                    version, code = error.code(), %error, "failed to restore stored version"
                );
                None
            }
        };
        let slot = &mut entry.slot;
        slot.active = active.and_then(&mut load);
        slot.history = history.into_iter().filter_map(&mut load).collect();
        slot.history.iter().for_each(|version| version.release_instances());
        slot.rejected = rejected;
        slot.disabled = disabled;
        entry
    }
}

/// Returns what is remembered of a change.
fn event(change: &Change) -> Option<PolicyEvent> {
    let event = |kind, version: &str| PolicyEvent::new(kind, now_ms(), version, BY_FILE);
    Some(match change {
        Change::Active(version) => event(PolicyEventKind::Activated, version),
        Change::Candidate(version) => event(PolicyEventKind::Staged, version),
        Change::Failed(error) => {
            // Of a version that cannot be read, nothing is known.
            let version =
                if let LoadError::Rejected { version, .. } = error { version.as_str() } else { "" };
            event(PolicyEventKind::Refused, version).because(error.code(), &error.to_string())
        }
        Change::Unchanged | Change::Removed => return None,
    })
}

/// Logs that a version was not loaded. While another one is active, requests are served as before.
fn log_failure(error: &LoadError, active: Option<&Version>) {
    const EVENT: &str = "policy_load_failed";
    let code = error.code();
    match (active, error) {
        (None, _) => tracing::error!(event = EVENT, code, %error, "failed to load policy"),
        // Not news: it was reported when it was rejected.
        (Some(active), LoadError::Rejected { .. }) => tracing::info!(
            event = EVENT, code, active = active.id(), %error,
            "version in the folder was rejected before; the active version stays"
        ),
        (Some(active), _) => tracing::warn!(
            event = EVENT, code, active = active.id(), %error,
            "new version refused; the active version stays"
        ),
    }
}

/// Checks that a trusted signer signed the version, before its bytes are parsed, and that it is not
/// older than the operator allows: old signatures stay valid.
fn verify(bundle: &Bundle, policy: &PolicySpec, spec: &ChainSpec) -> Result<(), LoadError> {
    verify_signature(bundle, spec)?;
    let Some(min) = &policy.min_version else { return Ok(()) };
    let version = &bundle.manifest.version;
    // A version that is not a number cannot be compared, so it is not known to be recent.
    if version.parse::<VersionNumber>().is_ok_and(|version| version >= *min) {
        return Ok(());
    }
    Err(LoadError::VersionTooOld { version: version.clone(), min: min.to_string() })
}

fn verify_signature(bundle: &Bundle, spec: &ChainSpec) -> Result<(), LoadError> {
    let file = bundle.dir.join(signature::FILE).display().to_string();
    let Some(text) = bundle.signature.as_ref().filter(|_| !spec.signers.is_empty()) else {
        return if spec.require_signature {
            Err(LoadError::SignatureMissing { file })
        } else {
            Ok(())
        };
    };
    let message = signature::message(&bundle.component, bundle.manifest_text.as_bytes());
    match signature::verify(&spec.signers, &message, text) {
        Ok(signer) => {
            tracing::info!(event = "signature_verified", signer, "signature verified");
            Ok(())
        }
        Err(error) => Err(LoadError::Signature { file, error }),
    }
}
