//! The policies of a host in order, as one advisor.

use std::sync::Arc;
use std::time::Instant;

use pointsman_domain::{
    Advice, Advisor, BuiltIn, Consulted, Facts, FleetView, Merge, Merged, OnConflict, PolicyRef, Rejection,
    Trace, permit,
};
use serde::Serialize;

use crate::cases::FactsOf;
use crate::metrics::PolicyMetrics;
use crate::policy::{LoadError, NoAdvice, OnError, Policy, PolicySpec};
use crate::runtime::Runtime;

/// Policies in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Chain {
    links: Vec<Link>,
    on_conflict: OnConflict,
}

/// One place in the chain.
#[derive(Debug)]
enum Link {
    Loaded(Box<Policy>),
    /// A policy that could not be loaded keeps its place, because its failure mode still counts.
    Failed {
        name: String,
        on_error: OnError,
        error: String,
    },
}

/// What there is to know of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// Its version with the beginning of its digest; empty if it is not loaded.
    pub version: String,
    /// SHA-256 of its component; empty if it is not loaded.
    pub digest: String,
    /// `active`, `out-of-service` or `failed`.
    pub state: &'static str,
    /// Why it is not loaded.
    pub error: Option<String>,
    /// Instances that wait for a call.
    pub idle_instances: usize,
}

impl Chain {
    /// Load all policies. Those that fail are returned with the reason; they keep their place in the chain, where their
    /// failure mode applies to every request.
    pub fn load(
        runtime: &Arc<Runtime>,
        specs: &[PolicySpec],
        on_conflict: OnConflict,
        metrics: &Arc<PolicyMetrics>,
        facts_of: &FactsOf<'_>,
    ) -> (Self, Vec<(String, LoadError)>) {
        let mut failures = Vec::new();
        let mut links = Vec::new();
        for spec in specs {
            links.push(match Policy::load(runtime, spec, metrics, facts_of) {
                Ok(policy) => Link::Loaded(Box::new(policy)),
                Err(error) => {
                    metrics.load_failed(&spec.name);
                    let failed = Link::Failed {
                        name: spec.name.clone(),
                        on_error: spec.on_error,
                        error: error.to_string(),
                    };
                    failures.push((spec.name.clone(), error));
                    failed
                }
            });
        }
        (Self { links, on_conflict }, failures)
    }

    /// What there is to know of the policies, in order.
    pub fn status(&self) -> Vec<PolicyStatus> {
        self.links.iter().map(Link::status).collect()
    }
}

impl Advisor for Chain {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged {
        let mut merge = Merge::new(fleet, facts.request.model());
        let mut facts = facts.clone();
        for link in &self.links {
            let (on_error, name, problem) = match link {
                Link::Loaded(policy) => match consult(policy, &mut facts, fleet, &mut merge, trace) {
                    Ok(()) if merge.ended() => break,
                    Ok(()) => continue,
                    Err(problem) => (policy.on_error, policy.reference.clone(), problem.to_string()),
                },
                Link::Failed { name, on_error, error } => {
                    (*on_error, PolicyRef::new(name, "none"), error.clone())
                }
            };
            tracing::warn!(policy = %name, request = facts.request.id(), ?on_error, "no advice: {problem}");
            match on_error {
                OnError::Skip => {}
                OnError::Default => return BuiltIn.advise(&facts, fleet, trace),
                OnError::Refuse => {
                    let reject = Some(refusal(&name));
                    merge.add(&name, 0, Advice { reject, ..Advice::default() });
                    break;
                }
            }
        }
        merge.finish(self.on_conflict)
    }
}

/// Ask one policy, leave out what it may not advise, and merge the rest. Its edits show in `facts` afterwards, for the
/// policies that come after it.
pub(crate) fn consult(
    policy: &Policy,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    merge: &mut Merge<'_>,
    trace: &mut Trace,
) -> Result<(), NoAdvice> {
    let begun = Instant::now();
    let mut reads = trace.is_on().then(Vec::new);
    let mut left_out = Vec::new();
    let advised = policy.advise(facts, fleet, reads.as_mut()).map(|mut advice| {
        left_out = leave_out(policy, facts, &mut advice);
        advice
    });
    trace.consulted(|| Consulted {
        policy: policy.reference.clone(),
        hook: "on-request".to_owned(),
        took: begun.elapsed(),
        reads: reads.unwrap_or_default(),
        advice: advised.as_ref().ok().cloned(),
        note: advised.as_ref().err().map(ToString::to_string),
        dropped: left_out,
    });
    merge.add(&policy.reference, policy.weight, advised?);
    Ok(())
}

/// Leave out what the policy may not advise, and what cannot be done, and say what that was. The edits that are left show in
/// `facts` afterwards.
fn leave_out(policy: &Policy, facts: &mut Facts, advice: &mut Advice) -> Vec<String> {
    let mut left_out = Vec::new();
    for dropped in permit(advice, &policy.allow) {
        policy.figures().dropped(dropped.what);
        left_out.push(format!("{} dropped: {}", dropped.what, dropped.reason));
        tracing::debug!(policy = %policy.reference, request = facts.request.id(), "{} dropped: {}", dropped.what, dropped.reason);
    }
    if !advice.edits.is_empty() {
        let (edited, refused) = facts.request.edited(&advice.edits);
        for (edit, reason) in refused {
            policy.figures().dropped(edit.kind());
            left_out.push(format!("{} dropped: {reason}", edit.kind()));
            tracing::warn!(policy = %policy.reference, request = facts.request.id(), "{} dropped: {reason}", edit.kind());
            advice.edits.retain(|kept| *kept != edit);
        }
        facts.request = edited;
    }
    left_out
}

fn refusal(policy: &PolicyRef) -> Rejection {
    Rejection {
        status: 503,
        code: "policy_failed".into(),
        message: format!(
            "The policy `{}` failed, and the operator wants no request served without it.",
            policy.name
        ),
        retry_after_s: Some(1),
    }
}

impl Link {
    fn status(&self) -> PolicyStatus {
        match self {
            Self::Loaded(policy) => PolicyStatus {
                name: policy.reference.name.to_string(),
                version: policy.reference.version.to_string(),
                digest: policy.digest().to_owned(),
                state: if policy.in_service() { "active" } else { "out-of-service" },
                error: None,
                idle_instances: policy.idle_instances(),
            },
            Self::Failed { name, error, .. } => PolicyStatus {
                name: name.clone(),
                version: String::new(),
                digest: String::new(),
                state: "failed",
                error: Some(error.clone()),
                idle_instances: 0,
            },
        }
    }
}
