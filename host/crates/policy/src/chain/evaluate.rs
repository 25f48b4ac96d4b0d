//! Calls of one version about a request, without what the policy is not allowed to advise.

use std::sync::Arc;

use pointsman_domain::{
    Advice, Dropped, DroppedEdit, Facts, FailureReport, FleetView, PolicyCall, Recovery, Trace,
    cap_retry_after, drop_unknown_filter, enforce_allow, enforce_allow_edits,
};

use crate::chain::baseline::Defect;
use crate::version::Version;
use crate::version::call_error::CallError;
use crate::version::call_trace::CallTrace;
use pointsman_spec::{Hook, OnError};

/// The result of a call, and what it says about a version on probation.
pub(crate) struct Evaluation<T> {
    pub(crate) result: Result<T, CallError>,
    pub(crate) defect: Option<Defect>,
}

/// Calls one policy, drops the parts of its advice that it is not allowed to give, and applies its
/// edits to `facts`, for the policies that follow. `on_error` decides what follows from a filter
/// that is dropped: only with [`OnError::Refuse`] it is an error.
pub(crate) fn evaluate(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    on_error: OnError,
    trace: &mut Trace,
) -> Evaluation<Advice> {
    let mut call = CallTrace::for_decision(trace);
    let (advised, dropped) = call_on_request(version, facts, fleet, on_error, &mut call);
    let defect = Defect::find(version, &call, advised.as_ref().err());
    trace.consulted(|| PolicyCall {
        policy: version.reference().clone(),
        hook: Hook::Request.name().to_owned(),
        took: call.duration,
        reads: call.into_reads(),
        advice: advised.as_ref().ok().cloned(),
        note: advised.as_ref().err().map(CallError::to_note),
        dropped,
        fleet: Vec::new(),
        log: version.log_lines(),
    });
    Evaluation { result: advised, defect }
}

/// Calls `on-request` like [`evaluate`], with host calls as `call` says. Also returns the parts
/// that were dropped, with the reasons.
pub(crate) fn call_on_request(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    on_error: OnError,
    call: &mut CallTrace,
) -> (Result<Advice, CallError>, Vec<String>) {
    let mut dropped_parts = Vec::new();
    let mut advised = version.advise(facts, fleet, call);
    if let Ok(advice) = &mut advised {
        if let Some(dropped) = drop_unknown_filter(advice, &fleet.topology) {
            version.metrics().record_dropped(dropped.what);
            tracing::warn!(
                event = "filter_dropped",
                on_error = on_error.name(),
                reason = %dropped.reason,
                "dropped invalid filter"
            );
            dropped_parts.push(format!("{}: {}", dropped.what, dropped.reason));
            if on_error == OnError::Refuse {
                return (Err(CallError::InvalidFilter(dropped.reason)), dropped_parts);
            }
        }
        for dropped in enforce_allow(advice, &version.config().allow) {
            tracing::debug!(part = dropped.what, reason = %dropped.reason, "dropped advice");
            dropped_parts.push(version.drop_part(dropped.what, &dropped.reason));
        }
        if let Some(constraint) = facts.request.constraint() {
            let dropped = constraint.enforce(advice, fleet);
            record_guarded(version, dropped, &mut dropped_parts);
        }
        // This host has no experimental hints; the metric tells the author that they had no effect.
        for hint in &advice.hints {
            let reason = format!("this host has no hint `{}`", hint.key);
            dropped_parts.push(version.drop_part("hint", &reason));
        }
        if !advice.edits.is_empty() {
            let (edited, dropped) = facts.request.edited(&advice.edits);
            for DroppedEdit { index, reason } in &dropped {
                let kind = advice.edits[*index].kind();
                tracing::warn!(part = kind, reason, "dropped edit");
                dropped_parts.push(version.drop_part(kind, reason));
            }
            let mut index = 0..;
            advice.edits.retain(|_| {
                let index = index.next();
                !dropped.iter().any(|dropped| Some(dropped.index) == index)
            });
            let guard = facts.request.constraint().and_then(|constraint| constraint.keeps_model());
            match guard.filter(|_| edited.model() != facts.request.model()) {
                None => facts.request = edited,
                // An edit that replaces the whole body has changed the model.
                Some(guard) => {
                    let reason = format!("edits that change the model: guard `{guard}`");
                    advice.edits.clear();
                    let dropped = vec![Dropped { what: "guard", reason }];
                    record_guarded(version, dropped, &mut dropped_parts);
                }
            }
        }
    }
    (advised, dropped_parts)
}

/// Counts and logs the parts of advice that break a guard.
fn record_guarded(version: &Version, dropped: Vec<Dropped>, dropped_parts: &mut Vec<String>) {
    for Dropped { what, reason } in dropped {
        version.metrics().record_dropped(what);
        tracing::info!(event = "advice_guarded", part = what, reason, "dropped advice");
        dropped_parts.push(format!("{what}: {reason}"));
    }
}

/// Calls `on-failure` of one policy, and records the call.
pub(crate) fn evaluate_recovery(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    trace: &mut Trace,
) -> Evaluation<Recovery> {
    let mut call = CallTrace::for_decision(trace);
    let (recovery, dropped) = call_on_failure(version, facts, fleet, failed, &mut call);
    let defect = Defect::find(version, &call, recovery.as_ref().err());
    trace.consulted(|| PolicyCall {
        policy: version.reference().clone(),
        hook: Hook::Failure.name().to_owned(),
        took: call.duration,
        reads: call.into_reads(),
        advice: None,
        note: Some(match &recovery {
            Ok(recovery) => serde_json::to_string(recovery).unwrap_or_default(),
            Err(error) => error.to_note(),
        }),
        dropped,
        fleet: fleet.stats().collect(),
        log: version.log_lines(),
    });
    Evaluation { result: recovery, defect }
}

/// Calls `on-failure`, and drops what the policy is not allowed to ask for. Also returns
/// these, with the reasons.
pub(crate) fn call_on_failure(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    call: &mut CallTrace,
) -> (Result<Recovery, CallError>, Vec<String>) {
    let mut dropped_parts = Vec::new();
    let mut recovery = version.recover(facts, fleet, failed, call);
    let dropped = match &mut recovery {
        Ok(Recovery::Retry(step)) => enforce_allow_edits(&mut step.edits, &version.config().allow),
        Ok(Recovery::GiveUp(rejection)) => cap_retry_after(rejection).into_iter().collect(),
        Ok(Recovery::Planned) | Err(_) => Vec::new(),
    };
    for dropped in dropped {
        dropped_parts.push(version.drop_part(dropped.what, &dropped.reason));
    }
    if let (Ok(recovery), Some(constraint)) = (&mut recovery, facts.request.constraint()) {
        let dropped = constraint.enforce_recovery(recovery, fleet);
        record_guarded(version, dropped, &mut dropped_parts);
    }
    (recovery, dropped_parts)
}
