//! Loads of lanes that have ended, with the lanes that were evicted for them: what traces show.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Why a lane was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadCause {
    /// A request waits for the lane.
    Request,
    /// The operator loads or restarts the lane.
    Operator,
    /// The configuration wants the lane to be loaded, always or at start.
    Configuration,
    /// A policy has asked for the lane, or a new configuration loads it again.
    Hint,
}

impl LoadCause {
    /// Returns the name of the cause.
    pub fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Operator => "operator",
            Self::Configuration => "configuration",
            Self::Hint => "hint",
        }
    }
}

/// A lane that has been loaded.
#[derive(Debug, Clone)]
pub struct FinishedSwitch {
    /// Counts the loads of this process, from 1. See [`Lease::switch`](crate::Lease::switch).
    pub number: u64,
    /// The lane.
    pub lane: Arc<str>,
    /// The lanes that were evicted for it.
    pub evicted: Vec<String>,
    /// Why it was loaded.
    pub cause: LoadCause,
    /// True if a request had waited longer than the starvation timeout.
    pub is_overdue: bool,
    /// When the lane served.
    pub ended: SystemTime,
    /// Time from the decision until the last evicted lane had no requests.
    pub drain: Duration,
    /// Time from then until all of them were unloaded.
    pub stop: Duration,
    /// Time from then until the lane served.
    pub load: Duration,
}

type Observe = Box<dyn Fn(FinishedSwitch) + Send + Sync>;

/// Gets the loads of lanes. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SwitchObserver(Arc<OnceLock<Observe>>);

impl fmt::Debug for SwitchObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwitchObserver").finish_non_exhaustive()
    }
}

impl SwitchObserver {
    /// Sets the observer. Only the first call has an effect.
    pub(crate) fn set(&self, observe: impl Fn(FinishedSwitch) + Send + Sync + 'static) {
        // Set once, by the start of the host.
        self.0.set(Box::new(observe)).ok();
    }

    pub(crate) fn ended(&self, switch: FinishedSwitch) {
        if let Some(observe) = self.0.get() {
            observe(switch);
        }
    }
}
