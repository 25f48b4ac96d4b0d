//! Finds guards that cannot be obeyed: those that contradict each other, that leave a model without
//! a lane, or that name labels which no lane has.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::constraint::{AppliedGuard, Constraint};
use crate::fleet_view::Topology;
use crate::guards::{Guard, Guards};

/// A problem of the guards with the lanes of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardFinding {
    /// No lane has a label that a guard names: perhaps a typing error, with which the guard forbids
    /// all lanes, or none.
    UnknownLabel {
        /// Name of the guard.
        guard: Arc<str>,
        /// The label, as `key = value`.
        label: String,
    },
    /// A request may meet the conditions of both guards, and cannot obey both.
    Contradiction {
        /// Names of the guards.
        guards: [Arc<str>; 2],
        /// The rule of the first one that contradicts one of the second.
        rule: String,
    },
    /// Requests for a model that meet the conditions of all these guards are refused.
    NoLane {
        /// Names of the guards: one or two.
        guards: Vec<Arc<str>>,
        /// The model.
        model: String,
    },
}

impl GuardFinding {
    /// Returns the stable code of the kind of finding.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownLabel { .. } => "guard_unknown_label",
            Self::Contradiction { .. } => "guard_contradiction",
            Self::NoLane { .. } => "guard_no_lane",
        }
    }
}

impl fmt::Display for GuardFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLabel { guard, label } => {
                write!(f, "guard `{guard}`: no lane has the label `{label}`")?;
            }
            Self::Contradiction { guards: [one, other], rule } => write!(
                f,
                "guards `{one}` and `{other}` contradict each other ({rule}): requests that meet \
                 the conditions of both cannot obey both"
            )?,
            Self::NoLane { guards, model } => write!(
                f,
                "guards `{}` leave no lane for model `{model}`: these requests are refused",
                guards.join("`, `")
            )?,
        }
        write!(f, " [{}]", self.code())
    }
}

impl Guards {
    /// Returns the problems of the guards with these lanes, alone and in pairs whose conditions a
    /// request may meet together. A pair is not reported for what one of its guards does alone.
    pub fn findings(&self, topology: &Topology) -> Vec<GuardFinding> {
        let mut findings: Vec<GuardFinding> =
            self.0.iter().flat_map(|guard| unknown_labels(&guard.applied, topology)).collect();
        let mut refused: Vec<BTreeSet<&str>> = Vec::new();
        for guard in &self.0 {
            let models = models_without_lane(&[guard], topology);
            findings.extend(models.iter().map(|model| no_lane(&[guard], model)));
            refused.push(models);
        }
        for (index, one) in self.0.iter().enumerate() {
            for (at, other) in self.0.iter().enumerate().skip(index + 1) {
                if !one.when.may_meet_both(&other.when) {
                    continue;
                }
                if let Some(rule) = contradiction(&one.applied, &other.applied) {
                    let guards = [one, other].map(|guard| Arc::clone(&guard.applied.name));
                    findings.push(GuardFinding::Contradiction { guards, rule });
                    continue;
                }
                let models = models_without_lane(&[one, other], topology);
                let alone = |model: &&&str| {
                    refused[index].contains(**model) || refused[at].contains(**model)
                };
                let together = models.iter().filter(|model| !alone(model));
                findings.extend(together.map(|model| no_lane(&[one, other], model)));
            }
        }
        findings
    }
}

fn no_lane(guards: &[&Guard], model: &str) -> GuardFinding {
    let guards = guards.iter().map(|guard| Arc::clone(&guard.applied.name)).collect();
    GuardFinding::NoLane { guards, model: model.to_owned() }
}

fn unknown_labels<'a>(
    guard: &'a AppliedGuard,
    topology: &'a Topology,
) -> impl Iterator<Item = GuardFinding> + use<'a> {
    let labels = guard.rules.only_labels.iter().chain(&guard.rules.never_labels);
    let unknown = labels.filter(|(key, value)| topology.with_label(key, value).is_empty());
    unknown.map(|(key, value)| GuardFinding::UnknownLabel {
        guard: Arc::clone(&guard.name),
        label: format!("{key} = {value}"),
    })
}

/// Returns the models whose requests no lane may serve if all of these guards apply.
fn models_without_lane<'a>(guards: &[&Guard], topology: &'a Topology) -> BTreeSet<&'a str> {
    let applied: Vec<_> = guards.iter().map(|guard| Arc::clone(&guard.applied)).collect();
    let models: BTreeSet<&str> =
        topology.lanes().iter().flat_map(|lane| &lane.models).map(String::as_str).collect();
    let is_refused = |model: &&str| {
        let constraint = Constraint { model: (*model).into(), guards: applied.clone() };
        let mut lanes = topology.candidates(model).iter();
        lanes.all(|lane| constraint.objection(topology, *lane).is_some())
    };
    models.into_iter().filter(is_refused).collect()
}

