//! What a policy may advise about a request: the Rust side of the WIT's `advice`.
//!
//! Names and meanings are those of `wit/0.1/types.wit`; the serde forms are those of golden cases.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fleet_view::{LaneId, Permille};

/// The advice of one policy for one request. [`Advice::default`] has no opinion.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Advice {
    /// Reject the request.
    pub reject: Option<Rejection>,
    /// Which candidates to use.
    pub lanes: LaneAdvice,
    /// Whether lanes may be loaded or switched for this request.
    pub switching: Option<Switching>,
    /// Position and limits in the queue.
    pub queue: Option<QueueAdvice>,
    /// What to do when an attempt fails.
    pub fallback: Option<FallbackAdvice>,
    /// Changes to the request, in order.
    pub edits: Vec<Edit>,
    /// Explanations; they have no effect on routing.
    pub notes: Vec<Note>,
    /// Experimental settings by name.
    pub hints: Vec<Note>,
}

/// A rejection of the request by a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejection {
    /// HTTP status as the policy set it; see [`Rejection::allowed_status`].
    pub status: u16,
    /// `error.code` of the response.
    pub code: String,
    /// `error.message` of the response.
    pub message: String,
    /// `Retry-After`, in seconds.
    pub retry_after_s: Option<u32>,
}

impl Rejection {
    /// Maximum of [`Rejection::retry_after_s`]. A client that waits longer would miss that the
    /// policy has changed.
    pub const MAX_RETRY_AFTER_S: u32 = 3600;

    /// Returns the status of the response: a policy may use 400 to 499 and 503; any other value
    /// becomes 403.
    pub fn allowed_status(&self) -> u16 {
        match self.status {
            400..=499 | 503 => self.status,
            _ => 403,
        }
    }
}

/// A policy's preferences among the candidates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneAdvice {
    /// No preference.
    #[default]
    Any,
    /// Only these lanes are eligible.
    Only(Vec<LaneId>),
    /// All lanes except these are eligible.
    Avoid(Vec<LaneId>),
    /// Scores; lanes that are not listed get 0 and stay eligible.
    Scores(Vec<LaneScore>),
    /// Eligible lanes, best first; lanes that are not listed are excluded.
    Ordered(Vec<LaneId>),
    /// Scores computed by the host as the weighted mean of these metrics.
    Blend(Vec<MetricWeight>),
}

/// The score of one lane; higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneScore {
    /// The lane.
    pub lane: LaneId,
    /// Score from 0 to 1000.
    pub score: Permille,
}

/// A metric by which the host can score lanes; scaled over the candidates so that 1000 is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the lane statistic of that name")]
pub enum Metric {
    SlotsFree,
    Queue,
    KvFree,
    EstWait,
    ReadyIn,
    Ttft,
    DecodeSpeed,
    CachedTokens,
    ErrorRate,
    Cost,
}

/// The weight of a metric in a blend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricWeight {
    /// The metric.
    pub metric: Metric,
    /// Weight, clamped to -1000 to 1000.
    pub weight: i32,
}

/// What to do when a request exceeds its maximum wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// Respond with an error.
    #[default]
    Reject,
    /// Continue with the next fallback step.
    FallBack,
}

/// Position and limits in the host's queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueAdvice {
    /// Priority; higher is served first, 0 is normal.
    pub priority: i32,
    /// Flow for fair sharing; the tenant if `None`.
    pub flow: Option<String>,
    /// Maximum wait; the host's limit if `None`.
    #[serde(rename = "max-wait-us", with = "crate::units::maybe_micros")]
    pub max_wait: Option<Duration>,
    /// What happens when the maximum wait is exceeded.
    pub on_timeout: OnTimeout,
}

/// Whether the host may load or switch lanes for a request. Ordered from strict to permissive.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Switching {
    /// Only use lanes that are loaded.
    Never,
    /// Only if no other lane's work is delayed.
    WhenIdle,
    /// At the host's discretion.
    #[default]
    Allow,
}

