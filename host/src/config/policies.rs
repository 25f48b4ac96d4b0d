//! `[policies]`: which there are, in which order, and how new versions of them begin.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::{OnConflict, units};
use pointsman_policy::signature::PublicKey;
use pointsman_policy::{CanaryBy, ChainSpec, OnError, PolicySpec, Probation, Rollout, Settings};

use super::reader::Section;
use super::{Policies, default_cache};

/// The policies; `state` is the folder that the host keeps what it knows in.
pub(super) fn read(section: Section<'_>, folder: &Path, state: Option<&Path>) -> Policies {
    let dir = folder.join(section.text("dir").unwrap_or("policies"));
    let cache = match section.text("cache") {
        Some(cache) => Some(folder.join(cache)),
        None => default_cache(),
    };
    let on_conflict = [("refuse", OnConflict::Refuse), ("ignore-filters", OnConflict::IgnoreFilters)];
    let on_conflict = section.word("on-conflict", &on_conflict, OnConflict::Refuse);
    let keep = section.number("keep", 0..=50, 3);
    let poll = section.pause("poll", Duration::from_secs(5));
    let mut chain: Vec<PolicySpec> = Vec::new();
    for policy in section.sections("chain") {
        let Some(spec) = read_policy(&policy, &dir) else { continue };
        if chain.iter().any(|other| other.name == spec.name) {
            policy.mistake("name", format!("the policy \"{}\" stands in the chain already", spec.name));
        } else {
            chain.push(spec);
        }
    }
    let signers: Vec<(String, PublicKey)> =
        section.sections("signers").iter().filter_map(|signer| read_signer(signer, folder)).collect();
    let require_signature = section.flag("require-signature", !signers.is_empty());
    if require_signature && signers.is_empty() {
        section.mistake("require-signature", "needs somebody to sign: name one with [[policies.signers]]");
    }
    section.report_unknown();
    let store = state.map(|state| state.join("policies"));
    let chain = ChainSpec { policies: chain, on_conflict, keep, signers, require_signature, store };
    Policies { cache, dir, poll, chain }
}

fn read_policy(section: &Section<'_>, dir: &Path) -> Option<PolicySpec> {
    let name = section.required_text("name", "\"cortex\"");
    let is_plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !name.starts_with('.')
    };
    if let Some(name) = name.filter(|name| !is_plain(name)) {
        section.mistake(
            "name",
            format!("\"{name}\" is no name of a folder; letters, digits, `-`, `_` and `.` will do"),
        );
    }
    let modes = [("skip", OnError::Skip), ("default", OnError::Default), ("refuse", OnError::Refuse)];
    let weight = section.number("weight", 0..=1_000_000, 1000);
    let on_error = section.word("on-error", &modes, OnError::Skip);
    let settings = Settings {
        config: section.json("config").unwrap_or_else(|| serde_json::json!({})),
        deadline: section.parsed("deadline", units::duration),
        budget: section.parsed("budget", units::duration),
        memory: section.bytes("memory"),
    };
    let rollout = read_rollout(section);
    let probation = read_probation(section.section("probation"));
    section.report_unknown();
    let name = name?;
    let spec = PolicySpec::new(name, dir.join(name));
    Some(PolicySpec { weight, on_error, rollout, probation, settings, ..spec })
}

/// The name and the public key of somebody whose signature counts.
fn read_signer(section: &Section<'_>, folder: &Path) -> Option<(String, PublicKey)> {
    let name = section.required_text("name", "\"release\"").map(str::to_owned);
    let file = section.required_text("file", "\"release.pub\"").map(|file| folder.join(file));
    section.report_unknown();
    let file = file?;
    let key = std::fs::read_to_string(&file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))
        .and_then(|text| PublicKey::parse(&text).map_err(|error| format!("{}: {error}", file.display())));
    match key {
        Ok(key) => Some((name?, key)),
        Err(what) => {
            section.mistake("file", what);
            None
        }
    }
}

/// How a new version begins.
fn read_rollout(section: &Section<'_>) -> Rollout {
    let canary = section.section("canary");
    let share = canary.parsed("share", share).unwrap_or(50);
    let by = [("tenant", CanaryBy::Tenant), ("request", CanaryBy::Request)];
    let by = canary.word("by", &by, CanaryBy::Tenant);
    canary.report_unknown();
    let rollouts = [
        ("replace", Rollout::Replace),
        ("shadow", Rollout::Shadow),
        ("canary", Rollout::Canary { share, by }),
    ];
    section.word("rollout", &rollouts, Rollout::Replace)
}

fn read_probation(section: Section<'_>) -> Probation {
    let defaults = Probation::default();
    let probation = Probation {
        lasts: section.duration("lasts", defaults.lasts),
        faults: section.parsed("faults", share).unwrap_or(defaults.faults),
        slow: section.parsed("slow", share).unwrap_or(defaults.slow),
    };
    section.report_unknown();
    probation
}

/// A share in percent, such as "2.5%", in thousandths.
fn share(text: &str) -> Result<u16, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10.0).round() as u16),
        _ => Err(format!("\"{text}\" is no share; write for example \"2.5%\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_percents() {
        for (text, thousandths) in [
            ("5%", Some(50)),
            ("2.5 %", Some(25)),
            ("100%", Some(1000)),
            ("5", None),
            ("101%", None),
            ("%", None),
        ] {
            assert_eq!(share(text).ok(), thousandths, "{text}");
        }
    }
}
