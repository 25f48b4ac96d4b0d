//! The host's side of one instance: its limits, and the host calls of the running call.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::contract::guarded_api::GuardedApi;
use crate::contract::host_api::HostApi;
use crate::contract::host_call_log::HostCallLog;
use crate::contract::host_call_mode::HostCallMode;
use crate::contract::journal_api::JournalApi;
use crate::contract::live_api::{Current, LiveApi};
use crate::contract::replay_log::ReplayLog;
use crate::contract::shared::Shared;
use crate::contract::wasi_state::Wasi;
use crate::fault::report::FaultReport;
use crate::wasm::deadline::Deadline;
use crate::wasm::epoch_clock::RunningCalls;
use crate::wasm::memory_limit::MemoryLimit;

/// The data of an instance's store.
#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: MemoryLimit,
    /// Only used by guests that import WASI.
    pub(crate) wasi: Wasi,
    /// Fuel that calls have consumed since [`HostState::end`].
    pub(crate) fuel_used: u64,
    /// The deadline of the running call; `None` if calls are limited by fuel.
    pub(crate) deadline: Option<Deadline>,
    /// The calls that run in the engine of the instance.
    pub(crate) running: RunningCalls,
    /// The last fault that the SDK of the guest reported.
    reported: Option<FaultReport>,
    host_calls: HostCalls,
}

/// The host calls of the running call, in each [mode](HostCallMode).
#[derive(Debug)]
enum HostCalls {
    Live(LiveApi),
    Record(JournalApi<HostCallLog>),
    Replay(Box<JournalApi<ReplayLog>>),
}

/// The time that a call took, in the unit of its metering.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TimeUsed {
    /// 0 unless fuel is metered.
    pub(crate) fuel: u64,
    /// The deadline of the call, which can be asked for its CPU time on the same thread.
    pub(crate) deadline: Option<Deadline>,
}

impl HostState {
    pub(crate) fn new(shared: Arc<Shared>, max_memory: u64) -> Self {
        Self {
            memory: MemoryLimit::new(max_memory),
            wasi: Wasi::default(),
            fuel_used: 0,
            deadline: None,
            running: RunningCalls::default(),
            reported: None,
            host_calls: HostCalls::Live(LiveApi::new(Arc::clone(&shared))),
            shared,
        }
    }

    /// Starts a call. Until its [end](HostState::end), host calls are answered from `current` and
    /// handled as `mode` says.
    pub(crate) fn begin(&mut self, current: Current, mode: HostCallMode) {
        if let (HostCallMode::Live, HostCalls::Live(live)) = (&mode, &mut self.host_calls) {
            return live.begin(current);
        }
        let mut live = LiveApi::new(Arc::clone(&self.shared));
        live.begin(current);
        self.host_calls = match mode {
            HostCallMode::Live => HostCalls::Live(live),
            HostCallMode::Record(log) => HostCalls::Record(JournalApi::new(live, log)),
            HostCallMode::Replay(log) => HostCalls::Replay(Box::new(JournalApi::new(live, *log))),
        };
    }

    /// Ends a call. Returns the mode with what it logged, and the time that the call took.
    pub(crate) fn end(&mut self) -> (HostCallMode, TimeUsed) {
        let mode = if let HostCalls::Live(live) = &mut self.host_calls {
            live.end();
            HostCallMode::Live
        } else {
            let idle = HostCalls::Live(LiveApi::new(Arc::clone(&self.shared)));
            match std::mem::replace(&mut self.host_calls, idle) {
                HostCalls::Live(_) => HostCallMode::Live,
                HostCalls::Record(api) => HostCallMode::Record(api.into_journal()),
                HostCalls::Replay(api) => HostCallMode::Replay(Box::new(api.into_journal())),
            }
        };
        let (fuel, deadline) = (std::mem::take(&mut self.fuel_used), self.deadline.take());
        (mode, TimeUsed { fuel, deadline })
    }

    /// Takes the fault that the SDK of the guest reported since the last call of this function.
    pub(crate) fn take_report(&mut self) -> Option<FaultReport> {
        self.reported.take()
    }

    /// Returns the host calls for the linker.
    pub(crate) fn api(&mut self) -> GuardedApi<'_> {
        let api: &mut dyn HostApi = match &mut self.host_calls {
            HostCalls::Live(api) => api,
            HostCalls::Record(api) => api,
            HostCalls::Replay(api) => &mut **api,
        };
        GuardedApi::new(api, self.deadline.as_ref(), &mut self.reported)
    }

    /// Returns the value of an argument of the call: the recorded one if the call is replayed.
    pub(crate) fn input<T>(&mut self, name: &'static str, value: T) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        match &mut self.host_calls {
            HostCalls::Live(_) => value,
            HostCalls::Record(api) => api.input(name, value),
            HostCalls::Replay(api) => api.input(name, value),
        }
    }
}
