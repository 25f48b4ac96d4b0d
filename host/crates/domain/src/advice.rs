//! What a policy may say about a request: the Rust side of the WIT's `advice`.
//!
//! The names and meanings are those of `wit/0.1/types.wit`; the serde forms are the ones used in golden cases.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fleet_view::{LaneId, Permille};

/// What one policy advises for one request. [`Advice::default`] has no opinion on anything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Advice {
    /// Refuse the request.
    pub reject: Option<Rejection>,
    /// Which candidates to take.
    pub lanes: LaneAdvice,
    /// May lanes be loaded or exchanged for this request.
    pub switching: Option<Switching>,
    /// Place in the queue.
    pub queue: Option<QueueAdvice>,
    /// What to do when a try fails.
    pub fallback: Option<FallbackAdvice>,
    /// Changes to the request, in order.
    pub edits: Vec<Edit>,
    /// Explanations; never acted on.
    pub notes: Vec<Note>,
    /// Experimental settings by name.
    pub hints: Vec<Note>,
}

/// Refuse the request with this answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejection {
    /// HTTP status as the policy gave it; see [`Rejection::allowed_status`].
    pub status: u16,
    /// `error.code` of the answer.
    pub code: String,
    /// `error.message` of the answer.
    pub message: String,
    /// `Retry-After`, in seconds.
    pub retry_after_s: Option<u32>,
}

impl Rejection {
    /// The status to answer with: a policy may use 400 to 499 and 503; anything else becomes 403.
    pub fn allowed_status(&self) -> u16 {
        match self.status {
            400..=499 | 503 => self.status,
            _ => 403,
        }
    }
}

/// What a policy thinks of the candidates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneAdvice {
    /// No opinion.
    #[default]
    Any,
    /// Only these will do.
    Only(Vec<LaneId>),
    /// All but these.
    Avoid(Vec<LaneId>),
    /// Scores; lanes not named get 0 and stay allowed.
    Scores(Vec<LaneScore>),
    /// Best first; lanes not named are excluded.
    Ordered(Vec<LaneId>),
    /// The host scores by the weighted mean of these figures.
    Blend(Vec<MetricWeight>),
}

/// Score of one lane; higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneScore {
    /// The lane.
    pub lane: LaneId,
    /// 0 to 1000.
    pub score: Permille,
}

/// A figure the host can score lanes by; scaled over the candidates so that 1000 is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the lane figure of that name")]
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

/// How much a figure counts, -1000 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MetricWeight {
    /// Which figure.
    pub metric: Metric,
    /// Its weight; clamped.
    pub weight: i32,
}

/// What to do when a request has waited for its longest time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// Answer with an error.
    #[default]
    Reject,
    /// Go on to the next fallback step.
    FallBack,
}

/// Place in the host's queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueAdvice {
    /// Higher goes first; 0 is normal.
    pub priority: i32,
    /// Flow for fair sharing; the tenant where `None`.
    pub flow: Option<String>,
    /// Longest wait; the host's limit where `None`.
    #[serde(rename = "max-wait-us", with = "crate::units::maybe_micros")]
    pub max_wait: Option<Duration>,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

/// May the host load or exchange lanes for this request? Ordered from strict to free.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Switching {
    /// Use lanes that are loaded now.
    Never,
    /// Only if no work of another lane is held up by it.
    WhenIdle,
    /// As the host sees fit.
    #[default]
    Allow,
}

/// An event that moves a request on to its next fallback step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Trigger {
    /// Waited for its longest time.
    QueueTimeout = 1 << 0,
    /// No connection to the engine.
    ConnectError = 1 << 1,
    /// The engine answered 429 or 503.
    Overloaded = 1 << 2,
    /// Any other 5xx, or an answer that broke off before its first byte was sent on.
    ServerError = 1 << 3,
    /// The lane's engine is down or restarting.
    EngineRestart = 1 << 4,
    /// The first byte of the answer took too long.
    FirstTokenTimeout = 1 << 5,
}

/// A set of [`Trigger`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Trigger>", into = "Vec<Trigger>")]
pub struct Triggers(u8);

impl Triggers {
    /// No event moves the request on.
    pub const NONE: Self = Self(0);
    /// Every event does.
    pub const ALL: Self = Self(0b11_1111);

    /// Is `trigger` in the set?
    pub fn contains(self, trigger: Trigger) -> bool {
        self.0 & trigger as u8 != 0
    }

    /// The set with `trigger` added.
    #[must_use]
    pub fn with(self, trigger: Trigger) -> Self {
        Self(self.0 | trigger as u8)
    }

    /// All triggers in declaration order.
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

/// One fallback: a lane, and what to change for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FallbackStep {
    /// The lane; need not be a candidate.
    pub lane: LaneId,
    /// Changes beyond the advice's own edits.
    pub edits: Vec<Edit>,
}

/// Fallbacks to try in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FallbackAdvice {
    /// What moves the request on.
    pub on: Triggers,
    /// The steps.
    pub steps: Vec<FallbackStep>,
    /// Time to the first byte that counts as [`Trigger::FirstTokenTimeout`].
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
    /// Put a system message before all others.
    PrependSystem(String),
    /// Keep the system messages and the last N others.
    KeepLastMessages(u32),
    /// Set a header of the request to the engine.
    SetHeader(String, String),
    /// Remove a header of the request to the engine.
    RemoveHeader(String),
    /// Put another body in place of the whole one. Not in our own contract: only a middleware made for another router says
    /// this.
    ReplaceBody(String),
}

impl Edit {
    /// Name of the kind of edit, as in the WIT where it has one.
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
    /// A truth value.
    Flag(bool),
    /// A number.
    Int(i64),
    /// Text.
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

/// One named value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its name; `why` is the one-line reason shown to people.
    pub key: String,
    /// Its value.
    pub value: Scalar,
}
