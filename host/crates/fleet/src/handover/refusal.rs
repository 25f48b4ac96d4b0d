//! The reason why a request got no slot, as hosts tell each other.

use std::time::Duration;

use pointsman_domain::LaneState;
use pointsman_domain::dispatch::{AcquireError, LaneMode, Problem};
use serde::{Deserialize, Serialize};

/// The reason why a request got no slot: [`AcquireError`] with times in milliseconds, and problems
/// of engines as clients see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
#[expect(missing_docs, reason = "as those of `AcquireError`")]
pub enum Refusal {
    UnknownLane,
    LaneRemoved,
    Paused { held: bool },
    NotServing { state: LaneState, reason: Option<String>, retry_ms: u64 },
    NotLoaded,
    LoadFailed { reason: String, retry_ms: u64 },
    CircuitOpen { retry_ms: u64 },
    QueueFull { queued: usize, retry_ms: u64 },
    DeadlineTooEarly { estimate_ms: u64 },
    TimedOut { state: LaneState, waited_ms: u64, retry_ms: u64 },
    Closing,
}

impl From<AcquireError> for Refusal {
    fn from(error: AcquireError) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match error {
            AcquireError::UnknownLane => Self::UnknownLane,
            AcquireError::LaneRemoved => Self::LaneRemoved,
            AcquireError::Paused(mode) => Self::Paused { held: mode == LaneMode::Held },
            AcquireError::NotServing { state, reason, retry_in } => {
                let reason = reason.map(|problem| problem.for_clients());
                Self::NotServing { state, reason, retry_ms: ms(retry_in) }
            }
            AcquireError::NotLoaded => Self::NotLoaded,
            AcquireError::LoadFailed { reason, retry_in } => {
                Self::LoadFailed { reason: reason.for_clients(), retry_ms: ms(retry_in) }
            }
            AcquireError::CircuitOpen { retry_in } => Self::CircuitOpen { retry_ms: ms(retry_in) },
            AcquireError::QueueFull { queued, retry_in } => {
                Self::QueueFull { queued, retry_ms: ms(retry_in) }
            }
            AcquireError::DeadlineTooEarly { estimate } => {
                Self::DeadlineTooEarly { estimate_ms: ms(estimate) }
            }
            AcquireError::TimedOut { state, waited, retry_in } => {
                Self::TimedOut { state, waited_ms: ms(waited), retry_ms: ms(retry_in) }
            }
            AcquireError::Closing => Self::Closing,
        }
    }
}

impl From<Refusal> for AcquireError {
    fn from(refusal: Refusal) -> Self {
        let time = Duration::from_millis;
        let problem = |text: String| Problem::from(text.as_str());
        match refusal {
            Refusal::UnknownLane => Self::UnknownLane,
            Refusal::LaneRemoved => Self::LaneRemoved,
            Refusal::Paused { held: true } => Self::Paused(LaneMode::Held),
            Refusal::Paused { held: false } => Self::Paused(LaneMode::Draining),
            Refusal::NotServing { state, reason, retry_ms } => {
                Self::NotServing { state, reason: reason.map(problem), retry_in: time(retry_ms) }
            }
            Refusal::NotLoaded => Self::NotLoaded,
            Refusal::LoadFailed { reason, retry_ms } => {
                Self::LoadFailed { reason: problem(reason), retry_in: time(retry_ms) }
            }
            Refusal::CircuitOpen { retry_ms } => Self::CircuitOpen { retry_in: time(retry_ms) },
            Refusal::QueueFull { queued, retry_ms } => {
                Self::QueueFull { queued, retry_in: time(retry_ms) }
            }
            Refusal::DeadlineTooEarly { estimate_ms } => {
                Self::DeadlineTooEarly { estimate: time(estimate_ms) }
            }
            Refusal::TimedOut { state, waited_ms, retry_ms } => {
                Self::TimedOut { state, waited: time(waited_ms), retry_in: time(retry_ms) }
            }
            Refusal::Closing => Self::Closing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_as_they_were_written() {
        let time = Duration::from_millis(1500);
        let state = LaneState::Down;
        let reason = Problem::from("the engine ended [oom]");
        let errors = [
            AcquireError::UnknownLane,
            AcquireError::LaneRemoved,
            AcquireError::Paused(LaneMode::Held),
            AcquireError::Paused(LaneMode::Draining),
            AcquireError::NotServing { state, reason: Some(reason.clone()), retry_in: time },
            AcquireError::NotLoaded,
            AcquireError::LoadFailed { reason, retry_in: time },
            AcquireError::CircuitOpen { retry_in: time },
            AcquireError::QueueFull { queued: 3, retry_in: time },
            AcquireError::DeadlineTooEarly { estimate: time },
            AcquireError::TimedOut { state, waited: time, retry_in: time },
            AcquireError::Closing,
        ];
        for error in errors {
            let text = serde_json::to_string(&Refusal::from(error.clone())).unwrap();
            let read: Refusal = serde_json::from_str(&text).unwrap();
            assert_eq!(AcquireError::from(read), error);
        }
    }
}
