//! The kind of an engine, and the state of a lane as policies and operators see it.

use serde::{Deserialize, Serialize};

/// The kind of engine behind a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "names of engines")]
pub enum EngineKind {
    Vllm,
    LlamaCpp,
    /// A server that the host did not start, reached by its URL.
    External,
    #[default]
    Other,
}

/// The state of a lane, as policies and operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneState {
    /// Not loaded. Routing a request to the lane makes the host load it.
    Unloaded,
    /// Loading.
    #[default]
    Starting,
    /// Serving.
    Ready,
    /// Serving, but the circuit breaker is open.
    Degraded,
    /// Being unloaded for another lane. Requests may wait for the lane to be loaded again.
    Draining,
    /// Failed, backing off before the next start, or paused by the operator.
    Down,
}

impl LaneState {
    /// Returns true if a request may wait for a lane in this state.
    pub fn can_serve(self) -> bool {
        self != Self::Down
    }

    /// Returns true if a lane in this state can start a request now.
    pub fn serving(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }

    /// Returns the name used in labels and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}
