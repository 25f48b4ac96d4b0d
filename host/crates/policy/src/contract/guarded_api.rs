//! Host calls within the limits of the running call. Every host call of a guest passes through
//! here: code without loops and calls has no epoch checks, but may make any number of host calls.

use wasmtime::Trap;

use crate::contract::host_api::HostApi;
use crate::contract::shared::Level;
use crate::fault::report::FaultReport;
use crate::limits::MAX_SCANNED_BYTES;
use crate::wasm::deadline::Deadline;

/// Bytes that every host call counts in addition to those that it examines.
const HOST_CALL_COST: u64 = 256;

/// Bytes between two looks at the clock: one of sixteen small host calls looks, which take less
/// time together than a look of each of them.
const BYTES_PER_LOOK: u64 = 16 * HOST_CALL_COST;

/// Host calls of one policy call examined more than [`MAX_SCANNED_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("host calls examined more than {MAX_SCANNED_BYTES} bytes")]
pub(crate) struct ScanLimitExceeded;

/// The host calls of the running call, with its limits.
pub(crate) struct GuardedApi<'a> {
    api: &'a mut dyn HostApi,
    deadline: Option<&'a Deadline>,
    /// The last fault that the SDK of the guest reported in the call.
    reported: &'a mut Option<FaultReport>,
}

impl<'a> GuardedApi<'a> {
    /// Limits host calls to `deadline`; `None` if the call is limited by fuel.
    pub(crate) fn new(
        api: &'a mut dyn HostApi,
        deadline: Option<&'a Deadline>,
        reported: &'a mut Option<FaultReport>,
    ) -> Self {
        Self { api, deadline, reported }
    }

    /// Logs a line, or takes it as the report of a fault.
    ///
    /// # Errors
    /// Like [`GuardedApi::call`].
    pub(crate) fn log(&mut self, level: Level, message: &str) -> wasmtime::Result<()> {
        match FaultReport::parse(message).filter(|_| level == Level::Error) {
            Some(report) => {
                *self.reported = Some(report);
                self.call(|_| ())
            }
            None => self.call(|api| api.log(level, message)),
        }
    }

    /// Makes one host call. Each one is bounded by itself, so the limits are checked afterwards:
    /// the deadline only after every [`BYTES_PER_LOOK`].
    ///
    /// # Errors
    /// If the call has exceeded its deadline, or the bytes that host calls may examine.
    pub(crate) fn call<T>(
        &mut self,
        call: impl FnOnce(&mut dyn HostApi) -> T,
    ) -> wasmtime::Result<T> {
        let before = self.api.scanned_bytes();
        self.api.charge(HOST_CALL_COST);
        let result = call(self.api);
        let examined = self.api.scanned_bytes();
        if examined > MAX_SCANNED_BYTES {
            return Err(ScanLimitExceeded.into());
        }
        if examined / BYTES_PER_LOOK > before / BYTES_PER_LOOK
            && self.deadline.is_some_and(|deadline| deadline.left().is_none())
        {
            return Err(Trap::Interrupt.into());
        }
        Ok(result)
    }
}
