//! What there is to know of policies, for people and programs.

use std::time::UNIX_EPOCH;

use serde::Serialize;

use super::{Kept, Policies};
use crate::background::Comparison;
use crate::place::short;
use crate::spec::{OnError, PolicySpec, Rollout};
use crate::version::Version;

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// `active`, `out-of-service`, `failed` or `disabled`.
    pub state: &'static str,
    /// The version in service, with the beginning of its fingerprint; empty without one.
    pub version: String,
    /// Digest of all that makes the version: component, manifest and settings.
    pub fingerprint: String,
    /// SHA-256 of its component.
    pub component_sha256: String,
    /// The optional hooks that it has.
    pub hooks: Vec<&'static str>,
    /// Weight of its scores, in thousandths.
    pub weight: u32,
    /// What happens when it gives no advice.
    pub on_error: OnError,
    /// Its configuration.
    pub config: serde_json::Value,
    /// What is wrong with what is in its folder, or with what was there last.
    pub error: Option<Problem>,
    /// It has replaced another one, and is watched.
    pub probation: Option<WatchStatus>,
    /// A version that is tried out.
    pub trial: Option<Trial>,
    /// Versions to go back to, the latest first.
    pub history: Vec<Earlier>,
    /// Versions that are not taken from the folder again.
    pub set_aside: Vec<Aside>,
    /// Instances that wait for a call.
    pub idle_instances: usize,
    /// Calls since the version was made.
    pub calls: u64,
    /// How many of them ended in a fault.
    pub faults: u64,
    /// How many took longer than the policy's budget.
    pub slow: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// A sentence.
    pub what: String,
    /// When, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A probation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchStatus {
    /// What is left of it, in milliseconds.
    pub left_ms: u64,
    /// Calls since it began.
    pub calls: u64,
    /// How many of them ended in a fault.
    pub faults: u64,
    /// How many took longer than the policy's budget.
    pub slow: u64,
}

/// A version that is tried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The version.
    pub version: String,
    /// SHA-256 of its component.
    pub component_sha256: String,
    /// `shadow` or `canary`.
    pub mode: &'static str,
    /// A canary's share of the requests, in thousandths.
    pub share_permille: Option<u16>,
    /// Calls since it was made.
    pub calls: u64,
    /// How many of them ended in a fault.
    pub faults: u64,
    /// A shadow's opinions beside those of the version in service.
    #[serde(flatten)]
    pub(crate) comparison: Comparison,
}

/// An earlier version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Earlier {
    /// The version.
    pub version: String,
    /// SHA-256 of its component.
    pub component_sha256: String,
}

/// A version that is not taken from the folder again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Aside {
    /// The beginning of its fingerprint.
    pub version: String,
    /// Why.
    pub reason: String,
}

impl Policies {
    /// What there is to know of the policies, in the order of the chain.
    pub fn status(&self) -> Vec<Entry> {
        let shelf = self.shelf();
        let entry = |policy: &PolicySpec| Some(self.entry(policy, shelf.places.get(&policy.name)?));
        shelf.spec.policies.iter().filter_map(entry).collect()
    }

    fn entry(&self, policy: &PolicySpec, kept: &Kept) -> Entry {
        let place = &kept.place;
        let active = place.active.as_deref();
        let counts = active.map(Version::counts).unwrap_or_default();
        let problem = |(what, since): &(String, std::time::SystemTime)| {
            let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
            Problem {
                what: what.clone(),
                since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            }
        };
        Entry {
            name: policy.name.clone(),
            state: match active {
                _ if place.disabled => "disabled",
                None => "failed",
                Some(version) if version.in_service() => "active",
                Some(_) => "out-of-service",
            },
            version: active.map_or_else(String::new, |version| version.id().to_owned()),
            fingerprint: active.map_or_else(String::new, |version| version.fingerprint.clone()),
            component_sha256: active
                .map_or_else(String::new, |it| it.component_sha256().to_owned()),
            hooks: active.map_or_else(Vec::new, hooks),
            weight: policy.weight,
            on_error: policy.on_error,
            config: active
                .map_or(&policy.settings.config, |version| &version.settings.config)
                .clone(),
            error: kept.problem.as_ref().map(problem),
            probation: place.watch.filter(|watch| watch.until > self.now()).map(|watch| {
                WatchStatus {
                    left_ms: u64::try_from((watch.until - self.now()).as_millis())
                        .unwrap_or(u64::MAX),
                    calls: counts.calls.saturating_sub(watch.from.calls),
                    faults: counts.faults.saturating_sub(watch.from.faults),
                    slow: counts.slow.saturating_sub(watch.from.slow),
                }
            }),
            trial: place.trial.as_ref().map(|(version, rollout)| trial(version, *rollout)),
            history: place.history.iter().map(|version| earlier(version)).collect(),
            set_aside: place
                .set_aside
                .iter()
                .map(|(version, reason)| Aside { version: short(version), reason: reason.clone() })
                .collect(),
            idle_instances: active.map_or(0, Version::idle_instances),
            calls: counts.calls,
            faults: counts.faults,
            slow: counts.slow,
        }
    }
}

fn hooks(version: &Version) -> Vec<&'static str> {
    let hooks = version.hooks();
    let all = [
        ("on-failure", hooks.on_failure),
        ("on-complete", hooks.on_complete),
        ("on-tick", hooks.on_tick),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

fn earlier(version: &Version) -> Earlier {
    Earlier {
        version: version.id().to_owned(),
        component_sha256: version.component_sha256().to_owned(),
    }
}

fn trial(version: &Version, rollout: Rollout) -> Trial {
    let counts = version.counts();
    Trial {
        version: version.id().to_owned(),
        component_sha256: version.component_sha256().to_owned(),
        mode: if rollout == Rollout::Shadow { "shadow" } else { "canary" },
        share_permille: match rollout {
            Rollout::Canary { share, .. } => Some(share),
            Rollout::Shadow | Rollout::Replace => None,
        },
        calls: counts.calls,
        faults: counts.faults,
        comparison: version.comparison(),
    }
}
