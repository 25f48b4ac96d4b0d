//! The state of vLLM's sleep mode.

/// The state of the sleep mode.
#[derive(Debug, Default)]
pub(super) struct SleepState {
    /// The level, while the engine sleeps.
    pub(super) level: Option<u8>,
    pub(super) weights_offloaded: bool,
    pub(super) cache_offloaded: bool,
    /// The weights were discarded and have not been loaded again.
    pub(super) lost: bool,
    pub(super) garbage: bool,
}

impl SleepState {
    /// Returns true if the engine generates wrong output.
    pub(super) fn has_wrong_output(&self) -> bool {
        self.garbage || self.lost
    }
}
