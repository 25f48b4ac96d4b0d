//! Makes explanations from records and from the decisions of a running host.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Decision, FleetView, LaneId, OpinionKind, Outcome, Plan, PolicyCall, PolicyRef, Topology,
};
use serde_json::{Value, json};

use super::{
    ExplainedAttempt, ExplainedCall, ExplainedDecision, ExplainedLane, ExplainedOutcome,
    Explanation, Source,
};
use crate::find::RecordedDecision;
use crate::format::{AttemptRecord, DecisionRecord, Ended, TopologyRecord};

impl RecordedDecision {
    /// Explains the decision.
    pub fn explain(&self) -> Explanation {
        let TopologyRecord { generation, lanes, .. } = &self.topology;
        let topology = Arc::new(Topology::with_ids(*generation, lanes.clone()));
        let view = self.decision.view_of(&topology, &self.decision.fleet);
        Explanation::new(&self.decision, &view, Source::Records)
    }
}

impl Explanation {
    /// Returns an explanation of a request of which only the id is known.
    pub fn empty(id: &str, source: Source) -> Self {
        Self {
            id: id.to_owned(),
            source,
            assumed: None,
            unix_ms: 0,
            endpoint: String::new(),
            model: None,
            tenant: None,
            key: None,
            request: Value::Null,
            rights: Value::Null,
            guards: Value::Null,
            lanes: Vec::new(),
            policies: Vec::new(),
            has_host_calls: true,
            merged: Value::Null,
            decision: None,
            decided_by: None,
            reason: None,
            error: None,
            attempts: Vec::new(),
            outcome: None,
            replay: None,
            notes: Vec::new(),
        }
    }

    /// Explains a decision about a request that has ended. `fleet` is the view that the decision
    /// was based on.
    pub fn new(record: &DecisionRecord, fleet: &FleetView, source: Source) -> Self {
        let topology = &fleet.topology;
        let lane = match &record.decision {
            Decision::Route(plan) => plan.steps.first().map(|step| step.lane),
            Decision::Reject(..) | Decision::NoLane(_) => None,
        };
        Self {
            unix_ms: record.now_ms,
            endpoint: record.figures.endpoint.label().to_owned(),
            model: Some(record.model.to_string()),
            tenant: record.tenant.as_deref().map(str::to_owned),
            request: json!(record.figures),
            guards: json!(record.guards.as_ref().map(|constraint| &constraint.guards)),
            lanes: lanes(record, fleet),
            policies: record.consulted.iter().map(ExplainedCall::new).collect(),
            merged: json!(record.merged),
            decision: Some(ExplainedDecision::new(&record.decision, topology)),
            decided_by: record.merged.prevailing(lane).map(ToString::to_string),
            reason: record.merged.reason(lane),
            attempts: record.tries.iter().map(|one| ExplainedAttempt::new(one, topology)).collect(),
            outcome: Some(ExplainedOutcome::new(record)),
            ..Self::empty(&record.request_id, source)
        }
    }
}

/// Returns the lanes of the model, and all others that are part of the plan or were attempted.
fn lanes(record: &DecisionRecord, fleet: &FleetView) -> Vec<ExplainedLane> {
    let topology = &fleet.topology;
    let steps = match &record.decision {
        Decision::Route(plan) => plan.steps.as_slice(),
        Decision::Reject(..) | Decision::NoLane(_) => &[],
    };
    let of_model = topology.candidates(&record.model);
    let others = steps.iter().map(|step| step.lane).chain(record.tries.iter().map(|one| one.lane));
    let mut all: Vec<LaneId> = of_model.iter().copied().chain(others).collect();
    all.extend(&record.merged.candidates);
    all.sort_unstable();
    all.dedup();
    let describe = |lane: &LaneId| {
        let stat = fleet.stat(*lane)?;
        let scored = record.merged.lanes.iter().find(|(scored, _)| scored == lane);
        let step = steps.iter().position(|step| step.lane == *lane).map(|index| index + 1);
        Some(ExplainedLane {
            id: lane.0,
            name: topology.name(*lane).to_owned(),
            state: stat.state.label().to_owned(),
            step,
            score: scored.map(|(_, score)| *score),
            excluded: exclusion(record, fleet, *lane).filter(|_| step.is_none()),
            start_in_ms: stat.start_in_ms(),
            slots_free: stat.slots_free,
            queued: stat.queued,
            cached_tokens: stat.cached_tokens,
        })
    };
    all.iter().filter_map(describe).collect()
}

