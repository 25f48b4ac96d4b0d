//! A guarded call into a guest: its limits, and the faults that end it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Store, Trap, UpdateDeadline};

use crate::contract::guarded_api::ScanLimitExceeded;
use crate::contract::host_state::HostState;
use crate::fault::Fault;
use crate::limits::MAX_SCANNED_BYTES;
use crate::wasm::deadline::{Deadline, ticks};
use crate::wasm::engine::WasmEngine;
use crate::wasm::metering::Metering;

/// Maximum resource handles of one instance. The policy contract has no resources; WASI gives a
/// middleware a few streams.
const MAX_HANDLES: usize = 64;
/// The limits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallLimits {
    pub(crate) metering: Metering,
    /// CPU time, or the fuel that it stands for.
    pub(crate) deadline: Duration,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes that the host copies out of the guest: results, and arguments of host calls.
    pub(crate) output_bytes: usize,
}

/// Creates the store of an instance.
pub(crate) fn store(engine: &WasmEngine, mut state: HostState) -> Store<HostState> {
    state.running = engine.running().clone();
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(|state| &mut state.memory);
    store.set_max_component_handles(MAX_HANDLES);
    // Ticks are wall clock time: a call that was preempted goes on.
    store.epoch_deadline_callback(|cx| {
        let left = cx.data().deadline.and_then(|deadline| deadline.left());
        Ok(left.map_or(UpdateDeadline::Interrupt, |left| UpdateDeadline::Continue(ticks(left))))
    });
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
        Metering::Wall => {
            store.data_mut().deadline = Some(Deadline::start(limits.deadline));
            store.set_epoch_deadline(ticks(limits.deadline));
        }
        Metering::Fuel => {
            store.set_fuel(fuel).map_err(|error| Fault::Panic(format!("{error:#}")))?
        }
    }
    store.set_hostcall_fuel(limits.output_bytes);
    store.data().running.begin();
    // The store is dropped after a panic, so no broken invariant can be observed.
    let called = catch_unwind(AssertUnwindSafe(|| call(guest)));
    guest.store().data().running.end();
    if limits.metering == Metering::Fuel {
        let store = guest.store();
        let left = store.get_fuel().unwrap_or_default();
        // A guest cannot gain fuel; saturating only guards the arithmetic.
        store.data_mut().fuel_used += fuel.saturating_sub(left);
    }
    match called {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => {
            let state = guest.store().data();
            Err(classify(error, state.memory.exceeded, state.deadline, limits))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Err(Fault::Panic(
                text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default(),
            ))
        }
    }
}

/// Returns the fault that `error` stands for. `deadline` is that of the call, which ended on this
/// thread.
fn classify(
    error: wasmtime::Error,
    memory_exceeded: bool,
    deadline: Option<Deadline>,
    limits: CallLimits,
) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) if deadline.is_some_and(|deadline| !deadline.is_used_up()) => {
            Fault::WallLimit(limits.deadline)
        }
        Some(Trap::Interrupt | Trap::OutOfFuel) => Fault::Timeout(limits.deadline),
        None if error.is::<ScanLimitExceeded>() => Fault::HostCalls(MAX_SCANNED_BYTES),
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use pointsman_domain::PolicyRef;
    use prometheus_client::registry::Registry;
    use wasmtime::component::{Component, Linker};

    use super::*;
    use crate::contract::shared::Shared;
    use crate::contract::state::State;
    use crate::metrics::{PolicyMetrics, VersionMetrics};
    use crate::wasm::engine::{AddressSpace, Allocator, compiling_engine};

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
        let fault = classify(call(99).unwrap_err(), false, None, limits);
        assert!(matches!(fault, Fault::Output(99)), "{fault:?}");
    }

    #[test]
    fn interrupted_call_with_cpu_time_left_was_preempted() {
        let limits = CallLimits {
            metering: Metering::Wall,
            deadline: Duration::from_secs(60),
            memory: 1 << 20,
            output_bytes: 1 << 10,
        };
        let classified =
            |deadline| classify(Trap::Interrupt.into(), false, Some(deadline), limits).kind();
        assert_eq!(classified(Deadline::start(limits.deadline)), "wall-limit");
        assert_eq!(classified(Deadline::start(Duration::ZERO)), "timeout");
    }

    /// Exports a function that counts down to zero.
    const COUNTS_DOWN: &str = r#"(component
        (core module $m
            (func (export "run") (param i32)
                (loop $again
                    (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
                    (br_if $again (local.get 0)))))
        (core instance $i (instantiate $m))
        (func (export "run") (param "count" u32) (canon lift (core func $i "run"))))"#;

    /// Runs threads that compete for every CPU until it is dropped.
    struct BusyThreads {
        stop: Arc<AtomicBool>,
        threads: Vec<JoinHandle<()>>,
    }

    impl BusyThreads {
        fn start(per_cpu: usize) -> Self {
            let stop = Arc::new(AtomicBool::new(false));
            let count = per_cpu * thread::available_parallelism().unwrap().get();
            let spin = |stop: Arc<AtomicBool>| {
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                }
            };
            let threads = (0..count).map(|_| thread::spawn(spin(Arc::clone(&stop)))).collect();
            Self { stop, threads }
        }
    }

    impl Drop for BusyThreads {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn preempted_call_is_no_fault_and_spinning_one_is() {
        let engine = WasmEngine::new(Metering::Wall, Allocator::OnDemand).unwrap();
        let bytes = wat::parse_str(COUNTS_DOWN).unwrap();
        let component = Component::new(engine.wasmtime(), bytes).unwrap();
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let policy = PolicyRef::new("p", "1");
        let metrics = VersionMetrics::new(&metrics, &policy, &[]);
        let shared = Shared::new(policy, Arc::<State>::default(), metrics);
        let mut store = store(&engine, HostState::new(Arc::new(shared), 1 << 20));
        let mut limits = CallLimits {
            metering: Metering::Wall,
            deadline: Duration::from_secs(1),
            memory: 1 << 20,
            output_bytes: 1 << 10,
        };
        let linker = Linker::new(engine.wasmtime());
        let instance = guarded(&mut store, limits, |store| linker.instantiate(store, &component));
        let instance = instance.unwrap();
        let run = instance.get_typed_func::<(u32,), ()>(&mut store, "run").unwrap();
        let count_down = |store: &mut Store<HostState>, limits, count| {
            let start = Instant::now();
            let result = guarded(store, limits, |store| run.call(store, (count,)));
            let cpu_time = store.data().deadline.unwrap().cpu_used();
            (result, start.elapsed(), cpu_time)
        };
        // Long enough that other threads get their turns meanwhile.
        let count = 5_000_000;
        let (result, _, cpu_time) = count_down(&mut store, limits, count);
        result.unwrap();
        limits.deadline = cpu_time * 3;
        let busy = BusyThreads::start(8);
        let mut was_preempted = false;
        for _ in 0..5 {
            let (result, wall, _) = count_down(&mut store, limits, count);
            result.unwrap();
            was_preempted |= wall > limits.deadline;
        }
        assert!(was_preempted, "the threads must compete for the CPUs");
        drop(busy);
        // From zero, it counts through all of 2^32.
        limits.deadline = Duration::from_millis(5);
        let (result, _, cpu_time) = count_down(&mut store, limits, 0);
        assert_eq!(result.unwrap_err().kind(), "timeout");
        assert!(cpu_time >= limits.deadline && cpu_time < 50 * limits.deadline, "{cpu_time:?}");
        assert_eq!(engine.running().count(), 0, "an interrupted call has ended as well");
    }
}