/// Returns the rule of the first guard that contradicts one of the second.
fn contradiction(one: &AppliedGuard, other: &AppliedGuard) -> Option<String> {
    let (one, other) = (&one.rules, &other.rules);
    let forbidden = one.only_labels.iter().find(|label| other.never_labels.contains(label));
    let forbidden = forbidden
        .or_else(|| one.never_labels.iter().find(|label| other.only_labels.contains(label)));
    let different = one.only_labels.iter().find(|(key, value)| {
        other.only_labels.iter().any(|(other, is)| other == key && is != value)
    });
    if let Some((key, value)) = forbidden.or(different) {
        return Some(format!("label `{key} = {value}`"));
    }
    let (low, high) = one.priority?;
    let (other_low, other_high) = other.priority?;
    (low > other_high || other_low > high).then(|| format!("priority {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::GuardRules;
    use crate::constraint::tests::{label, lane};
    use crate::fleet_view::{EngineKind, LaneInfo};
    use crate::guards::GuardConditions;

    /// `coder` is served locally in the EU, `cloud` by an external lane in the US.
    fn topology() -> Topology {
        let local = lane("local", "coder", "eu", EngineKind::Vllm);
        Topology::new(1, vec![local, lane("remote", "cloud", "us", EngineKind::External)])
    }

    fn guard(name: &str, tenants: &[&str], rules: GuardRules) -> Guard {
        let tenants = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
        let when = GuardConditions { tenants, ..GuardConditions::default() };
        Guard { when, applied: Arc::new(AppliedGuard { name: name.into(), rules }) }
    }

    /// Returns the codes of the findings with the guards that they name.
    fn findings(guards: Vec<Guard>) -> Vec<(&'static str, String)> {
        let named = |finding: &GuardFinding| match finding {
            GuardFinding::UnknownLabel { guard, .. } => guard.to_string(),
            GuardFinding::Contradiction { guards, .. } => guards.join("+"),
            GuardFinding::NoLane { guards, model } => format!("{}: {model}", guards.join("+")),
        };
        let findings = Guards(guards).findings(&topology());
        findings.iter().map(|finding| (finding.code(), named(finding))).collect()
    }

    #[test]
    fn guards_that_cannot_be_obeyed_are_found() {
        let rules = GuardRules::default;
        let only = |value: &str| GuardRules { only_labels: label(value), ..rules() };
        let never = |value: &str| GuardRules { never_labels: label(value), ..rules() };
        let priority = |range| GuardRules { priority: Some(range), ..rules() };
        let output = GuardRules { max_output_tokens: Some(1), ..rules() };
        for (guards, expected) in [
            (vec![guard("a", &[], output)], vec![]),
            (
                vec![guard("a", &[], GuardRules { never_external: true, ..rules() })],
                vec![("guard_no_lane", "a: cloud")],
            ),
            (vec![guard("a", &[], never("uk"))], vec![("guard_unknown_label", "a")]),
            (
                vec![guard("a", &["x"], only("eu")), guard("b", &["x", "y"], only("us"))],
                vec![
                    ("guard_no_lane", "a: cloud"),
                    ("guard_no_lane", "b: coder"),
                    ("guard_contradiction", "a+b"),
                ],
            ),
            (
                vec![guard("a", &["x"], only("eu")), guard("b", &["y"], never("eu"))],
                vec![("guard_no_lane", "a: cloud"), ("guard_no_lane", "b: coder")],
            ),
            (
                vec![guard("a", &[], priority((0, 1))), guard("b", &[], priority((2, 3)))],
                vec![("guard_contradiction", "a+b")],
            ),
            (vec![guard("a", &[], priority((0, 2))), guard("b", &[], priority((2, 3)))], vec![]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(code, named)| (code, named.to_owned())).collect();
            assert_eq!(findings(guards.clone()), expected, "{guards:?}");
        }
    }

    #[test]
    fn pair_is_reported_for_what_neither_does_alone() {
        let lane = |region: &str, tier: &str| LaneInfo {
            name: format!("{region}-{tier}"),
            labels: vec![
                ("region".to_owned(), region.to_owned()),
                ("tier".to_owned(), tier.to_owned()),
            ],
            ..topology().lanes()[0].clone()
        };
        let topology = Topology::new(1, vec![lane("eu", "trial"), lane("us", "stable")]);
        let only = GuardRules { only_labels: label("eu"), ..GuardRules::default() };
        let trial = vec![("tier".to_owned(), "trial".to_owned())];
        let never = GuardRules { never_labels: trial, ..GuardRules::default() };
        let guards = Guards(vec![guard("a", &[], only), guard("b", &[], never)]);
        let expected =
            GuardFinding::NoLane { guards: vec!["a".into(), "b".into()], model: "coder".into() };
        assert_eq!(guards.findings(&topology), [expected]);
    }
}
