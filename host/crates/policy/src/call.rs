//! A guarded call into a guest: its limits, and the faults that end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{ResourceLimiter, Store, Trap};

use crate::abi::VERSION;
use crate::host_calls::HostState;
use crate::runtime::{MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES, Metering, Runtime, TICK};

/// Maximum resource handles of one instance. The policy contract has no resources; WASI gives a
/// middleware a few streams.
const MAX_HANDLES: usize = 64;
/// Maximum core instances of one store. Core instances of a component are limited when it is
/// loaded.
const MAX_STORE_INSTANCES: usize = 64;

/// A fault of a guest, after which its instance is dropped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The call exceeded its deadline.
    #[error("call did not finish within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The guest exceeded its memory limit, in bytes.
    #[error("memory limit of {0} bytes exceeded")]
    Memory(u64),
    /// The guest passed more than the maximum number of bytes to the host.
    #[error("output exceeds {0} bytes")]
    Output(usize),
    /// The guest trapped, or returned a value that violates the contract.
    #[error("trapped: {0:#}")]
    Trap(Arc<wasmtime::Error>),
    /// No instance could be created.
    #[error("instantiation failed: {0:#}")]
    Instantiate(Arc<wasmtime::Error>),
    /// The host panicked during the call.
    #[error("internal error while calling the policy: {0}")]
    Panic(String),
}

/// The types of a component's exports do not match the contract. A context of the error in
/// [`Fault::Instantiate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("built for an incompatible contract version (host: {VERSION})")]
pub(crate) struct ContractMismatch;

impl Fault {
    /// Returns true if the component was built for a contract that does not match the host's.
    pub(crate) fn is_contract_mismatch(&self) -> bool {
        matches!(self, Self::Instantiate(error) if error.is::<ContractMismatch>())
    }

    /// All values that [`Fault::kind`] returns.
    pub(crate) const KINDS: [&str; 6] =
        ["timeout", "memory", "output-too-large", "trap", "instantiate", "panic"];

    /// Returns the kind of this fault, which is a value of the metric labels `kind` and `result`.
    pub fn kind(&self) -> &'static str {
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

/// Faults are equal if they have the same kind and message: errors of wasmtime cannot be compared.
impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl Eq for Fault {}

/// The limits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallLimits {
    pub(crate) metering: Metering,
    pub(crate) deadline: Duration,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes that the host copies out of the guest: results, and arguments of host calls.
    pub(crate) output_bytes: usize,
}

impl CallLimits {
    /// Returns the deadline in ticks of the epoch. The first tick may come at once, so the call is
    /// interrupted between this many ticks and one tick less.
    fn ticks(self) -> u64 {
        u64::try_from(self.deadline.as_millis() / TICK.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }
}

/// Creates the store of an instance.
pub(crate) fn store(runtime: &Runtime, state: HostState) -> Store<HostState> {
    let mut store = Store::new(&runtime.engine, state);
    store.limiter(|state| &mut state.memory);
    store.set_max_component_handles(MAX_HANDLES);
    store
}

/// A value with a store that calls run in.
pub(crate) trait Guest {
    fn store(&mut self) -> &mut Store<HostState>;
}

impl Guest for Store<HostState> {
    fn store(&mut self) -> &mut Store<HostState> {
        self
    }
}

/// Runs `call` within `limits`. After a fault the store must not be used again.
pub(crate) fn guarded<G: Guest, T>(
    guest: &mut G,
    limits: CallLimits,
    call: impl FnOnce(&mut G) -> wasmtime::Result<T>,
) -> Result<T, Fault> {
    let store = guest.store();
    let fuel = Metering::fuel(limits.deadline);
    // Before every call: an epoch deadline is absolute, so one that is set once expires for good.
    match limits.metering {
        Metering::Wall => store.set_epoch_deadline(limits.ticks()),
        Metering::Fuel => {
            store.set_fuel(fuel).map_err(|error| Fault::Panic(format!("{error:#}")))?
        }
    }
    store.set_hostcall_fuel(limits.output_bytes);
    // The store is dropped after a panic, so no broken invariant can be observed.
    let called = catch_unwind(AssertUnwindSafe(|| call(guest)));
    if limits.metering == Metering::Fuel {
        let store = guest.store();
        let left = store.get_fuel().unwrap_or_default();
        // A guest cannot gain fuel; saturating only guards the arithmetic.
        store.data_mut().fuel_used += fuel.saturating_sub(left);
    }
    match called {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(classify(error, guest.store().data().memory.exceeded, limits)),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Err(Fault::Panic(
                text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default(),
            ))
        }
    }
}

