//! Which policies a response is attributed to, and why: the headers of responses and errors.

use http::{HeaderName, HeaderValue};
use pointsman_domain::{Decision, Merged, PolicyRef};

use crate::headers::{DECIDED_BY, POLICY, REASON, to_header_value};

/// The policies that took part in a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribution {
    /// All policies that gave advice, or `built-in`.
    pub(crate) policies: String,
    /// The policy whose advice prevailed; `None` if the host chose between equal lanes.
    decided_by: Option<String>,
    /// The reason that this policy gave.
    reason: Option<String>,
}

impl Attribution {
    /// Attributes a decision that was derived from `merged`.
    pub(crate) fn new(merged: &Merged, decision: &Decision) -> Self {
        let lane = match decision {
            Decision::Route(plan) => plan.steps.first().map(|step| step.lane),
            Decision::Reject(..) | Decision::NoLane(_) => None,
        };
        let policies = match joined(merged.by.iter()) {
            policies if policies.is_empty() => "built-in".to_owned(),
            policies => policies,
        };
        let decided_by = merged.prevailing(lane).map(ToString::to_string);
        Self { policies, decided_by, reason: merged.reason(lane) }
    }

    /// Returns the policy whose advice prevailed; `None` if the host chose between equal lanes.
    pub(crate) fn decided_by(&self) -> Option<&str> {
        self.decided_by.as_deref()
    }

    /// Returns the reason that this policy gave.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns the headers of the response.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let headers = [
            (POLICY, Some(&self.policies)),
            (DECIDED_BY, self.decided_by.as_ref()),
            (REASON, self.reason.as_ref()),
        ];
        headers.into_iter().filter_map(|(name, value)| Some((name, to_header_value(value?)?)))
    }
}

/// Names policies with their versions.
pub(crate) fn joined<'a>(policies: impl Iterator<Item = &'a PolicyRef>) -> String {
    let policies: Vec<String> = policies.map(ToString::to_string).collect();
    policies.join(", ")
}
