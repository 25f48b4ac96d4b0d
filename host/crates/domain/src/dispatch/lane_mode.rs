//! Commands of operators for lanes, and the modes that lanes are in for them: see
//! `dispatch/manual.rs`.

/// A command of an operator for a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneCommand {
    /// Make the lane serve: ends a hold and a drain, and loads its engine.
    Load,
    /// Finish the running requests, and stop the engine.
    Unload {
        /// Keep the lane unloaded until it is loaded by hand.
        hold: bool,
    },
    /// Dispatch no more requests to the lane; its engine stays.
    Drain,
    /// End a drain.
    Resume,
    /// Finish the running requests, stop the engine and load it again.
    Restart,
}

impl LaneCommand {
    /// Returns the name used in paths, logs and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Unload { hold: false } => "unload",
            Self::Unload { hold: true } => "hold",
            Self::Drain => "drain",
            Self::Resume => "resume",
            Self::Restart => "restart",
        }
    }
}

/// What remains of a command of an operator: its state lasts until this is done or revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneMode {
    /// The lane is being loaded, or waits for memory.
    Loading,
    /// The engine is unloaded once its requests have finished.
    Unloading,
    /// The lane is unloaded, or about to be, and stays so.
    Held,
    /// The lane gets no requests.
    Draining,
    /// The engine is replaced once its requests have finished.
    Restarting,
}

impl LaneMode {
    /// All modes.
    pub const ALL: [Self; 5] =
        [Self::Loading, Self::Unloading, Self::Held, Self::Draining, Self::Restarting];

    /// Returns the name used in labels and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Unloading => "unloading",
            Self::Held => "held",
            Self::Draining => "draining",
            Self::Restarting => "restarting",
        }
    }

    /// Returns true if a lane in this mode gets no requests.
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Held | Self::Draining)
    }
}

/// Why a command was not carried out. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneCommandError {
    /// The lane does not exist, or the operator has removed it.
    #[error("unknown lane")]
    UnknownLane,
    /// The engine is an external one.
    #[error("the host does not run the engine of this lane; drain it instead")]
    NotManaged,
    /// The lane is held, and has no requests.
    #[error("the lane is held; load it first")]
    Held,
    /// The lane is not draining.
    #[error("the lane is not draining")]
    NotDraining,
    /// The host is stopping.
    #[error("the host is stopping")]
    Closing,
}
