//! How engines fail requests, and what each failure means.

use crate::advice::Trigger;
use crate::attempts::FailureClass;
use crate::outcome::AttemptResult;

const PAYMENT_REQUIRED: u16 = 402;
const TOO_MANY_REQUESTS: u16 = 429;
const SERVICE_UNAVAILABLE: u16 = 503;

/// How an engine failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFailure {
    /// No connection could be made, so that the engine did not get the request.
    Connect,
    /// The connection broke.
    Broken,
    /// No data arrived for too long.
    IdleTimeout,
    /// The first byte did not arrive in time.
    FirstByteTimeout,
    /// The engine returned a status that another lane might not return.
    Status(u16),
    /// The engine returned a status for which the lane's configuration names a trigger, and which
    /// is not for the client.
    Mapped {
        /// HTTP status of the response.
        status: u16,
        /// The configured trigger.
        trigger: Trigger,
    },
    /// The engine returned an error that is the client's, unless another lane serves the request.
    /// The response is kept until that is known.
    Declined {
        /// HTTP status of the response.
        status: u16,
        /// Why another lane may serve the request.
        reason: Declined,
    },
    /// The engine reported with this status that it cannot do what the client asks for.
    Unsupported(u16),
    /// The host took the engine for hung, and ended it.
    Hung,
    /// The stream ended without its end marker.
    Unfinished,
    /// The engine reported an error in the middle of the stream.
    ErrorEvent,
    /// The client was promised a stream, and the response is something else.
    NotAStream,
    /// The host aborted the response because the lane has to make room for another one.
    Evicted,
    /// The host aborted the response because it is stopping.
    Aborted,
}

/// Why another lane may serve a request that an engine declined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declined {
    /// The lane's configuration names this trigger for the status.
    Configured(Trigger),
    /// The request exceeds the context of the engine.
    TooLong {
        /// The engine's maximum sequence length; 0 if the engine did not say it.
        max_context: u32,
    },
}

impl EngineFailure {
    /// Returns true if the status means that another lane, or the same one a moment later, may
    /// accept the request. Such a response is a failed attempt and is not passed on. That includes
    /// statuses that no server of an API should return: redirections, unfinished handshakes, and
    /// those that HTTP does not define.
    pub fn is_failed_status(status: u16) -> bool {
        status == TOO_MANY_REQUESTS || !matches!(status, 200..300 | 400..500)
    }

    /// Returns the trigger for the plan's fallback; `None` if no other lane can help.
    pub fn trigger(self) -> Option<Trigger> {
        match self {
            Self::Connect => Some(Trigger::ConnectError),
            Self::Evicted | Self::Hung => Some(Trigger::EngineRestart),
            Self::FirstByteTimeout => Some(Trigger::FirstTokenTimeout),
            Self::Status(TOO_MANY_REQUESTS | SERVICE_UNAVAILABLE) => Some(Trigger::Overloaded),
            Self::Mapped { trigger, .. }
            | Self::Declined { reason: Declined::Configured(trigger), .. } => Some(trigger),
            Self::Unsupported(_) | Self::Declined { reason: Declined::TooLong { .. }, .. } => None,
            Self::Status(_)
            | Self::Broken
            | Self::IdleTimeout
            | Self::Unfinished
            | Self::ErrorEvent
            | Self::NotAStream
            | Self::Aborted => Some(Trigger::ServerError),
        }
    }

    /// Returns the result of the attempt. What the host aborts to stop is not the engine's failure.
    pub fn result(self) -> AttemptResult {
        match self {
            Self::Aborted => AttemptResult::Other,
            Self::Connect
            | Self::Broken
            | Self::IdleTimeout
            | Self::FirstByteTimeout
            | Self::Status(_)
            | Self::Mapped { .. }
            | Self::Declined { .. }
            | Self::Unsupported(_)
            | Self::Unfinished
            | Self::ErrorEvent
            | Self::NotAStream
            | Self::Hung
            | Self::Evicted => self.trigger().map_or(AttemptResult::Other, AttemptResult::from),
        }
    }

    /// Returns true if the failure counts against the lane. An engine that is overloaded works as
    /// intended, and so does one whose response the host aborted, or that cannot do what a client
    /// asks for. A client can provoke most statuses from 400 to 499, so they do not count, but for
    /// 402: the account is the host's.
    pub fn blames_engine(self) -> bool {
        match self {
            Self::Evicted | Self::Aborted | Self::NotAStream | Self::Unsupported(_) => false,
            Self::Status(status) => status != TOO_MANY_REQUESTS,
            Self::Mapped { status, trigger } => {
                status != TOO_MANY_REQUESTS && trigger != Trigger::Overloaded
            }
            Self::Declined { status, .. } => status == PAYMENT_REQUIRED,
            Self::Connect
            | Self::Broken
            | Self::IdleTimeout
            | Self::FirstByteTimeout
            | Self::Unfinished
            | Self::Hung
            | Self::ErrorEvent => true,
        }
    }

    /// Returns true if the connection is gone, and perhaps the engine with it.
    pub fn is_severed(self) -> bool {
        matches!(self, Self::Connect | Self::Broken | Self::Hung)
    }

    /// Returns the HTTP status of the engine's response; 0 if there was none.
    pub fn status(self) -> u16 {
        match self {
            Self::Status(status)
            | Self::Unsupported(status)
            | Self::Mapped { status, .. }
            | Self::Declined { status, .. } => status,
            Self::Connect
            | Self::Broken
            | Self::IdleTimeout
            | Self::FirstByteTimeout
            | Self::Unfinished
            | Self::ErrorEvent
            | Self::NotAStream
            | Self::Hung
            | Self::Evicted
            | Self::Aborted => 0,
        }
    }

    /// Returns what the choice of the next attempt depends on.
    pub fn class(self) -> FailureClass {
        let exceeded_context =
            if let Self::Declined { reason: Declined::TooLong { max_context }, .. } = self {
                Some(max_context)
            } else {
                None
            };
        let safe_to_resend = matches!(self, Self::Connect);
        FailureClass { trigger: self.trigger(), safe_to_resend, exceeded_context }
    }
}
