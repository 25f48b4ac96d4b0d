//! Why attempts fail and responses break, and what clients learn of it.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use pointsman_access::Refusal;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::request_flow::{EngineFailure, Event};
use pointsman_domain::{AttemptResult, FailureClass, Trigger};
use pointsman_fleet::EngineError;
use pointsman_openai::{BadRequest, EngineErrorBody};

use crate::error_code::ErrorCode;
use crate::guard_error::GuardError;

/// `Retry-After` when an engine was lost: about the time that a small engine takes to restart.
pub(crate) const RETRY_LOST_ENGINE: Duration = Duration::from_secs(5);

/// Maximum `Retry-After` that the host estimates. Client libraries honour up to 60 s, and retry
/// within seconds if they are told to wait longer.
pub(crate) const MAX_RETRY_ESTIMATE: Duration = Duration::from_secs(60);

/// Returns whole seconds, rounded up so that a client never comes too early.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    // Saturating, because estimates may be `Duration::MAX`.
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// The reason why an attempt failed. Nothing has been sent to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The lane granted no slot.
    #[error(transparent)]
    Acquire(AcquireError),
    /// The attempt would break a guard of the operator, and is not made.
    #[error(transparent)]
    Guard(GuardError),
    /// A proxy sends the request, and cannot send it to this lane, or not any more.
    #[error("the proxy cannot send the request to this lane")]
    NotProxied,
    /// The client has too many requests that wait for a slot.
    #[error("{refusal}")]
    QueueLimit {
        /// The limit.
        refusal: Box<Refusal>,
        /// What this is for the flow of the request: a queue without space.
        denied: AcquireError,
    },
    /// The engine could not be reached, or its response was interrupted.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine returned an error that another lane might not return.
    #[error("engine returned status {}", .status.as_u16())]
    Status {
        status: StatusCode,
        /// The engine's own error. Not part of the error's message, because it may quote the
        /// prompt.
        said: Box<EngineErrorBody>,
        /// `Retry-After` of the engine, in seconds.
        retry_after: Option<u64>,
    },
    /// Another host has had the request before, and has no lane of its own for it.
    #[error("the other host has had the request before (status 508)")]
    LoopDetected {
        /// The other host's own error.
        said: Box<EngineErrorBody>,
    },
    /// The engine, a remote API, limits the rate of the host's requests.
    #[error("engine returned status 429")]
    RateLimited {
        /// The engine's own error.
        said: Box<EngineErrorBody>,
        /// `Retry-After` of the engine, in seconds.
        retry_after: Option<u64>,
        /// The headers about the limits, for the client.
        headers: Box<HeaderMap>,
    },
    /// The engine cannot do what the client asks for, such as reading an image.
    #[error("engine does not support the request (status {})", .status.as_u16())]
    Unsupported {
        status: StatusCode,
        /// The engine's own error.
        said: Box<EngineErrorBody>,
    },
    /// The engine does not have the endpoint, and the request has something that the endpoint which
    /// the engine has cannot express.
    #[error(transparent)]
    Untranslatable(BadRequest),
    /// The engine refused the host's credentials; those of clients are never sent. The engine's
    /// message is left out, because it may quote the key.
    #[error("the engine refused the host's key (status {})", .status.as_u16())]
    KeyRefused { status: StatusCode },
    /// The first event of the engine's stream is an error without a status.
    #[error("engine reported an error as the first event of the stream")]
    ErrorEvent {
        /// The engine's own error, as in [`AttemptError::Status`].
        said: Box<EngineErrorBody>,
    },
    /// The first byte did not arrive within the plan's or the lane's timeout.
    #[error("engine sent no first byte within {} ms", .0.as_millis())]
    FirstByteTimeout(Duration),
}

