//! The finished requests of golden cases for `on-complete` and `on-outcome`.

use std::collections::BTreeMap;
use std::time::Duration;

use pointsman_domain::{Attempt, AttemptResult, FleetView, Note, Outcome, PolicyRef, Scalar};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::fleet::lane_of;
use crate::version::case_error::CaseInputError;

/// A request that `on-complete` or `on-outcome` is called about.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CaseOutcome {
    lane: String,
    #[schemars(with = "String")]
    ended: AttemptResult,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    model: String,
    /// How many there were, or all of them.
    #[serde(default)]
    attempts: CaseAttempts,
    /// The notes that the policy gave, of `on-outcome`: flags, integers and texts.
    #[serde(default)]
    notes: BTreeMap<String, Value>,
    #[serde(default)]
    queue_ms: u64,
    #[serde(default)]
    ttft_ms: u64,
    #[serde(default)]
    total_ms: u64,
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    cached_tokens: u32,
    #[serde(default)]
    output_tokens: u32,
}

/// The attempts of a request in a case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum CaseAttempts {
    /// The number of attempts, all of which were on the lane of the outcome.
    Count(u32),
    All(Vec<CaseAttempt>),
}

/// One attempt of a request in a case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CaseAttempt {
    lane: String,
    #[schemars(with = "String")]
    ended: AttemptResult,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    queue_ms: u64,
    #[serde(default)]
    took_ms: u64,
}

impl Default for CaseAttempts {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl CaseOutcome {
    /// Returns the outcome. The policy of its notes is set once there is an instance.
    pub(super) fn outcome(&self, fleet: &FleetView) -> Result<Outcome, CaseInputError> {
        let lane = lane_of(&self.lane, fleet)?;
        let last = Attempt {
            result: self.ended,
            queue: Duration::from_millis(self.queue_ms),
            took: Duration::from_millis(self.total_ms),
            ..Attempt::new(lane, Duration::ZERO)
        };
        let (tries, attempts) = match &self.attempts {
            CaseAttempts::Count(count) => (*count, vec![last]),
            CaseAttempts::All(all) => {
                let attempts = all.iter().map(|attempt| attempt.attempt(fleet));
                let attempts: Vec<Attempt> = attempts.collect::<Result<_, _>>()?;
                (u32::try_from(attempts.len()).unwrap_or(u32::MAX), attempts)
            }
        };
        let policy = PolicyRef::new("", "");
        let note = |(key, value): (&String, &Value)| {
            let note = note(key, value).ok_or(CaseInputError::Note { key: key.clone() })?;
            Ok::<_, CaseInputError>((policy.clone(), note))
        };
        Ok(Outcome {
            request_id: self.request_id.as_str().into(),
            tenant: self.tenant.as_deref().map(Into::into),
            model: self.model.as_str().into(),
            lane,
            topology: fleet.topology.generation(),
            ended: self.ended,
            tries,
            queue: Duration::from_millis(self.queue_ms),
            ttft: Duration::from_millis(self.ttft_ms),
            total: Duration::from_millis(self.total_ms),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            attempts,
            notes: self.notes.iter().map(note).collect::<Result<_, _>>()?,
        })
    }
}

impl CaseAttempt {
    fn attempt(&self, fleet: &FleetView) -> Result<Attempt, CaseInputError> {
        Ok(Attempt {
            result: self.ended,
            status: self.status,
            queue: Duration::from_millis(self.queue_ms),
            took: Duration::from_millis(self.took_ms),
            ..Attempt::new(lane_of(&self.lane, fleet)?, Duration::ZERO)
        })
    }
}

/// Returns a note; `None` if the value has a type that notes cannot have.
fn note(key: &str, value: &Value) -> Option<Note> {
    let value = match value {
        Value::Bool(flag) => Scalar::Flag(*flag),
        Value::Number(number) => Scalar::Int(number.as_i64()?),
        Value::String(text) => Scalar::Text(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    Some(Note { key: key.to_owned(), value })
}
