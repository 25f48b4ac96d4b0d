//! Why a guard of the operator refuses a request or an attempt.

/// A rule of a guard that a request cannot obey, or that an attempt would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuardError {
    #[error("guard `{guard}` leaves no lane for this request")]
    NoLane { guard: String },
    #[error("guard `{guard}` does not allow lane `{lane}` for this request")]
    Lane { guard: String, lane: String },
    #[error("guard `{guard}` does not allow another model than `{}`", .model.escape_debug())]
    Model { guard: String, model: String },
    #[error("guard `{guard}` allows at most {max} output tokens: the request cannot be limited")]
    Output { guard: String, max: u32 },
}

impl GuardError {
    /// Returns the name of the guard.
    pub(crate) fn guard(&self) -> &str {
        match self {
            Self::NoLane { guard }
            | Self::Lane { guard, .. }
            | Self::Model { guard, .. }
            | Self::Output { guard, .. } => guard,
        }
    }
}
