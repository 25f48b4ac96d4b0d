//! Which policies there are, in which order, and how new versions of them begin.

use std::path::PathBuf;

use pointsman_domain::units;
use pointsman_policy::{CanaryBy, OnError, PolicySpec, Probation, Rollout, Settings};

use crate::section::Section;

/// The policies of a chain. `dir` gives the folder of one by its name, or notes a mistake.
pub fn chain(
    sections: &[Section<'_>],
    dir: impl Fn(&Section<'_>, &str) -> Option<PathBuf>,
) -> Vec<PolicySpec> {
    let mut chain: Vec<PolicySpec> = Vec::new();
    for section in sections {
        let Some(spec) = read_policy(section, &dir) else { continue };
        if chain.iter().any(|other| other.name == spec.name) {
            section.mistake(
                "name",
                format!("the policy \"{}\" stands in the chain already", spec.name),
            );
        } else {
            chain.push(spec);
        }
    }
    chain
}

fn read_policy(
    section: &Section<'_>,
    dir: impl Fn(&Section<'_>, &str) -> Option<PathBuf>,
) -> Option<PolicySpec> {
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
    let modes =
        [("skip", OnError::Skip), ("default", OnError::Default), ("refuse", OnError::Refuse)];
    let weight = section.number("weight", 0..=1_000_000, 1000);
    let on_error = section.word("on-error", &modes, OnError::Skip);
    let settings = Settings {
        config: section.json("config").unwrap_or_else(|| serde_json::json!({})),
        deadline: section.parsed("deadline", units::duration),
        budget: section.parsed("budget", units::duration),
        memory: section.bytes("memory"),
    };
    let rollout = read_rollout(section);
    let probation = read_probation(&section.section("probation"));
    let dir = dir(section, name.unwrap_or_default());
    section.report_unknown();
    let spec = PolicySpec::new(name?, dir?);
    Some(PolicySpec { weight, on_error, rollout, probation, settings, ..spec })
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

fn read_probation(section: &Section<'_>) -> Probation {
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
