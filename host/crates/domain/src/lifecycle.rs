//! The life cycle of an engine, as a transition table.
//!
//! ```text
//!           load            answers           drain              stop             exited
//!   Cold ─────────> Starting ───────> Ready <────────> Draining ──────> Stopping ───────> Cold
//!    ▲ │                │               │       keep      │                ▲ │
//!    │ └─ stop: asleep ─┼───────────────┼─────────────────┼────────────────┤ │
//!    │                  ├──── stop ─────┴─────────────────┼────────────────┘ │
//!    │                  │ lost                            │ lost             │ lost
//!    │    retry         ▼                                 │                  │
//!    ├──────────── BackingOff <───────────────────────────┴──────────────────┘
//!    │                  │ give up
//!    │    retry         ▼
//!    └────────────── Failed
//! ```

use crate::fleet_view::LaneState;

/// The state of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineState {
    /// No process, or a process that sleeps with its memory released.
    #[default]
    Cold,
    /// Being started or woken; not serving yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing its work before being stopped; takes no new requests.
    Draining,
    /// Being stopped; its processes and memory may still exist.
    Stopping,
    /// Exited unexpectedly or never became ready; waits before the next start.
    BackingOff,
    /// Failed to become ready several times in a row; retried at long intervals only.
    Failed,
}

/// A transition of an engine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineTransition {
    /// The engine is to be started.
    Load,
    /// The engine responded to its readiness probe.
    BecameReady,
    /// The engine takes no new requests.
    Drain,
    /// Draining was cancelled: the engine takes requests again.
    Keep,
    /// The engine is to be stopped.
    Stop,
    /// All processes of the engine are gone, as requested.
    Exited,
    /// All processes of the engine are gone without having been stopped, or the engine never became
    /// ready and was killed.
    Lost,
    /// The engine failed too often.
    GiveUp,
    /// The backoff after a failure is over: the engine can be loaded again.
    Retry,
}

impl EngineState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Cold,
        Self::Starting,
        Self::Ready,
        Self::Draining,
        Self::Stopping,
        Self::BackingOff,
        Self::Failed,
    ];

    /// Returns the next state; `None` if the transition is not allowed in this state.
    #[must_use]
    pub fn on(self, event: EngineTransition) -> Option<Self> {
        use EngineTransition::{BecameReady, Drain, Exited, GiveUp, Keep, Load, Lost, Retry, Stop};
        match (self, event) {
            (Self::Cold, Load) => Some(Self::Starting),
            (Self::Starting, BecameReady) | (Self::Draining, Keep) => Some(Self::Ready),
            (Self::Ready, Drain) => Some(Self::Draining),
            // A sleeping engine is `Cold`, too, and can be stopped.
            (Self::Cold | Self::Starting | Self::Ready | Self::Draining, Stop) => {
                Some(Self::Stopping)
            }
            (Self::Starting | Self::Ready | Self::Draining | Self::Stopping, Lost) => {
                Some(Self::BackingOff)
            }
            (Self::Stopping, Exited) | (Self::BackingOff | Self::Failed, Retry) => Some(Self::Cold),
            (Self::BackingOff, GiveUp) => Some(Self::Failed),
            _ => None,
        }
    }

    /// Returns true if the engine may hold the memory of its model.
    pub fn holds_memory(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Draining | Self::Stopping)
    }

    /// Returns the state of the engine's lane.
    pub fn lane_state(self) -> LaneState {
        match self {
            Self::Cold => LaneState::Unloaded,
            Self::Starting => LaneState::Starting,
            Self::Ready => LaneState::Ready,
            Self::Draining | Self::Stopping => LaneState::Draining,
            Self::BackingOff | Self::Failed => LaneState::Down,
        }
    }

    /// Returns the name used in labels and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::BackingOff => "backing-off",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EngineState::{self, BackingOff, Cold, Failed, Ready, Starting, Stopping};
    use super::EngineTransition::{
        BecameReady, Drain, Exited, GiveUp, Keep, Load, Lost, Retry, Stop,
    };

    #[test]
    fn allowed_transitions_lead_to_the_expected_state() {
        for (events, end) in [
            (vec![Load, BecameReady], Ready),
            (vec![Load, BecameReady, Drain, Stop, Exited], Cold),
            (vec![Load, BecameReady, Drain, Keep], Ready),
            (vec![Load, Lost, Retry, Load, BecameReady], Ready),
            (vec![Load, BecameReady, Lost, Retry], Cold),
            (vec![Load, BecameReady, Stop, Lost], BackingOff),
            (vec![Load, Stop, Exited, Load], Starting),
            (vec![Load, BecameReady, Lost], BackingOff),
            (vec![Load, BecameReady, Drain, Lost], BackingOff),
            (vec![Load, Lost, GiveUp], Failed),
            (vec![Load, Lost, GiveUp, Retry, Load], Starting),
            (vec![Load, Stop], Stopping),
        ] {
            let state = events.iter().try_fold(Cold, |state, event| state.on(*event));
            assert_eq!(state, Some(end), "{events:?}");
        }
    }

    #[test]
    fn invalid_transitions_are_rejected() {
        for (state, event) in [
            (Cold, BecameReady),
            (Cold, Drain),
            (Stopping, BecameReady),
            (Stopping, Keep),
            (Stopping, Load),
            (Ready, Load),
            (Starting, Drain),
            (BackingOff, BecameReady),
            (BackingOff, Load),
            (Ready, Exited),
            (Cold, Lost),
        ] {
            assert_eq!(EngineState::on(state, event), None, "{event:?} while {state:?}");
        }
    }

    #[test]
    fn memory_is_held_from_start_to_exit() {
        let holding: Vec<&str> = EngineState::ALL
            .iter()
            .filter(|state| state.holds_memory())
            .map(|state| state.label())
            .collect();
        assert_eq!(holding, ["starting", "ready", "draining", "stopping"]);
    }
}
