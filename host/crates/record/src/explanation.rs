//! Why a request was decided as it was, and what became of it: the one form in which operators see
//! a decision, whether it was made a moment ago, is recorded, or would be made now.

mod build;

use std::collections::BTreeMap;

use pointsman_domain::Read;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where an explanation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The recent decisions that a running host keeps in memory.
    Recent,
    /// Decision records.
    Records,
    /// A request that was not sent: what would be decided about it now.
    Preview,
    /// A request that was not sent: what a host that has just started with a configuration would
    /// decide about it.
    Configuration,
}

/// What a decision takes for granted that was made without a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assumptions {
    /// File of the configuration.
    pub config: String,
    /// The states of all lanes, by name.
    pub lanes: BTreeMap<String, String>,
    /// Everything else, in sentences.
    pub notes: Vec<String>,
}

/// Why a request was decided as it was, and what became of it. Lanes are named; where parts of
/// records refer to lanes by ids, [`Explanation::lanes`] has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Id of the request.
    pub id: String,
    /// Where the explanation comes from.
    pub source: Source,
    /// What was taken for granted; `None` if a host has decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assumed: Option<Assumptions>,
    /// When the request was decided; when it arrived, if it was not. Milliseconds since 1970.
    pub unix_ms: u64,
    /// The endpoint, as in metrics.
    pub endpoint: String,
    /// Model name that the client asked for; `None` if the request was refused before it was known.
    pub model: Option<String>,
    /// Tenant of the request.
    pub tenant: Option<String>,
    /// Name of the API key.
    pub key: Option<String>,
    /// What every policy knows of the request: sizes and flags. `null` if it was not read.
    pub request: Value,
    /// The rights and the limits of the key, in previews.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub rights: Value,
    /// The guards that apply, each with its rules.
    pub guards: Value,
    /// The lanes of the model, and all others that were considered or attempted.
    pub lanes: Vec<ExplainedLane>,
    /// Calls of policies, in order.
    pub policies: Vec<ExplainedCall>,
    /// The host calls of the policies are known. If not, they have none here.
    pub has_host_calls: bool,
    /// The merged advice as in records; `null` without a decision.
    pub merged: Value,
    /// The host's decision; `None` if the request was refused before one.
    pub decision: Option<ExplainedDecision>,
    /// The policy that prevailed, with its version.
    pub decided_by: Option<String>,
    /// The reason that a policy gave.
    pub reason: Option<String>,
    /// The error that the client got, or would get.
    pub error: Option<ExplainedError>,
    /// Attempts on lanes, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<ExplainedAttempt>,
    /// How the request ended; `None` in previews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ExplainedOutcome>,
    /// What other policies, or the same ones, decide now about the recorded request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<DecisionReplay>,
    /// What is not known of the request, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A lane as it was at the time of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedLane {
    /// Its id in parts of records.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// Its place in the plan, from 1; `None` if it is not part of it.
    pub step: Option<usize>,
    /// Its score by the policies; `None` if it is excluded.
    pub score: Option<i64>,
    /// Why it cannot be used; `None` if it can.
    pub excluded: Option<String>,
    /// Estimated milliseconds until a request would start.
    pub start_in_ms: u64,
    /// Free slots.
    pub slots_free: u32,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// Tokens of the prompt that are expected in its cache.
    pub cached_tokens: u32,
}

/// A call of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedCall {
    /// Name of the policy.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// The hook: `on-request` or `on-failure`.
    pub hook: String,
    /// Duration in microseconds.
    pub duration_us: u64,
    /// Host calls with their results.
    pub host_calls: Vec<Read>,
    /// The advice after the host's limits were applied, as in records; `null` if there was none.
    pub advice: Value,
    /// Why there is no advice, or what the policy decided after a failed attempt.
    pub note: Option<String>,
    /// Parts of the advice that were dropped, with the reasons.
    pub dropped: Vec<String>,
    /// Log lines, if they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// The same call made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<CallReplay>,
}

/// A recorded call that was made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallReplay {
    /// The version that was called; `None` if it was not called.
    pub version: Option<String>,
    /// `same`, `differs`, `unknown`, `no-advice` or `not-recorded`.
    pub verdict: String,
    /// What differs, or which inputs are missing.
    pub because: Vec<String>,
    /// Host calls with their results.
    pub host_calls: Vec<Read>,
    /// What it returned, without what was dropped; `null` if there was nothing.
    pub returned: Value,
    /// Parts that were dropped, with the reasons.
    pub dropped: Vec<String>,
    /// Log lines.
    pub log: Vec<String>,
}

/// A decision that was made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionReplay {
    /// The decision as in records; `null` if it is not known.
    pub decision: Value,
    /// What differs from the record.
    pub differences: Vec<String>,
}

/// A decision of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedDecision {
    /// `route`, `reject` or `no-lane`.
    pub kind: String,
    /// The lanes to attempt, in order.
    pub lanes: Vec<String>,
    /// The rest of the plan, the rejection, or the reason, as in records.
    pub detail: Value,
}

/// An error that a client got, or would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedError {
    /// HTTP status.
    pub status: Option<u16>,
    /// Stable code.
    pub code: Option<String>,
    /// Message.
    pub message: String,
}

/// An attempt on a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedAttempt {
    /// Name of the lane.
    pub lane: String,
    /// Its result, as in metrics.
    pub result: String,
    /// HTTP status of the engine; `None` if it sent none.
    pub status: Option<u16>,
    /// Milliseconds from the arrival of the request to the start of the attempt.
    pub started_ms: u64,
    /// Milliseconds that it waited for a slot.
    pub queue_ms: u64,
    /// Milliseconds that it took, with the wait.
    pub duration_ms: u64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedOutcome {
    /// `answered`, `fell-back`, `error` or `client-gone`.
    pub outcome: String,
    /// HTTP status of the response; `None` if it had not begun.
    pub status: Option<u16>,
    /// Milliseconds from the arrival to the end.
    pub duration_ms: u64,
    /// Milliseconds from the arrival to the first byte of the response.
    pub ttft_ms: Option<u64>,
    /// Tokens of the prompt, if the engine reported them.
    pub prompt_tokens: Option<u32>,
    /// Tokens of the prompt from the cache of the engine.
    pub cached_tokens: Option<u32>,
    /// Tokens of the response.
    pub output_tokens: Option<u32>,
}
