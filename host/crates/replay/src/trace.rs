//! The trace of one decision: the explanation of its record, and what each policy does now.

use pointsman_domain::PolicyRef;
use pointsman_policy::LogLine;
use pointsman_record::{
    CallReplay, DecisionRecord, DecisionReplay, ExplainedCall, Explanation, Source,
};
use serde_json::{Value, json};

use crate::context::ReplayContext;
use crate::decision::{CallVerdict, ReplayedCall, ReplayedDecision};

/// Explains a recorded decision, next to the same decision made again.
pub(crate) fn trace(
    record: &DecisionRecord,
    context: &ReplayContext,
    replayed: &ReplayedDecision,
) -> Explanation {
    let mut explanation = Explanation::new(record, &context.fleet, Source::Records);
    for call in &replayed.calls {
        let is_recorded = |recorded: &&mut ExplainedCall| {
            recorded.hook == call.hook
                && recorded.policy == call.policy
                && recorded.replay.is_none()
        };
        let replay = Some(call_replay(call));
        match explanation.policies.iter_mut().find(is_recorded) {
            Some(recorded) => recorded.replay = replay,
            None => explanation.policies.push(ExplainedCall { replay, ..not_recorded(call) }),
        }
    }
    let differences = replayed.decision.iter().flat_map(|(_, divergences)| divergences);
    explanation.replay = Some(DecisionReplay {
        decision: json!(replayed.decision.as_ref().map(|(decision, _)| decision)),
        differences: differences.map(ToString::to_string).collect(),
    });
    explanation
}

fn not_recorded(call: &ReplayedCall) -> ExplainedCall {
    ExplainedCall {
        policy: call.policy.clone(),
        version: "not recorded".to_owned(),
        hook: call.hook.to_owned(),
        duration_us: 0,
        host_calls: Vec::new(),
        advice: Value::Null,
        note: None,
        dropped: Vec::new(),
        log: Vec::new(),
        replay: None,
    }
}

fn call_replay(call: &ReplayedCall) -> CallReplay {
    let (verdict, because) = match &call.verdict {
        CallVerdict::Same => ("same", Vec::new()),
        CallVerdict::Differs(divergences, causes) => {
            let divergences = divergences.iter().map(ToString::to_string);
            ("differs", divergences.chain(causes.iter().cloned()).collect())
        }
        CallVerdict::Unknown(missing) => {
            ("unknown", missing.iter().map(|missing| missing.description.clone()).collect())
        }
        CallVerdict::NoAdvice(note) => ("no-advice", vec![note.clone()]),
        CallVerdict::NotRecorded => ("not-recorded", Vec::new()),
    };
    let detail = call.detail.as_ref();
    let line = |line: &LogLine| format!("{:<5} {}", line.level, line.message);
    let version = |policy: &PolicyRef| policy.version.to_string();
    CallReplay {
        version: call.replayed.as_ref().map(version),
        verdict: verdict.to_owned(),
        because,
        host_calls: detail.map(|detail| detail.reads.clone()).unwrap_or_default(),
        returned: detail.map(|detail| detail.returned.clone()).unwrap_or_default(),
        dropped: detail.map(|detail| detail.dropped.clone()).unwrap_or_default(),
        log: detail.map(|detail| detail.log.iter().map(line).collect()).unwrap_or_default(),
    }
}
