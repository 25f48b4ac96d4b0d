//! The engine that all policies run in, and the epoch clock that interrupts their calls.

use wasmparser::WasmFeatures;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::limits::{
    MAX_CORE_INSTANCES, MAX_INSTANCES, MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS,
    MAX_TABLES, MAX_TOTAL_CORE_INSTANCES,
};
use crate::wasm::epoch_clock::{EpochClock, RunningCalls};
use crate::wasm::features::FEATURES;
use crate::wasm::metering::Metering;

/// Address space that a linear memory reserves at first, and for further growth, if address space
/// is limited. A memory that outgrows its reservation is copied.
const LIMITED_RESERVATION: u64 = 16 << 20;
/// Bytes behind a linear memory that are not accessible, if address space is limited.
const LIMITED_GUARD: u64 = 64 << 10;

/// The address space of the process, on which compiled code depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressSpace {
    /// Each linear memory reserves 4 GiB, which spares most checks of bounds.
    #[default]
    Ample,
    /// As with `ulimit -v`: linear memories reserve little more than they need.
    Limited,
}

impl AddressSpace {
    /// Returns the address space that code for this engine was compiled for.
    pub(crate) fn for_engine(engine: &Engine) -> Self {
        if engine.get_memory_reservation() == LIMITED_RESERVATION {
            Self::Limited
        } else {
            Self::Ample
        }
    }

    /// Returns the address space of this process.
    fn of_process() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
        if limit.is_some() { Self::Limited } else { Self::Ample }
    }
}

/// The allocation strategy of instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocator {
    /// In a pool, or on demand if the address space is too small for the pool.
    #[default]
    Auto,
    /// In a pool that is reserved at the start, which makes instantiation fastest.
    Pooling,
    /// On demand, with separate mappings for each instance.
    OnDemand,
}

/// An error of setting up a runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime rejected the configuration, or could not reserve the address space.
    #[error("failed to set up the WebAssembly engine: {0:#}")]
    Engine(wasmtime::Error),
    /// The thread of the epoch clock could not be spawned.
    #[error("failed to spawn the epoch clock thread: {0}")]
    Clock(std::io::Error),
}

/// The engine that all policies run in, and the epoch clock that interrupts their calls.
#[derive(Debug)]
pub(crate) struct WasmEngine {
    // First, so that it stops before the engine is dropped. `None` if fuel is metered.
    _clock: Option<EpochClock>,
    running: RunningCalls,
    engine: Engine,
    metering: Metering,
    allocator: Allocator,
}

impl WasmEngine {
    /// Creates an engine, and starts its epoch clock.
    ///
    /// # Errors
    /// If wasmtime rejects the settings, or the epoch clock cannot be started.
    pub(crate) fn new(metering: Metering, allocator: Allocator) -> Result<Self, RuntimeError> {
        let on_demand = |space| engine(metering, InstanceAllocationStrategy::OnDemand, space);
        let pooling = || engine(metering, pooling(), AddressSpace::Ample);
        let (engine, allocator) = match allocator {
            Allocator::Pooling => (pooling()?, Allocator::Pooling),
            Allocator::OnDemand => (on_demand(AddressSpace::of_process())?, Allocator::OnDemand),
            Allocator::Auto => match pooling() {
                Ok(engine) => (engine, Allocator::Pooling),
                // The pool reserves address space, which `ulimit -v` and some containers limit.
                Err(error) => {
                    tracing::warn!(%error, "instance pool unavailable; allocating on demand");
                    (on_demand(AddressSpace::Limited)?, Allocator::OnDemand)
                }
            },
        };
        let running = RunningCalls::default();
        let clock = match metering {
            Metering::Wall => {
                Some(EpochClock::start(&engine, running.clone()).map_err(RuntimeError::Clock)?)
            }
            Metering::Fuel => None,
        };
        Ok(Self { _clock: clock, running, engine, metering, allocator })
    }

    /// Returns the engine of wasmtime.
    pub(crate) fn wasmtime(&self) -> &Engine {
        &self.engine
    }

    /// Returns the number of calls that run.
    pub(crate) fn running(&self) -> &RunningCalls {
        &self.running
    }

    /// Returns the unit in which the time of calls is measured.
    pub(crate) fn metering(&self) -> Metering {
        self.metering
    }

    /// Returns the allocation strategy in use, which is never [`Allocator::Auto`].
    pub(crate) fn allocator(&self) -> Allocator {
        self.allocator
    }
}

/// Creates the engine of the compiling process: the same except for the pool, which would reserve
/// terabytes of address space.
pub(crate) fn compiling_engine(
    metering: Metering,
    space: AddressSpace,
) -> Result<Engine, RuntimeError> {
    engine(metering, InstanceAllocationStrategy::OnDemand, space)
}

