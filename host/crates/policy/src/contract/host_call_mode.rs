//! The treatment of the host calls of one policy call.

use crate::contract::host_call_log::HostCallLog;
use crate::contract::replay_log::ReplayLog;

/// The treatment of host calls.
#[derive(Debug, Default)]
pub(crate) enum HostCallMode {
    /// Host calls are answered.
    #[default]
    Live,
    /// Host calls are answered and logged.
    Record(HostCallLog),
    /// Host calls are answered from a record.
    Replay(Box<ReplayLog>),
}
