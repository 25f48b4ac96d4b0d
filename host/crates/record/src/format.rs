//! The lines: what is in a record, and how it is written.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::units::micros;
use pointsman_domain::{
    AttemptResult, ChainInfo, Consulted, Decision, Figures, LaneId, LaneInfo, LaneStat, Merged,
    Outcome, PlanLimits,
};
use serde::{Deserialize, Serialize};

/// Version of the format.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The lanes that the decisions after it are about.
    Topology(TopologyRecord),
    /// The policies that the decisions after it were made by.
    Policies(ChainInfo),
    /// One decision and its end.
    Decision(Box<DecisionRecord>),
}

/// The lanes there are, and the rules of this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TopologyRecord {
    /// Version of the host that writes the file.
    pub host: String,
    /// Number of this table of lanes, which the decisions name. Counted anew by each run of a host.
    pub generation: u64,
    /// The lanes in the order of their ids.
    pub lanes: Vec<LaneInfo>,
    /// What the host allows every plan.
    pub limits: PlanLimits,
}

/// One decision: what went into it, what came out, and how the request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DecisionRecord {
    /// Id of the request.
    pub request_id: Arc<str>,
    /// Its tenant.
    pub tenant: Option<Arc<str>>,
    /// The model name that the client asked for.
    pub model: Arc<str>,
    /// Wall clock of the decision, in milliseconds since the Unix epoch: the clock of the policies, too.
    pub now_ms: u64,
    /// Seed of the policies' randomness.
    pub seed: u64,
    /// Time from the request to its decision.
    #[serde(rename = "age-us", with = "micros")]
    pub age: Duration,
    /// Tries before the decision.
    pub attempt: u32,
    /// The plain numbers of the request.
    pub figures: Figures,
    /// Generation of the lane table.
    pub topology: u64,
    /// The chain of policies; `None` where there was none, or the record is of an earlier host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
    /// The lanes at that moment. Zeros are left out.
    pub fleet: Vec<LaneStat>,
    /// The policies' calls in order, those after failed tries as well.
    pub consulted: Vec<Consulted>,
    /// What the advice came to.
    pub merged: Merged,
    /// What the host made of that.
    pub decision: Decision,
    /// The lanes that were tried, in order.
    pub tries: Vec<TryRecord>,
    /// How the request ended.
    pub end: End,
    /// What policies that learn were told of the end; `None` where no lane was tried.
    pub outcome: Option<Outcome>,
    /// The request itself, if whole requests are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestRecord>,
}

/// One try of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TryRecord {
    /// The lane.
    pub lane: LaneId,
    /// How it ended.
    pub result: AttemptResult,
    /// HTTP status of the engine's answer; 0 where there was none.
    pub status: u16,
    /// Time from the request to the begin of the try.
    #[serde(rename = "begun-us", with = "micros")]
    pub begun: Duration,
    /// Of its time, how long it waited for a slot.
    #[serde(rename = "queue-us", with = "micros")]
    pub queue: Duration,
    /// How long it took: to its failure, or to the end of the answer.
    #[serde(rename = "took-us", with = "micros")]
    pub took: Duration,
}

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct End {
    /// In which of the four ways.
    pub how: Ended,
    /// Time from the request to its end.
    #[serde(rename = "total-us", with = "micros")]
    pub total: Duration,
}

/// The four ways in which a request can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The first lane that was tried answered.
    Answered,
    /// A later one did.
    FellBack,
    /// With an explicit error.
    Error,
    /// The client left.
    ClientGone,
}

/// The whole request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestRecord {
    /// Its headers, without those that carry credentials.
    pub headers: Vec<(String, String)>,
    /// Its body as a text, byte for byte where no rule changed it; `None` for one that is longer than the limit.
    pub body: Option<String>,
}

#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    kind: &'static str,
    #[serde(flatten)]
    record: &'a T,
}

/// Append a line with its end to `text`, or nothing at all.
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
    /// The line of this record, with its end.
    ///
    /// # Errors
    /// None that a record which was read, or is to be written by a host, could cause.
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
