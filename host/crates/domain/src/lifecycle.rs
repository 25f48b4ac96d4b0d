//! The life of an engine, as a transition table.
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

/// Where an engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineState {
    /// No process, or one that sleeps without its memory.
    #[default]
    Cold,
    /// Being started or woken; does not serve yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing its work before it is stopped; takes nothing new.
    Draining,
    /// Asked to end; its processes and its memory may still be there.
    Stopping,
    /// Ended without being asked to, or never got ready; waits before the next start.
    BackingOff,
    /// Did not get ready several times in a row; tried again at long intervals only.
    Failed,
}

/// What happens to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineTransition {
    /// It is to be started.
    Load,
    /// It answered its ready probe.
    Answers,
    /// It is to take nothing new.
    Drain,
    /// It may take requests again after all.
    Keep,
    /// It is to end.
    Stop,
    /// All its processes are gone, as was asked for.
    Exited,
    /// All its processes are gone, and nobody had asked for that; or it never got ready and was killed.
    Lost,
    /// It failed too often.
    GiveUp,
    /// The pause after a failure is over: it can be loaded again.
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

    /// The next state; `None` where the event makes no sense in this one.
    #[must_use]
    pub fn on(self, event: EngineTransition) -> Option<Self> {
        use EngineTransition::{Answers, Drain, Exited, GiveUp, Keep, Load, Lost, Retry, Stop};
        match (self, event) {
            (Self::Cold, Load) => Some(Self::Starting),
            (Self::Starting, Answers) | (Self::Draining, Keep) => Some(Self::Ready),
            (Self::Ready, Drain) => Some(Self::Draining),
            // Cold is an engine, too, that sleeps.
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

    /// Does it hold the memory of its model, or may it?
    pub fn holds_memory(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Draining | Self::Stopping)
    }

    /// What this means for the engine's lane.
    pub fn lane_state(self) -> LaneState {
        match self {
            Self::Cold => LaneState::Unloaded,
            Self::Starting => LaneState::Starting,
            Self::Ready => LaneState::Ready,
            Self::Draining | Self::Stopping => LaneState::Draining,
            Self::BackingOff | Self::Failed => LaneState::Down,
        }
    }

    /// Name, for labels and messages.
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
    use super::EngineTransition::{Answers, Drain, Exited, GiveUp, Keep, Load, Lost, Retry, Stop};

    #[test]
    fn every_path_through_a_life_is_in_the_table() {
        for (events, end) in [
            (vec![Load, Answers], Ready),
            (vec![Load, Answers, Drain, Stop, Exited], Cold),
            (vec![Load, Answers, Drain, Keep], Ready),
            (vec![Load, Lost, Retry, Load, Answers], Ready),
            (vec![Load, Answers, Lost, Retry], Cold),
            (vec![Load, Answers, Stop, Lost], BackingOff),
            (vec![Load, Stop, Exited, Load], Starting),
            (vec![Load, Answers, Lost], BackingOff),
            (vec![Load, Answers, Drain, Lost], BackingOff),
            (vec![Load, Lost, GiveUp], Failed),
            (vec![Load, Lost, GiveUp, Retry, Load], Starting),
            (vec![Load, Stop], Stopping),
        ] {
            let state = events.iter().try_fold(Cold, |state, event| state.on(*event));
            assert_eq!(state, Some(end), "{events:?}");
        }
    }

    #[test]
    fn events_out_of_place_are_refused() {
        for (state, event) in [
            (Cold, Answers),
            (Cold, Drain),
            (Stopping, Answers),
            (Stopping, Keep),
            (Stopping, Load),
            (Ready, Load),
            (Starting, Drain),
            (BackingOff, Answers),
            (BackingOff, Load),
            (Ready, Exited),
            (Cold, Lost),
        ] {
            assert_eq!(EngineState::on(state, event), None, "{event:?} while {state:?}");
        }
    }

    #[test]
    fn memory_is_held_from_the_start_to_the_end() {
        let holding: Vec<&str> = EngineState::ALL
            .iter()
            .filter(|state| state.holds_memory())
            .map(|state| state.label())
            .collect();
        assert_eq!(holding, ["starting", "ready", "draining", "stopping"]);
    }
}