impl AttemptError {
    /// Returns the event for the flow of the request. `configured` returns the trigger that the
    /// configuration of the lane names for a status.
    pub(crate) fn event(&self, configured: impl Fn(u16) -> Option<Trigger>) -> Event<'_> {
        match self.failure() {
            Ok(EngineFailure::Status(status)) => Event::Failed(match configured(status) {
                Some(trigger) => EngineFailure::Mapped { status, trigger },
                None => EngineFailure::Status(status),
            }),
            Ok(failure) => Event::Failed(failure),
            Err(error) => Event::Denied(error),
        }
    }

    /// Returns how the engine failed, or why the lane granted no slot.
    fn failure(&self) -> Result<EngineFailure, &AcquireError> {
        Ok(match self {
            Self::Acquire(error) | Self::QueueLimit { denied: error, .. } => return Err(error),
            // The next planned step follows.
            Self::Guard(_) | Self::NotProxied => return Err(&AcquireError::UnknownLane),
            Self::Engine(error) => engine_failure(error),
            Self::Status { status, .. } | Self::KeyRefused { status } => {
                EngineFailure::Status(status.as_u16())
            }
            Self::LoopDetected { .. } => EngineFailure::Status(StatusCode::LOOP_DETECTED.as_u16()),
            Self::RateLimited { .. } => {
                EngineFailure::Status(StatusCode::TOO_MANY_REQUESTS.as_u16())
            }
            Self::Unsupported { status, .. } => EngineFailure::Unsupported(status.as_u16()),
            Self::Untranslatable(_) => EngineFailure::Unsupported(400),
            Self::ErrorEvent { .. } => EngineFailure::ErrorEvent,
            Self::FirstByteTimeout(_) => EngineFailure::FirstByteTimeout,
        })
    }

    /// Returns the result of the attempt, for the log.
    pub(crate) fn result(&self) -> AttemptResult {
        self.trigger().map_or(AttemptResult::Other, AttemptResult::from)
    }

    /// Returns the metric label of the attempt's result.
    pub(crate) fn label(&self) -> &'static str {
        match (self, self.trigger()) {
            (Self::Guard(_), _) => "guard",
            (Self::NotProxied, _) => "not-proxied",
            (_, Some(trigger)) => AttemptResult::from(trigger).label(),
            (Self::Unsupported { .. } | Self::Untranslatable(_), None) => "unsupported",
            (_, None) => "closing",
        }
    }

    fn trigger(&self) -> Option<Trigger> {
        match self.failure() {
            Ok(failure) => failure.trigger(),
            Err(error) => FailureClass::from(error).trigger,
        }
    }

    /// Returns the engine's own error, whose message may quote the prompt.
    pub(crate) fn engine_error(&self) -> Option<&EngineErrorBody> {
        match self {
            Self::Status { said, .. }
            | Self::LoopDetected { said }
            | Self::RateLimited { said, .. }
            | Self::Unsupported { said, .. }
            | Self::ErrorEvent { said } => Some(said),
            Self::Acquire(_)
            | Self::Guard(_)
            | Self::NotProxied
            | Self::QueueLimit { .. }
            | Self::Engine(_)
            | Self::Untranslatable(_)
            | Self::KeyRefused { .. }
            | Self::FirstByteTimeout(_) => None,
        }
    }

    /// Returns the engine's own error if its type, parameter and code fit the error that the client
    /// gets: not if the engine takes an error of the client for one of its own.
    pub(crate) fn engine_details(&self) -> Option<&EngineErrorBody> {
        let is_clients = self.code() == ErrorCode::InvalidRequest;
        self.engine_error().filter(|_| !is_clients)
    }

    /// Returns the engine's headers for the client.
    pub(crate) fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Self::RateLimited { headers, .. } => Some(headers),
            Self::Status { .. }
            | Self::LoopDetected { .. }
            | Self::ErrorEvent { .. }
            | Self::Unsupported { .. }
            | Self::Acquire(_)
            | Self::Guard(_)
            | Self::NotProxied
            | Self::QueueLimit { .. }
            | Self::Engine(_)
            | Self::Untranslatable(_)
            | Self::KeyRefused { .. }
            | Self::FirstByteTimeout(_) => None,
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
                | AcquireError::LaneRemoved
                | AcquireError::Paused(_)
                | AcquireError::NotServing { .. }
                | AcquireError::NotLoaded
                | AcquireError::LoadFailed { .. }
                | AcquireError::CircuitOpen { .. } => ErrorCode::NoLaneAvailable,
                AcquireError::Closing => ErrorCode::Stopping,
            },
            Self::Guard(_) => ErrorCode::GuardViolation,
            Self::NotProxied => ErrorCode::NoLaneAvailable,
            Self::QueueLimit { refusal, .. } => ErrorCode::from(&**refusal),
            Self::Engine(error) => engine_code(error),
            Self::LoopDetected { .. } => ErrorCode::LoopDetected,
            Self::Status { status, .. } => {
                let failure = EngineFailure::Status(status.as_u16());
                match failure.trigger() == Some(Trigger::Overloaded) {
                    true => ErrorCode::EngineOverloaded,
                    false => ErrorCode::EngineError,
                }
            }
            Self::RateLimited { .. } => ErrorCode::EngineRateLimited,
            Self::Unsupported { status: StatusCode::NOT_IMPLEMENTED, .. } => {
                ErrorCode::NotSupported
            }
            Self::Unsupported { .. } | Self::Untranslatable(_) => ErrorCode::InvalidRequest,
            Self::KeyRefused { .. } => ErrorCode::EngineKeyRefused,
            Self::ErrorEvent { .. } => ErrorCode::EngineError,
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
                | AcquireError::CircuitOpen { retry_in } => {
                    Some((*retry_in).min(MAX_RETRY_ESTIMATE))
                }
                // It is routed without the lane then.
                AcquireError::LaneRemoved => Some(Duration::from_secs(1)),
                AcquireError::UnknownLane
                | AcquireError::Paused(_)
                | AcquireError::NotLoaded
                | AcquireError::Closing => None,
            },
            Self::QueueLimit { refusal, .. } => refusal.retry_after,
            Self::Status { retry_after, .. } | Self::RateLimited { retry_after, .. } => {
                retry_after.map(Duration::from_secs)
            }
            Self::Engine(_)
            | Self::Guard(_)
            | Self::NotProxied
            | Self::LoopDetected { .. }
            | Self::ErrorEvent { .. }
            | Self::Unsupported { .. }
            | Self::Untranslatable(_)
            | Self::KeyRefused { .. }
            | Self::FirstByteTimeout(_) => None,
        };
        self.code().has_retry_after().then(|| estimate.unwrap_or(RETRY_LOST_ENGINE))
    }
}