/// An event that moves a request to its next fallback step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Trigger {
    /// The maximum wait in the queue was exceeded.
    QueueTimeout = 1 << 0,
    /// The engine could not be reached.
    ConnectError = 1 << 1,
    /// The engine responded with 429 or 503.
    Overloaded = 1 << 2,
    /// The engine responded with another 5xx, or its response ended before the first byte was
    /// forwarded.
    ServerError = 1 << 3,
    /// The lane's engine is down or restarting.
    EngineRestart = 1 << 4,
    /// The first byte of the response took too long.
    FirstTokenTimeout = 1 << 5,
}

/// A set of [`Trigger`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Trigger>", into = "Vec<Trigger>")]
pub struct Triggers(u8);

impl Triggers {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// The set of all triggers.
    pub const ALL: Self = Self(0b11_1111);

    /// Returns true if the set contains `trigger`.
    pub fn contains(self, trigger: Trigger) -> bool {
        self.0 & trigger as u8 != 0
    }

    /// Returns the set with `trigger` added.
    #[must_use]
    pub fn with(self, trigger: Trigger) -> Self {
        Self(self.0 | trigger as u8)
    }

    /// All triggers, in declaration order.
    pub const EVERY: [Trigger; 6] = [
        Trigger::QueueTimeout,
        Trigger::ConnectError,
        Trigger::Overloaded,
        Trigger::ServerError,
        Trigger::EngineRestart,
        Trigger::FirstTokenTimeout,
    ];
}

impl FromIterator<Trigger> for Triggers {
    fn from_iter<I: IntoIterator<Item = Trigger>>(triggers: I) -> Self {
        triggers.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Vec<Trigger>> for Triggers {
    fn from(triggers: Vec<Trigger>) -> Self {
        triggers.into_iter().collect()
    }
}

impl From<Triggers> for Vec<Trigger> {
    fn from(triggers: Triggers) -> Self {
        Triggers::EVERY.into_iter().filter(|trigger| triggers.contains(*trigger)).collect()
    }
}

impl fmt::Debug for Triggers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Self::EVERY.into_iter().filter(|trigger| self.contains(*trigger)))
            .finish()
    }
}

/// A fallback step: a lane and the edits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FallbackStep {
    /// Lane to attempt; need not be a candidate.
    pub lane: LaneId,
    /// Edits in addition to those of the advice.
    pub edits: Vec<Edit>,
}

/// Fallback steps to attempt in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FallbackAdvice {
    /// Events that move the request to the next step.
    pub on: Triggers,
    /// The steps.
    pub steps: Vec<FallbackStep>,
    /// Timeout for the first byte of the response; exceeding it is a
    /// [`Trigger::FirstTokenTimeout`].
    #[serde(rename = "first-token-us", with = "crate::units::maybe_micros")]
    pub first_token: Option<Duration>,
}

/// A change to the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// Set the model name sent to the engine.
    SetModel(String),
    /// Lower the output limit to at most this many tokens.
    CapOutputTokens(u32),
    /// Set a field of the body: JSON Pointer and JSON text.
    SetField(String, String),
    /// Remove a field of the body, by JSON Pointer.
    RemoveField(String),
    /// Insert a system message before all others.
    PrependSystem(String),
    /// Keep the system messages and the last N others.
    KeepLastMessages(u32),
    /// Set a header of the request to the engine.
    SetHeader(String, String),
    /// Remove a header of the request to the engine.
    RemoveHeader(String),
    /// Replace the whole body. Not part of our own contract; used by middleware written for another
    /// router.
    ReplaceBody(String),
}

impl Edit {
    /// Returns the name of the kind of edit, as in the WIT if it has one.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SetModel(_) => "set-model",
            Self::CapOutputTokens(_) => "cap-output-tokens",
            Self::SetField(..) => "set-field",
            Self::RemoveField(_) => "remove-field",
            Self::PrependSystem(_) => "prepend-system",
            Self::KeepLastMessages(_) => "keep-last-messages",
            Self::SetHeader(..) => "set-header",
            Self::RemoveHeader(_) => "remove-header",
            Self::ReplaceBody(_) => "replace-body",
        }
    }
}

/// The value of a note or hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A boolean.
    Flag(bool),
    /// An integer.
    Int(i64),
    /// A string.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Int(int) => int.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A named value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Name; `why` is the one-line reason shown to people.
    pub key: String,
    /// Value.
    pub value: Scalar,
}
