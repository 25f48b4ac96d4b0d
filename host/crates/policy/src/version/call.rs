//! A guarded call into a guest: its limits, and the faults that end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Store, Trap};

use crate::contract::host_state::HostState;
use crate::fault::Fault;
use crate::wasm::engine::{TICK, WasmEngine};
use crate::wasm::metering::Metering;

/// Maximum resource handles of one instance. The policy contract has no resources; WASI gives a
/// middleware a few streams.
const MAX_HANDLES: usize = 64;
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
pub(crate) fn store(engine: &WasmEngine, state: HostState) -> Store<HostState> {
    let mut store = Store::new(engine.wasmtime(), state);
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

#[cfg(test)]
mod tests {
    use wasmtime::component::{Component, Linker};

    use super::*;
    use crate::wasm::engine::{AddressSpace, compiling_engine};

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
        let engine = compiling_engine(Metering::Fuel, AddressSpace::Ample).unwrap();
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
