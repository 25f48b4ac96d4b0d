//! The trace of one policy call.

use std::time::Duration;

use pointsman_domain::{Read, Trace};

use crate::contract::host_call_log::HostCallLog;
use crate::contract::host_call_mode::HostCallMode;
use crate::contract::host_state::TimeUsed;
use crate::contract::replay_log::ReplayLog;

/// The trace of one policy call: the mode of its host calls with what it logged, and the duration.
#[derive(Debug, Default)]
pub(crate) struct CallTrace {
    pub(crate) host_calls: HostCallMode,
    /// Wall clock time, or the time that the consumed fuel stands for.
    pub(crate) duration: Duration,
    /// CPU time, if the call took longer than [`MIN_MEASURED`]; otherwise the duration.
    pub(crate) cpu_time: Duration,
}

/// Durations up to this one are taken as CPU time, which spares most calls a system call.
const MIN_MEASURED: Duration = Duration::from_micros(200);

impl CallTrace {
    /// Sets the times of a call that ended on this thread.
    pub(crate) fn set_wall(&mut self, duration: Duration, used: &TimeUsed) {
        let measured = used.deadline.filter(|_| duration > MIN_MEASURED);
        self.duration = duration;
        self.cpu_time = measured.map_or(duration, |deadline| deadline.cpu_used().min(duration));
    }

    /// Sets the times to the one that the consumed fuel stands for.
    pub(crate) fn set_metered(&mut self, duration: Duration) {
        (self.duration, self.cpu_time) = (duration, duration);
    }

    /// Creates a trace that logs host calls if the decision is recorded with them.
    pub(crate) fn for_decision(trace: &Trace) -> Self {
        let host_calls = if trace.has_reads() {
            HostCallMode::Record(HostCallLog::default())
        } else {
            HostCallMode::Live
        };
        Self { host_calls, ..Self::default() }
    }

    /// Creates a trace that answers host calls from a record.
    pub(crate) fn replaying(record: &[Read]) -> Self {
        let host_calls = HostCallMode::Replay(Box::new(ReplayLog::new(record)));
        Self { host_calls, ..Self::default() }
    }

    /// Returns the logged host calls.
    pub(crate) fn into_reads(self) -> Vec<Read> {
        match self.host_calls {
            HostCallMode::Record(log) => log.into_calls(),
            HostCallMode::Live | HostCallMode::Replay(_) => Vec::new(),
        }
    }
}
