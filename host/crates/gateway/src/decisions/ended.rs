//! One request that has ended.

use std::sync::Arc;
use std::time::Duration;

use pointsman_access::Identity;
use pointsman_domain::{Constraint, Endpoint, FleetView, LaneStat, TokenCounts};
use pointsman_record::{
    DecisionRecord, ExplainedError, ExplainedOutcome, Explanation, Redact, Source,
};
use serde_json::{Value, json};

use crate::attribution::Attribution;

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct EndedRequest {
    /// Its id.
    pub(crate) id: String,
    /// When it arrived, in milliseconds since 1970.
    pub(crate) unix_ms: u64,
    pub(crate) endpoint: Endpoint,
    /// The model that the client asked for; `None` if it was refused before that was known.
    pub(crate) model: Option<Arc<str>>,
    /// Who sent it.
    pub(crate) identity: Arc<Identity>,
    /// The lane of the last attempt.
    pub(crate) lane: Option<String>,
    /// The label of how it ended.
    pub(crate) outcome: &'static str,
    /// HTTP status of the response; `None` if it had not begun.
    pub(crate) status: Option<u16>,
    /// Why it failed.
    pub(crate) failed: Option<EndedFailure>,
    /// Time from the arrival to the end.
    pub(crate) total: Duration,
    /// Time from the arrival to the first byte of the response.
    pub(crate) ttft: Option<Duration>,
    pub(crate) attempts: u32,
    /// The tokens that the engine reported.
    pub(crate) usage: Option<TokenCounts>,
    /// The policies that decided; `None` before a decision.
    pub(crate) attribution: Option<Arc<Attribution>>,
    /// What guards demanded.
    pub(crate) constraint: Option<Arc<Constraint>>,
    /// The decision; `None` before one, or if it is too large.
    pub(crate) detail: Option<DecisionDetail>,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct EndedFailure {
    /// The code that the client got; `None` if the engine's own response was passed on.
    pub(crate) code: Option<String>,
    pub(crate) message: String,
}

/// A decision with what it was based on.
#[derive(Debug)]
pub(crate) struct DecisionDetail {
    pub(crate) record: Arc<DecisionRecord>,
    pub(crate) fleet: Arc<FleetView>,
    /// The host calls of policies were collected.
    pub(crate) has_host_calls: bool,
}

impl DecisionDetail {
    /// Returns the approximate number of bytes that it uses.
    pub(super) fn weight(&self) -> usize {
        self.record.weight() + self.fleet.stats().count() * size_of::<LaneStat>()
    }
}

impl EndedRequest {
    /// Returns the approximate number of bytes that the request uses.
    pub(super) fn weight(&self) -> usize {
        let failed = self.failed.as_ref();
        size_of::<Self>()
            + self.id.len()
            + self.model.as_ref().map_or(0, |model| model.len())
            + self.lane.as_ref().map_or(0, String::len)
            + failed.map_or(0, |failed| failed.message.len())
            + self.detail.as_ref().map_or(0, DecisionDetail::weight)
    }

    /// Returns the request as one of a list.
    pub(crate) fn row(&self) -> Value {
        let attribution = self.attribution.as_deref();
        let failed = self.failed.as_ref();
        json!({
            "id": self.id,
            "unix_ms": self.unix_ms,
            "model": self.model.as_deref(),
            "endpoint": self.endpoint.label(),
            "tenant": self.identity.tenant,
            "key": self.key(),
            "lane": self.lane,
            "outcome": self.outcome,
            "status": self.status,
            "code": failed.and_then(|failed| failed.code.as_deref()),
            "duration_ms": millis(self.total),
            "ttft_ms": self.ttft.map(millis),
            "reason": attribution.and_then(Attribution::reason),
            "decided_by": attribution.and_then(Attribution::decided_by),
            "attempts": self.attempts,
        })
    }

    fn key(&self) -> Option<&str> {
        Some(self.identity.name.as_str()).filter(|name| !name.is_empty())
    }

    /// Explains the request. Texts in what policies read and advised are redacted by `redact`.
    pub(crate) fn explain(&self, redact: Option<&Redact>, source: Source) -> Explanation {
        let decided = self.detail.as_ref().map(|detail| {
            let mut explanation = match redact {
                None => Explanation::new(&detail.record, &detail.fleet, source),
                Some(redact) => {
                    let mut record = DecisionRecord::clone(&detail.record);
                    redact.apply(&mut record);
                    Explanation::new(&record, &detail.fleet, source)
                }
            };
            explanation.has_host_calls = detail.has_host_calls;
            explanation
        });
        let undecided = || Explanation {
            unix_ms: self.unix_ms,
            endpoint: self.endpoint.label().to_owned(),
            model: self.model.as_deref().map(str::to_owned),
            guards: json!(self.constraint.as_ref().map(|constraint| &constraint.guards)),
            ..Explanation::empty(&self.id, source)
        };
        let mut explanation = decided.unwrap_or_else(undecided);
        if self.detail.is_none() && self.attribution.is_some() {
            explanation.notes.push("the details of the decision were too large to keep".to_owned());
        }
        explanation.tenant.clone_from(&self.identity.tenant);
        explanation.key = self.key().map(str::to_owned);
        explanation.error = self.failed.as_ref().map(|failed| ExplainedError {
            status: self.status,
            code: failed.code.clone(),
            message: failed.message.clone(),
        });
        explanation.outcome = Some(self.explained_outcome());
        explanation
    }

    fn explained_outcome(&self) -> ExplainedOutcome {
        let usage = self.usage;
        ExplainedOutcome {
            outcome: self.outcome.to_owned(),
            status: self.status,
            duration_ms: millis(self.total),
            ttft_ms: self.ttft.map(millis),
            prompt_tokens: usage.map(|usage| usage.prompt).filter(|prompt| *prompt > 0),
            cached_tokens: usage.map(|usage| usage.cached),
            output_tokens: usage.map(|usage| usage.output),
        }
    }
}

/// Converts to whole milliseconds. Saturates after millions of years.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
