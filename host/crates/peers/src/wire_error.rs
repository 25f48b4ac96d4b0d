//! Why a stream cannot be read any further.

use crate::limits::VERSION;

/// A stream that this host does not understand. The connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The host speaks another version of the format.
    #[error("the host speaks version {0} of the fleet's events; expected {VERSION}")]
    Version(u32),
    /// An event is not valid.
    #[error("invalid event `{event}`")]
    Invalid {
        /// The name of the event.
        event: &'static str,
    },
    /// A line, an event, a text or a list exceeds its maximum.
    #[error("an event exceeds the limits of its size")]
    TooLarge,
}

impl WireError {
    /// Returns the stable code of the error.
    pub fn code(self) -> &'static str {
        match self {
            Self::Version(_) => "peer_version",
            Self::Invalid { .. } => "peer_invalid_event",
            Self::TooLarge => "peer_event_too_large",
        }
    }
}