fn classify(error: wasmtime::Error, memory_exceeded: bool, limits: CallLimits) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt | Trap::OutOfFuel) => Fault::Timeout(limits.deadline),
        // Most guests trap shortly after a failed memory growth, so this comes before other traps.
        _ if memory_exceeded => Fault::Memory(limits.memory),
        None if is_output_limit(&error) => Fault::Output(limits.output_bytes),
        Some(_) | None => Fault::Trap(Arc::new(error)),
    }
}

/// Returns whether `error` is wasmtime's error for exhausted host call fuel. Its type is private,
/// so it cannot be downcast; the derived `Debug` of a unit struct prints the name of the type.
fn is_output_limit(error: &wasmtime::Error) -> bool {
    format!("{:?}", error.root_cause()) == "HostcallFuelExhausted"
}

/// The memory limit of one instance, over all its linear memories and tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryLimit {
    max: u64,
    used: u64,
    pub(crate) exceeded: bool,
}

impl MemoryLimit {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, used: 0, exceeded: false }
    }

    /// Returns the maximum number of bytes.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// Returns the number of bytes in use. Memory never shrinks, so this is also the peak.
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
        // Saturates on absurd sizes, which are above any limit.
        let wanted = self.used.saturating_add((desired - current) as u64);
        let is_allowed = wanted <= self.max;
        if is_allowed {
            self.used = wanted;
        } else {
            self.exceeded = true;
        }
        // `memory.grow` returns -1 to the guest, which some language runtimes can handle.
        Ok(is_allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        MAX_STORE_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES as usize
    }
}

/// The inputs of a running call, from which host calls are answered.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    /// `None` in hooks that are not about a request.
    pub(crate) request: Option<Arc<dyn pointsman_domain::RequestView>>,
    pub(crate) fleet: Arc<pointsman_domain::FleetView>,
}

#[cfg(test)]
mod tests {
    use wasmtime::component::{Component, Linker};

    use super::*;
    use crate::runtime::compiling_engine;

    /// Exports a function that returns a string of 100 bytes.
    const RETURNS_100_BYTES: &str = r#"(component
        (core module $m
            (memory (export "memory") 1)
            (func (export "run") (result i32) (i32.const 16))
            (data (i32.const 16) "\20\00\00\00\64\00\00\00"))
        (core instance $i (instantiate $m))
        (func (export "run") (result string)
            (canon lift (core func $i "run") (memory (core memory $i "memory")))))"#;

    /// Fails when wasmtime renames the private type that [`is_output_limit`] recognises.
    #[test]
    fn exhausted_host_call_fuel_is_classified_as_output() {
        let engine = compiling_engine(Metering::Fuel).unwrap();
        let bytes = wat::parse_str(RETURNS_100_BYTES).unwrap();
        let component = Component::new(&engine, bytes).unwrap();
        let limits = CallLimits {
            metering: Metering::Fuel,
            deadline: Duration::from_millis(5),
            memory: 1 << 20,
            output_bytes: 99,
        };
        let call = |output_bytes: usize| {
            let mut store = Store::new(&engine, ());
            store.set_fuel(1_000_000).unwrap();
            store.set_hostcall_fuel(output_bytes);
            let linker = Linker::new(&engine);
            let instance = linker.instantiate(&mut store, &component).unwrap();
            let run = instance.get_typed_func::<(), (String,)>(&mut store, "run").unwrap();
            run.call(&mut store, ()).map(|(text,)| text.len())
        };
        assert_eq!(call(100).unwrap(), 100);
        let fault = classify(call(99).unwrap_err(), false, limits);
        assert!(matches!(fault, Fault::Output(99)), "{fault:?}");
    }
}
