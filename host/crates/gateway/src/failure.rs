//! Why attempts fail and responses break, and what clients learn of it.

use std::time::Duration;

use http::StatusCode;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::request_flow::{EngineFailure, Event};
use pointsman_domain::{AttemptResult, FailureClass, Trigger};
use pointsman_fleet::EngineError;

use crate::error_code::ErrorCode;

/// `Retry-After` when an engine was lost: about the time that a small engine takes to restart.
pub(crate) const RETRY_LOST_ENGINE: Duration = Duration::from_secs(5);

/// The reason why an attempt failed. Nothing has been sent to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The lane granted no slot.
    #[error(transparent)]
    Acquire(AcquireError),
    /// The engine could not be reached, or its response was interrupted.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine returned an error that another lane might not return.
    #[error("engine returned status {}", .status.as_u16())]
    Status {
        status: StatusCode,
        /// The engine's own message. Not part of the error's message, because it may quote the
        /// prompt.
        message: Option<String>,
        /// `Retry-After` of the engine, in seconds.
        retry_after: Option<u64>,
    },
    /// The first byte did not arrive within the plan's or the lane's timeout.
    #[error("engine sent no first byte within {} ms", .0.as_millis())]
    FirstByteTimeout(Duration),
}

impl AttemptError {
    /// Returns the event for the flow of the request.
    pub(crate) fn event(&self) -> Event<'_> {
        match self {
            Self::Acquire(error) => Event::Denied(error),
            Self::Engine(error) => Event::Failed(engine_failure(error)),
            Self::Status { status, .. } => Event::Failed(EngineFailure::Status(status.as_u16())),
            Self::FirstByteTimeout(_) => Event::Failed(EngineFailure::FirstByteTimeout),
        }
    }

    /// Returns the result of the attempt, for the log.
    pub(crate) fn result(&self) -> AttemptResult {
        self.trigger().map_or(AttemptResult::Other, AttemptResult::from)
    }

    /// Returns the metric label of the attempt's result.
    pub(crate) fn label(&self) -> &'static str {
        self.trigger().map_or("closing", |trigger| AttemptResult::from(trigger).label())
    }

    fn trigger(&self) -> Option<Trigger> {
        match self {
            Self::Acquire(error) => FailureClass::from(error).trigger,
            Self::Engine(error) => Some(engine_failure(error).trigger()),
            Self::Status { status, .. } => Some(EngineFailure::Status(status.as_u16()).trigger()),
            Self::FirstByteTimeout(_) => Some(EngineFailure::FirstByteTimeout.trigger()),
        }
    }

    /// Returns the code for the client, if this was the last attempt.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Acquire(error) => match error {
                AcquireError::QueueFull { .. } => ErrorCode::QueueFull,
                AcquireError::TimedOut { .. } | AcquireError::DeadlineTooEarly { .. } => {
                    ErrorCode::QueueTimeout
                }
                AcquireError::UnknownLane
                | AcquireError::NotServing { .. }
                | AcquireError::NotLoaded
                | AcquireError::LoadFailed { .. }
                | AcquireError::CircuitOpen { .. }
                | AcquireError::Closing => ErrorCode::NoLaneAvailable,
            },
            Self::Engine(error) => match error {
                EngineError::Evicted => ErrorCode::NoLaneAvailable,
                EngineError::IdleTimeout { .. } => ErrorCode::EngineTimeout,
                EngineError::Connect { .. }
                | EngineError::Broken { .. }
                | EngineError::Unfinished
                | EngineError::Aborted => ErrorCode::EngineError,
            },
            Self::Status { status, .. } => {
                let is_overloaded =
                    EngineFailure::Status(status.as_u16()).trigger() == Trigger::Overloaded;
                if is_overloaded { ErrorCode::EngineOverloaded } else { ErrorCode::EngineError }
            }
            Self::FirstByteTimeout(_) => ErrorCode::EngineTimeout,
        }
    }

    /// Returns when the client should retry; `None` if its code has no `Retry-After`.
    pub(crate) fn retry_in(&self) -> Option<Duration> {
        let estimate = match self {
            Self::Acquire(error) => match error {
                AcquireError::QueueFull { retry_in, .. }
                | AcquireError::TimedOut { retry_in, .. }
                | AcquireError::DeadlineTooEarly { estimate: retry_in }
                | AcquireError::NotServing { retry_in, .. }
                | AcquireError::LoadFailed { retry_in, .. }
                | AcquireError::CircuitOpen { retry_in } => Some(*retry_in),
                AcquireError::UnknownLane | AcquireError::NotLoaded | AcquireError::Closing => None,
            },
            Self::Status { retry_after, .. } => retry_after.map(Duration::from_secs),
            Self::Engine(_) | Self::FirstByteTimeout(_) => None,
        };
        self.code().has_retry_after().then(|| estimate.unwrap_or(RETRY_LOST_ENGINE))
    }
}

/// Returns how the engine failed.
pub(crate) fn engine_failure(error: &EngineError) -> EngineFailure {
    match error {
        EngineError::Connect(_) => EngineFailure::Connect,
        EngineError::Broken(_) => EngineFailure::Broken,
        EngineError::IdleTimeout(_) => EngineFailure::IdleTimeout,
        EngineError::Unfinished => EngineFailure::Unfinished,
        EngineError::Aborted => EngineFailure::Aborted,
        EngineError::Evicted => EngineFailure::Evicted,
    }
}

/// Returns the name of the error's variant, for the log.
pub(crate) fn cause_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Connect { .. } => "connect",
        EngineError::Broken { .. } => "broken",
        EngineError::IdleTimeout { .. } => "idle_timeout",
        EngineError::Unfinished => "unfinished",
        EngineError::Aborted => "aborted",
        EngineError::Evicted => "evicted",
    }
}
