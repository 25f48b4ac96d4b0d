//! How attempts and requests end: what policies are told, and what they may request after a failed
//! attempt.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::{FallbackStep, Note, Rejection, Trigger};
use crate::fleet_view::LaneId;
use crate::policy_ref::PolicyRef;

/// The result of one attempt on a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptResult {
    /// The whole response was sent.
    Ok,
    /// The maximum wait in the queue was exceeded.
    QueueTimeout,
    /// The engine could not be reached.
    ConnectError,
    /// The engine rejected the request as overloaded.
    Overloaded,
    /// The engine failed.
    ServerError,
    /// The lane's engine is down or restarting.
    EngineRestart,
    /// The first byte of the response took too long.
    FirstTokenTimeout,
    /// The client disconnected.
    ClientGone,
    /// Anything else: rejected by a policy, aborted when the host stopped, or an error of the
    /// client.
    Other,
}

impl AttemptResult {
    /// Returns the metric label of this result.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::QueueTimeout => "queue-timeout",
            Self::ConnectError => "connect-error",
            Self::Overloaded => "overloaded",
            Self::ServerError => "server-error",
            Self::EngineRestart => "engine-restart",
            Self::FirstTokenTimeout => "first-token-timeout",
            Self::ClientGone => "client-gone",
            Self::Other => "other",
        }
    }
}

impl From<Trigger> for AttemptResult {
    fn from(trigger: Trigger) -> Self {
        match trigger {
            Trigger::QueueTimeout => Self::QueueTimeout,
            Trigger::ConnectError => Self::ConnectError,
            Trigger::Overloaded => Self::Overloaded,
            Trigger::ServerError => Self::ServerError,
            Trigger::EngineRestart => Self::EngineRestart,
            Trigger::FirstTokenTimeout => Self::FirstTokenTimeout,
        }
    }
}

/// The end of a request, as it is counted. Every request has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RequestResult {
    /// The first lane of the plan sent a complete response.
    Answered,
    /// A fallback lane sent a complete response.
    FellBack,
    /// A policy rejected the request.
    Rejected,
    /// The client received an error.
    Error,
    /// The client disconnected before the response was complete.
    ClientGone,
}

impl RequestResult {
    /// Returns true if the client received a complete response.
    pub fn is_success(self) -> bool {
        match self {
            Self::Answered | Self::FellBack => true,
            Self::Rejected | Self::Error | Self::ClientGone => false,
        }
    }
}

/// An attempt to serve a request on one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The lane.
    pub lane: LaneId,
    /// How the attempt ended.
    pub result: AttemptResult,
    /// HTTP status of the engine's response; 0 if there was none.
    pub status: u16,
    /// Age of the request when the attempt began.
    pub begun: Duration,
    /// How long the request waited for a slot.
    pub queue: Duration,
    /// Duration of the attempt, including the wait for a slot.
    pub took: Duration,
}

impl Attempt {
    /// Creates an attempt that begins at this age of its request.
    pub fn new(lane: LaneId, age: Duration) -> Self {
        let (result, zero) = (AttemptResult::Other, Duration::ZERO);
        Self { lane, result, status: 0, begun: age, queue: zero, took: zero }
    }
}

/// Token counts of a response, as the engine reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenCounts {
    /// Tokens of the prompt; 0 if the engine reported none.
    pub prompt: u32,
    /// Prompt tokens served from the engine's prefix cache.
    pub cached: u32,
    /// Tokens of the response.
    pub output: u32,
}

/// The request that an outcome is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeSubject {
    /// Request id.
    pub request_id: Arc<str>,
    /// Tenant of the request.
    pub tenant: Option<Arc<str>>,
    /// Model name that the client asked for.
    pub model: Arc<str>,
    /// Generation of the topology.
    pub topology: u64,
    /// The host's estimate of the prompt tokens, before any edits.
    pub prompt_tokens: u32,
    /// The notes of the decision that policies get with the outcome, see
    /// [`Advisor::kept_notes`](crate::Advisor::kept_notes).
    pub notes: Vec<(PolicyRef, Note)>,
}

/// A failed attempt, as reported to `on-failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureReport {
    /// Lane of the attempt.
    pub lane: LaneId,
    /// Result of the attempt.
    pub what: AttemptResult,
    /// HTTP status of the engine's response; 0 if there was none.
    pub status: u16,
    /// Bytes of output already sent to the client. A request is only retried at 0, so policies are
    /// only called at 0.
    pub sent_bytes: u64,
    /// Duration of the attempt.
    #[serde(rename = "elapsed-us", with = "crate::units::micros")]
    pub elapsed: Duration,
    /// Attempts left for the request.
    #[serde(alias = "tries-left")]
    pub attempts_left: u32,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Continue with the planned fallback steps.
    #[default]
    Planned,
    /// Attempt this step next.
    Retry(FallbackStep),
    /// Give up and send this rejection.
    GiveUp(Rejection),
}

/// What the policies want after a failed attempt, and which of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// What follows the attempt.
    pub recovery: Recovery,
    /// The policy that decided it; `None` if the plan continues.
    pub by: Option<PolicyRef>,
}

/// The outcome of one request, as reported to `on-complete` and `on-outcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Request id.
    pub request_id: Arc<str>,
    /// Tenant of the request.
    pub tenant: Option<Arc<str>>,
    /// Model name that the client asked for.
    pub model: Arc<str>,
    /// Lane of the last attempt.
    pub lane: LaneId,
    /// Generation of the topology.
    pub topology: u64,
    /// Result of the last attempt.
    #[serde(rename = "result", alias = "ended")]
    pub ended: AttemptResult,
    /// Number of attempts.
    #[serde(rename = "attempts", alias = "tries")]
    pub tries: u32,
    /// Total time in queues.
    #[serde(rename = "queue-us", with = "crate::units::micros")]
    pub queue: Duration,
    /// Time from the arrival of the request to the first byte of the response; zero if there was
    /// none.
    #[serde(rename = "ttft-us", with = "crate::units::micros")]
    pub ttft: Duration,
    /// Time from the arrival of the request to its end.
    #[serde(rename = "total-us", with = "crate::units::micros")]
    pub total: Duration,
    /// Prompt tokens as counted by the engine; an estimate if the engine reported none.
    pub prompt_tokens: u32,
    /// Prompt tokens served from the engine's prefix cache; 0 if the engine reported none.
    pub cached_tokens: u32,
    /// Output tokens; 0 if the engine reported none.
    pub output_tokens: u32,
    /// All attempts, in order. Records have them already.
    #[serde(skip)]
    pub attempts: Vec<Attempt>,
    /// The notes of policies that get them with the outcome, in chain order. Records have them with
    /// the advice.
    #[serde(skip)]
    pub notes: Vec<(PolicyRef, Note)>,
}