/// Returns the code of a response that failed, or was broken off, with this error.
pub(crate) fn engine_code(error: &EngineError) -> ErrorCode {
    match error {
        EngineError::Evicted => ErrorCode::NoLaneAvailable,
        EngineError::Hung => ErrorCode::EngineHung,
        EngineError::IdleTimeout { .. } => ErrorCode::EngineTimeout,
        EngineError::Connect { .. }
        | EngineError::Broken { .. }
        | EngineError::WrongResponse
        | EngineError::Unfinished => ErrorCode::EngineError,
        EngineError::Aborted => ErrorCode::Stopping,
        EngineError::Cancelled => ErrorCode::RequestCancelled,
    }
}

/// Returns how the engine failed.
pub(crate) fn engine_failure(error: &EngineError) -> EngineFailure {
    match error {
        EngineError::Connect(_) => EngineFailure::Connect,
        EngineError::Broken(_) | EngineError::WrongResponse => EngineFailure::Broken,
        EngineError::IdleTimeout(_) => EngineFailure::IdleTimeout,
        EngineError::Unfinished => EngineFailure::Unfinished,
        EngineError::Aborted | EngineError::Cancelled => EngineFailure::Aborted,
        EngineError::Hung => EngineFailure::Hung,
        EngineError::Evicted => EngineFailure::Evicted,
    }
}

/// Returns the name of the error's variant, for the log.
pub(crate) fn cause_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Connect { .. } => "connect",
        EngineError::Broken { .. } => "broken",
        EngineError::WrongResponse => "wrong_response",
        EngineError::IdleTimeout { .. } => "idle_timeout",
        EngineError::Unfinished => "unfinished",
        EngineError::Aborted => "aborted",
        EngineError::Cancelled => "cancelled",
        EngineError::Hung => "hung",
        EngineError::Evicted => "evicted",
    }
}