/// Returns why a lane could not be used; `None` if it could.
fn exclusion(record: &DecisionRecord, fleet: &FleetView, lane: LaneId) -> Option<String> {
    let (merged, topology) = (&record.merged, &fleet.topology);
    if let Some(constraint) = &record.guards
        && let Some(guard) = constraint.objection(topology, lane)
    {
        return Some(format!("guard `{guard}` forbids it"));
    }
    if topology.is_barred(lane) {
        return Some("the key may not use it".to_owned());
    }
    if !merged.candidates.contains(&lane) {
        return Some(match topology.candidates(&record.model).contains(&lane) {
            true => "it cannot serve the endpoint".to_owned(),
            false => "it does not serve the model".to_owned(),
        });
    }
    let is_kept = merged.lanes.iter().any(|(kept, _)| *kept == lane);
    if !is_kept && merged.reject.is_none() {
        let excludes = merged.opinions.iter().filter(|opinion| {
            opinion.kind == OpinionKind::Filter && !opinion.lanes.contains(&lane)
        });
        let policies: Vec<String> =
            excludes.map(|opinion| opinion.policy.name.to_string()).collect();
        return Some(format!("filtered out by {}", policies.join(", ")));
    }
    let is_down = fleet.stat(lane).is_none_or(|stat| !stat.state.can_serve());
    is_down.then(|| "it is down".to_owned())
}

impl ExplainedCall {
    fn new(call: &PolicyCall) -> Self {
        let PolicyCall { policy, hook, took, reads, advice, note, dropped, fleet: _, log } = call;
        let PolicyRef { name, version } = policy;
        Self {
            policy: name.to_string(),
            version: version.to_string(),
            hook: hook.clone(),
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            host_calls: reads.clone(),
            advice: json!(advice),
            note: note.clone(),
            dropped: dropped.clone(),
            log: log.clone(),
            replay: None,
        }
    }
}

impl ExplainedDecision {
    fn new(decision: &Decision, topology: &Topology) -> Self {
        let (kind, lanes, detail) = match decision {
            Decision::Route(plan) => {
                let names = plan.steps.iter().map(|step| topology.name(step.lane).to_owned());
                ("route", names.collect(), plan_detail(plan))
            }
            Decision::Reject(policy, rejection) => {
                let detail = json!({ "policy": policy.to_string(), "rejection": rejection });
                ("reject", Vec::new(), detail)
            }
            Decision::NoLane(reason) => {
                let detail = json!({ "reason": reason, "message": reason.to_string() });
                ("no-lane", Vec::new(), detail)
            }
        };
        Self { kind: kind.to_owned(), lanes, detail }
    }
}

/// Returns the plan as in records. Steps without edits are left out, because they are only lanes.
fn plan_detail(plan: &Plan) -> Value {
    let mut detail = json!(plan);
    if plan.steps.iter().all(|step| step.edits.is_empty())
        && let Some(fields) = detail.as_object_mut()
    {
        fields.remove("steps");
    }
    detail
}

impl ExplainedAttempt {
    /// Describes an attempt.
    pub fn new(attempt: &AttemptRecord, topology: &Topology) -> Self {
        Self {
            lane: topology.name(attempt.lane).to_owned(),
            result: attempt.result.label().to_owned(),
            status: Some(attempt.status).filter(|status| *status > 0),
            started_ms: millis(attempt.begun),
            queue_ms: millis(attempt.queue),
            duration_ms: millis(attempt.took),
        }
    }
}

impl ExplainedOutcome {
    fn new(record: &DecisionRecord) -> Self {
        let outcome = record.outcome.as_ref();
        let begun = outcome.filter(|outcome| outcome.ttft > Duration::ZERO);
        let tokens = |count: fn(&Outcome) -> u32| {
            outcome.filter(|outcome| outcome.output_tokens > 0).map(count)
        };
        let status = record.tries.last().map(|attempt| attempt.status);
        Self {
            outcome: match record.end.how {
                Ended::Answered => "answered",
                Ended::FellBack => "fell-back",
                Ended::Error => "error",
                Ended::ClientGone => "client-gone",
            }
            .to_owned(),
            status: status.filter(|status| begun.is_some() && *status > 0),
            duration_ms: millis(record.end.total),
            ttft_ms: begun.map(|outcome| millis(outcome.ttft)),
            prompt_tokens: tokens(|outcome| outcome.prompt_tokens),
            cached_tokens: tokens(|outcome| outcome.cached_tokens),
            output_tokens: tokens(|outcome| outcome.output_tokens),
        }
    }
}

/// Converts to whole milliseconds. Saturates after millions of years.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
