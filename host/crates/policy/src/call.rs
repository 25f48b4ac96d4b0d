//! One guarded call into a guest: its limits, and what became of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{ResourceLimiter, Store, Trap};

use crate::host_calls::HostState;
use crate::runtime::{MOST_MEMORIES, MOST_TABLE_ELEMENTS, MOST_TABLES, Metering, Runtime, TICK};

/// Handles of one instance. Our contract has no resources; what WASI hands out to a middleware is a few streams.
const MOST_HANDLES: usize = 64;

/// What went wrong in a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it did not finish within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("it needs more memory than its limit of {0} bytes")]
    Memory(u64),
    #[error("it hands over more than {0} bytes")]
    Output(usize),
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("no instance of it can be made: {0}")]
    Instantiate(String),
    #[error("the host has a fault in calling it: {0}")]
    Panic(String),
}

impl Fault {
    /// All kinds.
    pub(crate) const KINDS: [&str; 6] =
        ["timeout", "memory", "output-too-large", "trap", "instantiate", "panic"];

    /// Value of a metric's label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Memory(_) => "memory",
            Self::Output(_) => "output-too-large",
            Self::Trap(_) => "trap",
            Self::Instantiate(_) => "instantiate",
            Self::Panic(_) => "panic",
        }
    }
}

/// Limits of one policy's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallLimits {
    pub(crate) metering: Metering,
    pub(crate) deadline: Duration,
    pub(crate) memory: u64,
    /// Bytes that the host takes out of the guest in one call, results and arguments of imports alike.
    pub(crate) result: usize,
}

impl CallLimits {
    /// The real limit lies between this many ticks and one less.
    fn ticks(self) -> u64 {
        u64::try_from(self.deadline.as_millis() / TICK.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }
}

/// A store for an instance with these limits.
pub(crate) fn store(runtime: &Runtime, state: HostState) -> Store<HostState> {
    let mut store = Store::new(&runtime.engine, state);
    store.limiter(|state| &mut state.memory);
    store.set_max_component_handles(MOST_HANDLES);
    store
}

/// Whatever has a store that calls run in.
pub(crate) trait Guest {
    fn store(&mut self) -> &mut Store<HostState>;
}

impl Guest for Store<HostState> {
    fn store(&mut self) -> &mut Store<HostState> {
        self
    }
}

/// Run `call` within its limits. After a fault the store must not be used again.
pub(crate) fn guarded<G: Guest, T>(
    guest: &mut G,
    limits: CallLimits,
    call: impl FnOnce(&mut G) -> wasmtime::Result<T>,
) -> Result<T, Fault> {
    let store = guest.store();
    let fuel = Metering::fuel(limits.deadline);
    // Before every call: a deadline that is set once is over after the first.
    match limits.metering {
        Metering::Wall => store.set_epoch_deadline(limits.ticks()),
        Metering::Fuel => {
            store.set_fuel(fuel).map_err(|error| Fault::Panic(format!("{error:#}")))?
        }
    }
    store.set_hostcall_fuel(limits.result);
    let called = catch_unwind(AssertUnwindSafe(|| call(guest)));
    if limits.metering == Metering::Fuel {
        let store = guest.store();
        let left = store.get_fuel().unwrap_or_default();
        store.data_mut().burnt += fuel.saturating_sub(left);
    }
    match called {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(classify(&error, guest.store().data().memory.exceeded, limits)),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Err(Fault::Panic(
                text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default(),
            ))
        }
    }
}

fn classify(error: &wasmtime::Error, memory_exceeded: bool, limits: CallLimits) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt | Trap::OutOfFuel) => Fault::Timeout(limits.deadline),
        // A guest whose memory may not grow mostly traps a moment later.
        _ if memory_exceeded => Fault::Memory(limits.memory),
        Some(trap) => Fault::Trap(trap.to_string()),
        // wasmtime's type for it is private.
        None if format!("{error:#}")
            .contains("fuel allocated for hostcalls has been exhausted") =>
        {
            Fault::Output(limits.result)
        }
        None => Fault::Trap(format!("{error:#}")),
    }
}

/// Bounds the memory of one instance, over all its linear memories and tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryLimit {
    most: u64,
    used: u64,
    pub(crate) exceeded: bool,
}

impl MemoryLimit {
    pub(crate) fn new(most: u64) -> Self {
        Self { most, used: 0, exceeded: false }
    }

    /// Bytes that may be in use.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// Bytes in use; memory never shrinks, so this is also the most that was.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.used.saturating_add((desired - current) as u64);
        let allowed = wanted <= self.most;
        if allowed {
            self.used = wanted;
        } else {
            self.exceeded = true;
        }
        // The guest is told that there is no more, which some language run-times can handle.
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MOST_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        MOST_TABLES as usize
    }

    fn memories(&self) -> usize {
        MOST_MEMORIES as usize
    }
}

/// A call that is running: what the guest's questions are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    /// `None` in hooks that are not about a request.
    pub(crate) request: Option<Arc<dyn pointsman_domain::RequestView>>,
    pub(crate) fleet: Arc<pointsman_domain::FleetView>,
}
