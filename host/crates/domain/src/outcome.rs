//! How tries and requests end: what policies hear of it, and what they may want done about a failed try.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::{FallbackStep, Rejection, Trigger};
use crate::fleet_view::LaneId;

/// How one try on a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptResult {
    /// The whole answer went out.
    Ok,
    /// It waited for its longest time.
    QueueTimeout,
    /// No connection to the engine.
    ConnectError,
    /// The engine is full.
    Overloaded,
    /// The engine failed.
    ServerError,
    /// The lane's engine is down or restarting.
    EngineRestart,
    /// The first byte of the answer took too long.
    FirstTokenTimeout,
    /// The client left.
    ClientGone,
    /// Anything else: refused by a policy, cut at the end of the host, a mistake of the client's.
    Other,
}

impl AttemptResult {
    /// Value of a metric's label.
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

/// A failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureReport {
    /// The lane that was tried.
    pub lane: LaneId,
    /// How it ended.
    pub what: AttemptResult,
    /// HTTP status of the engine's answer; 0 where there was none.
    pub status: u16,
    /// Bytes of output that the client has seen. Nothing is retried above 0, so policies are only asked at 0.
    pub sent_bytes: u64,
    /// How long the try took.
    #[serde(rename = "elapsed-us", with = "crate::units::micros")]
    pub elapsed: Duration,
    /// Tries that are left for the request.
    pub attempts_left: u32,
}

/// What to do after a failed try.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Go on with the planned fallback steps.
    #[default]
    Planned,
    /// Try this next.
    Retry(FallbackStep),
    /// Give up and answer with this.
    GiveUp(Rejection),
}

/// The end of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Id of the request.
    pub request_id: Arc<str>,
    /// Its tenant.
    pub tenant: Option<Arc<str>>,
    /// The model name that the client asked for.
    pub model: Arc<str>,
    /// The lane that was tried last.
    pub lane: LaneId,
    /// Generation of the lane table.
    pub topology: u64,
    /// How it ended.
    pub ended: AttemptResult,
    /// How often a lane was tried.
    pub tries: u32,
    /// Time in queues.
    #[serde(rename = "queue-us", with = "crate::units::micros")]
    pub queue: Duration,
    /// Time from the request to the first byte of its answer; zero where there was none.
    #[serde(rename = "ttft-us", with = "crate::units::micros")]
    pub ttft: Duration,
    /// Time from the request to its end.
    #[serde(rename = "total-us", with = "crate::units::micros")]
    pub total: Duration,
    /// Tokens of the prompt, as the engine counted them; an estimate where it did not say.
    pub prompt_tokens: u32,
    /// How many of them came from the engine's prefix cache; 0 where it did not say.
    pub cached_tokens: u32,
    /// Tokens of the answer; 0 where the engine did not say.
    pub output_tokens: u32,
}
