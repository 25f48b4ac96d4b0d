//! The life of an engine that the host starts, as a transition table.
//!
//! ```text
//!            start            answers            stop
//!   Cold ──────────> Starting ───────> Ready ───────────> Stopping ──exited──> Cold
//!                      │  │              │                   ▲
//!                      │  └── stop ──────┼───────────────────┘
//!                      │ exited,         │ exited
//!                      │ too slow        │
//!                      ▼                 ▼
//!                  BackingOff <──────────┘
//!                      │  └── stop ──> Cold
//!                      └── retry ──> Starting
//! ```

use crate::fleet_view::LaneState;

/// Where an engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineState {
    /// No process.
    Cold,
    /// The process runs and does not serve yet.
    Starting,
    /// Serving.
    Ready,
    /// Asked to end; its processes may still be there.
    Stopping,
    /// Ended without being asked to, or never got ready; waits before the next start.
    BackingOff,
}

/// What happens to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineEvent {
    /// Its process was started.
    Started,
    /// It answered its ready probe.
    Answers,
    /// All its processes are gone, or it did not get ready in time and was killed.
    Exited,
    /// The host wants it gone.
    Stop,
    /// The pause after a failure is over.
    Retry,
}

impl EngineState {
    /// The next state; `None` where the event makes no sense in this one.
    #[must_use]
    pub fn on(self, event: EngineEvent) -> Option<Self> {
        use EngineEvent::{Answers, Exited, Retry, Started, Stop};
        match (self, event) {
            (Self::Cold, Started) | (Self::BackingOff, Retry) => Some(Self::Starting),
            (Self::Starting, Answers) => Some(Self::Ready),
            (Self::Starting | Self::Ready, Exited) => Some(Self::BackingOff),
            (Self::Starting | Self::Ready, Stop) => Some(Self::Stopping),
            (Self::Stopping, Exited) | (Self::Cold | Self::BackingOff, Stop) => Some(Self::Cold),
            (Self::Stopping, Stop) => Some(Self::Stopping),
            _ => None,
        }
    }

    /// What this means for the engine's lane.
    pub fn lane_state(self) -> LaneState {
        match self {
            Self::Cold => LaneState::Unloaded,
            Self::Starting => LaneState::Starting,
            Self::Ready => LaneState::Ready,
            Self::Stopping => LaneState::Draining,
            Self::BackingOff => LaneState::Down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EngineEvent::{Answers, Exited, Retry, Started, Stop};
    use super::EngineState::{self, BackingOff, Cold, Ready, Starting, Stopping};

    #[test]
    fn every_path_through_a_life_is_in_the_table() {
        for (events, end) in [
            (vec![Started, Answers], Ready),
            (vec![Started, Answers, Stop, Exited], Cold),
            (vec![Started, Exited, Retry, Answers], Ready),
            (vec![Started, Answers, Exited, Stop], Cold),
            (vec![Started, Stop, Stop, Exited, Started], Starting),
            (vec![Started, Answers, Exited], BackingOff),
            (vec![Started, Stop], Stopping),
        ] {
            let state = events.iter().try_fold(Cold, |state, event| state.on(*event));
            assert_eq!(state, Some(end), "{events:?}");
        }
    }

    #[test]
    fn events_out_of_place_are_refused() {
        for (state, event) in [(Cold, Answers), (Stopping, Answers), (Ready, Started), (BackingOff, Answers)]
        {
            assert_eq!(EngineState::on(state, event), None, "{event:?} while {state:?}");
        }
    }
}
