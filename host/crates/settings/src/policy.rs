//! The policy chain: its order, its weights, and how new versions are rolled out.

use std::path::PathBuf;
use std::time::Duration;

use pointsman_domain::units;
use pointsman_spec::{
    CanaryBy, JudgedOutcome, JudgedOutcomes, LimitError, OnError, PolicySource, PolicySpec,
    Probation, Rollout, Settings, StateScope, VersionNumberError, check_deadline, check_memory,
};

use crate::diagnostics::{Code, Problem};
use crate::section::Section;

/// Where the version of a policy is.
#[derive(Debug, Clone)]
pub struct PolicyPlace {
    /// Its folder.
    pub dir: PathBuf,
    /// What the host fills the folder from; `None` if the operator does.
    pub source: Option<PolicySource>,
}

impl From<PathBuf> for PolicyPlace {
    fn from(dir: PathBuf) -> Self {
        Self { dir, source: None }
    }
}

/// Reads the policies of a chain. `place` returns where a policy is by its name, or reports an
/// error.
pub fn chain(
    sections: &[Section<'_>],
    place: impl Fn(&Section<'_>, &str) -> Option<PolicyPlace>,
) -> Vec<PolicySpec> {
    let mut chain: Vec<PolicySpec> = Vec::new();
    for section in sections {
        let Some(spec) = read_policy(section, &place) else { continue };
        if chain.iter().any(|other| other.name == spec.name) {
            let message = format!("policy \"{}\" is already in the chain", spec.name);
            section.error_at("name", Code::Duplicate.with(message));
        } else {
            chain.push(spec);
        }
    }
    chain
}

fn read_policy(
    section: &Section<'_>,
    place: impl Fn(&Section<'_>, &str) -> Option<PolicyPlace>,
) -> Option<PolicySpec> {
    let name = section.required_string("name", "\"cortex\"");
    let is_plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !name.starts_with('.')
    };
    if let Some(name) = name.filter(|name| !is_plain(name)) {
        section.error_at(
            "name",
            format!(
                "invalid folder name \"{name}\": only letters, digits, `-`, `_` and `.` are allowed"
            ),
        );
    }
    let modes =
        [("skip", OnError::Skip), ("default", OnError::Default), ("refuse", OnError::Refuse)];
    let weight = section.integer("weight", 0..=1_000_000, 1000);
    let on_error = section.choice("on-error", &modes, OnError::Skip);
    let on_open = section.choice("on-open", &modes.map(|(name, mode)| (name, Some(mode))), None);
    let settings = Settings {
        config: section.json("config").unwrap_or_else(|| serde_json::json!({})),
        deadline: section.parsed("deadline", deadline),
        budget: section.parsed("budget", units::duration),
        memory: section.parsed("memory", memory),
    };
    let rollout = read_rollout(section);
    let probation = read_probation(&section.section("probation"));
    let version = |text: &str| text.parse().map_err(|error: VersionNumberError| error.to_string());
    let min_version = section.parsed("min-version", version);
    let scopes = [("local", StateScope::Local), ("shared", StateScope::Shared)];
    let state = section.choice("state", &scopes, StateScope::Local);
    let place = place(section, name.unwrap_or_default());
    section.report_unknown();
    let PolicyPlace { dir, source } = place?;
    let spec = PolicySpec::new(name?, dir);
    Some(PolicySpec {
        source,
        weight,
        on_error,
        on_open,
        rollout,
        probation,
        min_version,
        state,
        settings,
        ..spec
    })
}

/// Reads how a new version is rolled out.
fn read_rollout(section: &Section<'_>) -> Rollout {
    let canary = section.section("canary");
    let share = canary.parsed("share", percentage).unwrap_or(50);
    let by = [("tenant", CanaryBy::Tenant), ("request", CanaryBy::Request)];
    let by = canary.choice("by", &by, CanaryBy::Tenant);
    canary.report_unknown();
    let rollouts = [
        ("replace", Rollout::Replace),
        ("shadow", Rollout::Shadow),
        ("canary", Rollout::Canary { share, by }),
    ];
    section.choice("rollout", &rollouts, Rollout::Replace)
}

fn read_probation(section: &Section<'_>) -> Probation {
    let defaults = Probation::default();
    let probation = Probation {
        lasts: section.duration("duration", defaults.lasts),
        faults: section.parsed("max-faults", percentage).unwrap_or(defaults.faults),
        slow: section.parsed("max-slow", percentage).unwrap_or(defaults.slow),
        control: section.parsed("control", control).unwrap_or(defaults.control),
        outcomes: read_outcomes(section).unwrap_or(defaults.outcomes),
    };
    section.report_unknown();
    probation
}

fn read_outcomes(section: &Section<'_>) -> Option<JudgedOutcomes> {
    const KEY: &str = "outcomes";
    let names = section.strings(KEY)?;
    let outcome = |name: &String| {
        let found = JudgedOutcome::ALL.into_iter().find(|outcome| outcome.name() == name);
        if found.is_none() {
            let known = JudgedOutcome::ALL.map(|outcome| format!("\"{}\"", outcome.name()));
            let known = known.join(", ");
            section.error_at(KEY, format!("unknown value \"{name}\": expected some of {known}"));
        }
        found
    };
    Some(names.iter().filter_map(outcome).collect())
}

/// Parses the deadline of a call, up to the maximum of the host.
fn deadline(text: &str) -> Result<Duration, Problem> {
    let above = |error: LimitError| Code::OutOfRange.with(error.to_string());
    check_deadline(units::duration(text)?).map_err(above)
}

/// Parses the memory of an instance, up to the maximum of the host.
fn memory(text: &str) -> Result<u64, Problem> {
    let above = |error: LimitError| Code::OutOfRange.with(error.to_string());
    check_memory(units::bytes(text)?).map_err(above)
}

/// Parses the share of the requests that stay with the version before.
fn control(text: &str) -> Result<u16, Problem> {
    match percentage(text)? {
        control @ 0..=500 => Ok(control),
        _ => Err(format!("invalid percentage \"{text}\": expected at most \"50%\"").into()),
    }
}

/// Parses a percentage such as "2.5%" into thousandths.
///
/// # Errors
/// If the text is not a percentage from 0% to 100%.
pub fn percentage(text: &str) -> Result<u16, Problem> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10.0).round() as u16),
        _ => Err(format!("invalid percentage \"{text}\": expected for example \"2.5%\"").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{deadline, memory, percentage};
    use crate::diagnostics::Code;

    #[test]
    fn limits_above_the_maximums_of_the_host_are_out_of_range() {
        assert!(deadline("100ms").is_ok() && memory("256MiB").is_ok());
        let codes = [deadline("101ms").map(drop), memory("257MiB").map(drop)]
            .map(|result| result.map_err(|problem| problem.code));
        assert_eq!(codes, [Err(Code::OutOfRange); 2]);
        assert_eq!(deadline("5").map_err(|problem| problem.code), Err(Code::InvalidValue));
    }

    #[test]
    fn percentages_are_read_as_thousandths() {
        for (text, thousandths) in [
            ("5%", Some(50)),
            ("2.5 %", Some(25)),
            ("100%", Some(1000)),
            ("5", None),
            ("101%", None),
            ("%", None),
        ] {
            assert_eq!(percentage(text).ok(), thousandths, "{text}");
        }
    }
}
