//! The trace of one decision: what each policy read, returned and logged, in the record and in the
//! replay.

use pointsman_domain::{PolicyCall, Read};
use pointsman_policy::LogLine;
use pointsman_record::DecisionRecord;
use serde::Serialize;
use serde_json::{Value, json};

use crate::context::ReplayContext;
use crate::decision::{CallVerdict, ReplayedCall, ReplayedDecision};

/// The trace of a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DecisionTrace {
    /// Id of the request.
    pub request: String,
    /// Names of the lanes, by id.
    pub lanes: Vec<String>,
    /// Calls of policies that were replayed.
    pub calls: Vec<TracedCall>,
    /// The recorded decision.
    pub recorded: Value,
    /// The replayed decision; `null` if it is unknown.
    pub replayed: Value,
    /// Differences between the two.
    pub differences: Vec<String>,
}

/// The trace of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TracedCall {
    /// Name of the policy.
    pub policy: String,
    /// The hook.
    pub hook: &'static str,
    /// The recorded call; `None` if the policy was not called then.
    pub recorded: Option<PolicyCall>,
    /// The version that was replayed.
    pub version: Option<String>,
    /// Host calls of the replayed call, with their results.
    #[serde(rename = "host-calls")]
    pub reads: Vec<Read>,
    /// What the replayed call returned, without what was dropped; `null` if there was none.
    pub returned: Value,
    /// Parts that were dropped, with the reasons.
    pub dropped: Vec<String>,
    /// Log lines.
    pub log: Vec<LogLine>,
    /// `same`, `differs`, `unknown`, `no-advice` or `not-recorded`.
    pub verdict: &'static str,
    /// What differs, or which inputs are missing.
    pub because: Vec<String>,
}

impl DecisionTrace {
    pub(crate) fn new(
        record: &DecisionRecord,
        context: &ReplayContext,
        replayed: &ReplayedDecision,
    ) -> Self {
        let topology = &context.fleet.topology;
        let differences = replayed.decision.iter().flat_map(|(_, divergences)| divergences);
        Self {
            request: record.request_id.to_string(),
            lanes: topology.lanes().iter().map(|lane| lane.name.clone()).collect(),
            calls: replayed.calls.iter().map(|call| TracedCall::new(record, call)).collect(),
            recorded: json!(record.decision),
            replayed: json!(replayed.decision.as_ref().map(|(decision, _)| decision)),
            differences: differences.map(ToString::to_string).collect(),
        }
    }
}

impl TracedCall {
    fn new(record: &DecisionRecord, call: &ReplayedCall) -> Self {
        let recorded = record
            .consulted
            .iter()
            .find(|recorded| recorded.hook == call.hook && *recorded.policy.name == *call.policy);
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
        Self {
            policy: call.policy.clone(),
            hook: call.hook,
            recorded: recorded.cloned(),
            version: call.replayed.as_ref().map(|policy| policy.version.to_string()),
            reads: detail.map(|detail| detail.reads.clone()).unwrap_or_default(),
            returned: detail.map(|detail| detail.returned.clone()).unwrap_or_default(),
            dropped: detail.map(|detail| detail.dropped.clone()).unwrap_or_default(),
            log: detail.map(|detail| detail.log.clone()).unwrap_or_default(),
            verdict,
            because,
        }
    }
}