fn engine(
    metering: Metering,
    strategy: InstanceAllocationStrategy,
    space: AddressSpace,
) -> Result<Engine, RuntimeError> {
    let mut config = Config::new();
    match space {
        AddressSpace::Ample => {}
        AddressSpace::Limited => {
            config
                .memory_reservation(LIMITED_RESERVATION)
                .memory_reservation_for_growth(LIMITED_RESERVATION)
                .memory_guard_size(LIMITED_GUARD)
                .guard_before_linear_memory(false);
        }
    }
    config
        .allocation_strategy(strategy)
        // Calls are synchronous; this removes the bookkeeping of async tasks.
        .concurrency_support(false)
        // Interrupts calls at their deadline, whatever the guest does.
        .epoch_interruption(metering == Metering::Wall)
        .consume_fuel(metering == Metering::Fuel)
        // NaN payloads depend on the CPU and are observable by the guest.
        .cranelift_nan_canonicalization(metering == Metering::Fuel)
        .relaxed_simd_deterministic(metering == Metering::Fuel)
        // Must fit into the stack of the calling thread; tokio workers have 2 MiB.
        .max_wasm_stack(512 << 10)
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(true)
        // The allowed features are defined in one place, for this engine and for the scan.
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(FEATURES, true)
        // Not for guests, whose modules the scan limits to one memory: where parts of a component
        // pass strings to each other, as in QuickJS, the adapter that wasmtime generates accesses
        // the memories of both. Without this feature wasmtime panics on such components.
        .wasm_multi_memory(true)
        .shared_memory(false);
    Engine::new(&config).map_err(RuntimeError::Engine)
}

fn pooling() -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MAX_INSTANCES)
        .total_core_instances(MAX_TOTAL_CORE_INSTANCES)
        .total_memories(MAX_INSTANCES)
        .total_tables(MAX_INSTANCES * 4)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(MAX_MEMORY_BYTES).unwrap_or(usize::MAX))
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(2 << 20)
        // The memory of dropped instances is returned to the system, except for this much of each.
        .linear_memory_keep_resident(64 << 10)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(16);
    InstanceAllocationStrategy::Pooling(pool)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wasmtime::component::Component;

    use super::*;
    use crate::wasm::metering::FUEL_PER_MS;

    /// A component of two parts, each with a memory, that pass a string from one to the other.
    const TWO_MEMORIES: &str = r#"(component
        (component $callee
            (core module $m
                (memory (export "memory") 1)
                (func (export "take") (param i32 i32))
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func (export "take") (param "text" string)
                (canon lift (core func $i "take")
                    (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
        (component $caller
            (import "take" (func $take (param "text" string)))
            (core module $memory (memory (export "memory") 1))
            (core instance $memory (instantiate $memory))
            (core func $lowered (canon lower (func $take) (memory (core memory $memory "memory"))))
            (core module $m
                (import "" "take" (func $take (param i32 i32)))
                (func (export "run") (call $take (i32.const 0) (i32.const 0))))
            (core instance $i (instantiate $m (with "" (instance (export "take" (func $lowered))))))
            (func (export "run") (canon lift (core func $i "run"))))
        (instance $callee (instantiate $callee))
        (instance $caller (instantiate $caller (with "take" (func $callee "take"))))
        (export "run" (func $caller "run")))"#;

    #[test]
    fn fuel_converts_to_time_and_back() {
        assert_eq!(Metering::fuel(Duration::from_millis(5)), 5 * FUEL_PER_MS);
        for time in [Duration::ZERO, Duration::from_millis(50), Duration::from_micros(7)] {
            assert_eq!(Metering::time(Metering::fuel(time)), time);
        }
        assert_eq!(Metering::fuel(Duration::MAX), u64::MAX);
    }

    #[test]
    fn code_depends_on_the_address_space() {
        let engines = [AddressSpace::Ample, AddressSpace::Limited].map(|space| {
            let engine = compiling_engine(Metering::Wall, space).unwrap();
            assert_eq!(AddressSpace::for_engine(&engine), space);
            engine
        });
        let compatibility = engines.each_ref().map(crate::wasm::cache::compatibility);
        assert_ne!(compatibility[0], compatibility[1]);
    }

    #[test]
    fn component_with_two_memories_compiles() {
        let engine = compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap();
        let compiled = Component::new(&engine, wat::parse_str(TWO_MEMORIES).unwrap());
        assert!(compiled.is_ok(), "{:#}", compiled.err().unwrap());
    }
}
