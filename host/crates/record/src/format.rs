//! The record types and their serialisation.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::units::micros;
use pointsman_domain::{
    AttemptResult, ChainInfo, Constraint, Decision, LaneId, LaneInfo, LaneStat, Merged, Outcome,
    PlanLimits, PolicyCall, RequestInfo,
};
use serde::{Deserialize, Serialize};

/// Version of the format that is written.
pub const VERSION: u32 = 2;

/// Oldest version of the format that can be read. Version 1 differs only in the names of keys,
/// which the types below and in `pointsman_domain` accept as aliases.
pub(crate) const MIN_VERSION: u32 = 1;

/// A record: one line of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The lanes that the following decisions refer to.
    Topology(TopologyRecord),
    /// The policies that made the following decisions.
    Policies(ChainInfo),
    /// A decision and its outcome.
    Decision(Box<DecisionRecord>),
}

/// The table of lanes and the limits of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TopologyRecord {
    /// Version of the host that wrote the file.
    pub host: String,
    /// Generation of the topology, which decisions name. Restarts with each run of the host.
    pub generation: u64,
    /// The lanes, in id order.
    pub lanes: Vec<LaneInfo>,
    /// Limits on every plan.
    pub limits: PlanLimits,
}

/// A decision: its inputs, its result, and how the request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DecisionRecord {
    /// Request id.
    pub request_id: Arc<str>,
    /// Tenant of the request.
    pub tenant: Option<Arc<str>>,
    /// Model name that the client asked for.
    pub model: Arc<str>,
    /// Wall clock of the decision, which policies also see, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Seed for the randomness of policies.
    pub seed: u64,
    /// Time from the arrival of the request to the decision.
    #[serde(rename = "age-us", with = "micros")]
    pub age: Duration,
    /// Number of attempts before the decision.
    pub attempt: u32,
    /// Properties of the request that every policy gets.
    #[serde(rename = "request-info", alias = "figures")]
    pub figures: RequestInfo,
    /// Generation of the topology.
    pub topology: u64,
    /// What the guards of the operator demand of the request; `None` if none applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guards: Option<Arc<Constraint>>,
    /// Identifier of the chain of policies; `None` if there were no policies, or in records of
    /// early hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
    /// Lane statistics at the time of the decision. Zeros are left out.
    pub fleet: Vec<LaneStat>,
    /// Calls of policies in order, including those after failed attempts.
    #[serde(rename = "policy-calls", alias = "consulted")]
    pub consulted: Vec<PolicyCall>,
    /// The merged advice. Shared with the request that it decides.
    pub merged: Arc<Merged>,
    /// The host's decision.
    pub decision: Decision,
    /// Attempts on lanes, in order.
    #[serde(rename = "attempts", alias = "tries")]
    pub tries: Vec<AttemptRecord>,
    /// How the request ended for the client.
    pub end: End,
    /// The outcome as reported to `on-complete`; `None` if no lane was attempted.
    pub outcome: Option<Outcome>,
    /// The request itself, if whole requests are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestRecord>,
}

/// One attempt on a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttemptRecord {
    /// Lane of the attempt.
    pub lane: LaneId,
    /// Result of the attempt.
    pub result: AttemptResult,
    /// HTTP status of the engine's response; 0 if there was none.
    pub status: u16,
    /// Time from the arrival of the request to the start of the attempt.
    #[serde(rename = "started-us", alias = "begun-us", with = "micros")]
    pub begun: Duration,
    /// Part of the attempt that was spent waiting for a slot.
    #[serde(rename = "queue-us", with = "micros")]
    pub queue: Duration,
    /// Duration of the attempt, up to its failure or the end of the response.
    #[serde(rename = "duration-us", alias = "took-us", with = "micros")]
    pub took: Duration,
}

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct End {
    /// Result of the request.
    #[serde(rename = "result", alias = "how")]
    pub how: Ended,
    /// Time from the arrival of the request to its end.
    #[serde(rename = "total-us", with = "micros")]
    pub total: Duration,
}

/// The result of a request for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The first attempt succeeded.
    Answered,
    /// A later attempt succeeded.
    FellBack,
    /// The client got an error.
    Error,
    /// The client disconnected.
    ClientGone,
}

/// The whole request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestRecord {
    /// Headers of the request, without credential headers.
    pub headers: Vec<(String, String)>,
    /// Body as text, unchanged unless a redaction rule applied; `None` if it exceeds the size
    /// limit.
    pub body: Option<String>,
}

#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    kind: &'static str,
    #[serde(flatten)]
    record: &'a T,
}

/// Appends a line, including its line ending, to `text`. Appends nothing on failure.
pub(crate) fn write_line<T: Serialize>(
    kind: &'static str,
    record: &T,
    text: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let before = text.len();
    let written = serde_json::to_writer(&mut *text, &Line { v: VERSION, kind, record });
    match written {
        Ok(()) => text.push(b'\n'),
        Err(_) => text.truncate(before),
    }
    written
}

impl Record {
    /// Returns the line of this record, including its line ending.
    ///
    /// # Errors
    /// Does not fail for records that were read, or that a host writes.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = Vec::new();
        match self {
            Self::Topology(record) => write_line("topology", record, &mut line)?,
            Self::Policies(record) => write_line("policies", record, &mut line)?,
            Self::Decision(record) => write_line("decision", record, &mut line)?,
        }
        Ok(line)
    }
}
