//! Guards: rules of the operator for requests, which no policy can break.

use std::sync::Arc;

use crate::constraint::{AppliedGuard, Constraint};
use crate::endpoint::Endpoint;

/// The value of a header condition that every value meets.
const ANY_VALUE: &str = "*";

/// The requests for which a guard applies: those that meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConditions {
    /// Tenants, of which the request has one; empty for all requests.
    pub tenants: Vec<String>,
    /// Groups of keys, of which the key of the request has one; empty for all requests.
    pub groups: Vec<String>,
    /// Headers (lower case) that the request has with these values; `*` stands for any value.
    pub headers: Vec<(String, String)>,
    /// Endpoints, of which the request is for one; empty for all requests.
    pub endpoints: Vec<Endpoint>,
    /// Minimum size of the body in bytes.
    pub min_body: u64,
    /// Minimum number of tokens of the prompt, by the host's estimate.
    pub min_prompt_tokens: u32,
}

/// A guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The requests for which it applies.
    pub when: GuardConditions,
    /// Its name and its rules.
    pub applied: Arc<AppliedGuard>,
}

/// What the conditions of guards depend on.
#[derive(Debug, Clone)]
pub struct GuardInput<'a> {
    /// Tenant of the request.
    pub tenant: Option<&'a str>,
    /// Group of its key.
    pub group: Option<&'a str>,
    /// Headers, with names in lower case.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Endpoint of the request; `None` if it may be any, which meets every condition.
    pub endpoint: Option<Endpoint>,
    /// Size of the body in bytes.
    pub body_bytes: u64,
    /// Estimated tokens of the prompt; `None` if they are not known, which meets every condition.
    pub prompt_tokens: Option<u32>,
}

/// All guards of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guards(pub Vec<Guard>);

impl GuardConditions {
    /// Returns true if a request meets the conditions.
    pub fn are_met(&self, input: &GuardInput<'_>) -> bool {
        is_one_of(&self.tenants, input.tenant)
            && is_one_of(&self.groups, input.group)
            && input
                .endpoint
                .is_none_or(|is| self.endpoints.is_empty() || self.endpoints.contains(&is))
            && input.body_bytes >= self.min_body
            && input.prompt_tokens.is_none_or(|tokens| tokens >= self.min_prompt_tokens)
            && self.headers.iter().all(|(name, value)| has_header(input, name, value))
    }

    /// Returns true if a request may meet these conditions and `other`.
    pub fn may_meet_both(&self, other: &Self) -> bool {
        let headers = self.headers.iter().all(|(name, value)| {
            let same_name = other.headers.iter().filter(|(other, _)| other == name);
            same_name.map(|(_, other)| other).all(|other| {
                other == value || [value.as_str(), other.as_str()].contains(&ANY_VALUE)
            })
        });
        headers
            && overlap(&self.tenants, &other.tenants)
            && overlap(&self.groups, &other.groups)
            && overlap(&self.endpoints, &other.endpoints)
    }
}

impl Guards {
    /// Returns what the guards demand of a request for `model`; `None` if none applies.
    pub fn constraint(&self, input: &GuardInput<'_>, model: &str) -> Option<Arc<Constraint>> {
        let met = self.0.iter().filter(|guard| guard.when.are_met(input));
        let guards: Vec<_> = met.map(|guard| Arc::clone(&guard.applied)).collect();
        let constraint = || Arc::new(Constraint { model: model.into(), guards });
        (!self.0.is_empty()).then(constraint).filter(|constraint| !constraint.guards.is_empty())
    }
}

fn is_one_of(names: &[String], name: Option<&str>) -> bool {
    names.is_empty() || name.is_some_and(|name| names.iter().any(|one| one == name))
}

/// Returns true if any of the values is the expected one: a client must not evade a guard by
/// sending another value first.
fn has_header(input: &GuardInput<'_>, name: &str, expected: &str) -> bool {
    let is_expected =
        |value: &[u8]| expected == ANY_VALUE || value.trim_ascii() == expected.as_bytes();
    input.headers.iter().any(|(other, value)| *other == name && is_expected(value))
}

fn overlap<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.is_empty() || other.is_empty() || one.iter().any(|value| other.contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(when: GuardConditions) -> Guards {
        let applied = AppliedGuard { name: "g".into(), rules: Default::default() };
        Guards(vec![Guard { when, applied: Arc::new(applied) }])
    }

    fn input() -> GuardInput<'static> {
        GuardInput {
            tenant: Some("acme"),
            group: None,
            headers: vec![("x-class", b"public"), ("x-class", b" secret")],
            endpoint: Some(Endpoint::ChatCompletions),
            body_bytes: 100,
            prompt_tokens: Some(20),
        }
    }

    #[test]
    fn guard_applies_if_all_conditions_are_met() {
        let when = GuardConditions::default;
        let tenants = |name: &str| GuardConditions { tenants: vec![name.into()], ..when() };
        let headers = |name: &str, value: &str| GuardConditions {
            headers: vec![(name.into(), value.into())],
            ..when()
        };
        let at = |endpoint| GuardConditions { endpoints: vec![endpoint], ..when() };
        for (conditions, expected) in [
            (when(), true),
            (tenants("acme"), true),
            (tenants("other"), false),
            (GuardConditions { groups: vec!["g".into()], ..when() }, false),
            (headers("x-class", "secret"), true),
            (headers("x-class", "sec"), false),
            (headers("x-class", "*"), true),
            (headers("x-other", "*"), false),
            (at(Endpoint::ChatCompletions), true),
            (at(Endpoint::Completions), false),
            (GuardConditions { min_body: 100, ..when() }, true),
            (GuardConditions { min_body: 101, ..when() }, false),
            (GuardConditions { min_prompt_tokens: 21, ..when() }, false),
            (GuardConditions { min_body: 101, ..tenants("acme") }, false),
        ] {
            let applies = guard(conditions.clone()).constraint(&input(), "m").is_some();
            assert_eq!(applies, expected, "{conditions:?}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_request_meets_every_condition() {
        let conditions = GuardConditions {
            endpoints: vec![Endpoint::Completions],
            min_prompt_tokens: 1000,
            ..GuardConditions::default()
        };
        let unknown = GuardInput { endpoint: None, prompt_tokens: None, ..input() };
        assert!(guard(conditions.clone()).constraint(&unknown, "m").is_some());
        assert!(guard(conditions).constraint(&input(), "m").is_none());
        assert!(Guards::default().constraint(&unknown, "m").is_none());
    }

    #[test]
    fn conditions_exclude_each_other_if_no_request_meets_both() {
        let tenants = |names: &[&str]| GuardConditions {
            tenants: names.iter().map(|name| (*name).to_owned()).collect(),
            ..GuardConditions::default()
        };
        let header = |value: &str| GuardConditions {
            headers: vec![("x-class".into(), value.into())],
            ..GuardConditions::default()
        };
        for (one, other, expected) in [
            (tenants(&["a", "b"]), tenants(&["b"]), true),
            (tenants(&["a"]), tenants(&["b"]), false),
            (tenants(&["a"]), header("secret"), true),
            (header("secret"), header("public"), false),
            (header("secret"), header("*"), true),
        ] {
            assert_eq!(one.may_meet_both(&other), expected, "{one:?} {other:?}");
        }
    }
}
