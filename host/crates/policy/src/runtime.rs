//! The engine that all policies run in, and the epoch clock that interrupts their calls.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmparser::WasmFeatures;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::abi::Abi;
use crate::cache::Cache;
use crate::compile::Compiler;
use crate::scan::FEATURES;
use crate::state::State;

/// The interval of the epoch clock, which is the resolution of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Maximum instances of all policies together. A call is synchronous, so each policy needs at most
/// one instance per calling thread; this suffices for sixty policies on sixteen threads. It
/// reserves address space, not memory: about 6 TiB of 128.
const MAX_INSTANCES: u32 = 1024;
/// Maximum core instances of all policies together. Most policies have two or three; CPython has
/// 38, but is rare.
const MAX_TOTAL_CORE_INSTANCES: u32 = 16 * MAX_INSTANCES;
/// Maximum core instances in one component; CPython has 38.
pub(crate) const MAX_CORE_INSTANCES: u32 = 64;
/// Maximum linear memories in one component.
pub(crate) const MAX_MEMORIES: u32 = 4;
/// Maximum tables in one component.
pub(crate) const MAX_TABLES: u32 = 16;
/// Maximum elements of one table; CPython has 5,696.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;
/// Maximum bytes of one linear memory, whatever the configuration allows.
pub(crate) const MAX_MEMORY_BYTES: u64 = 256 << 20;

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

/// Fuel that a call gets for each millisecond of its deadline. Every WebAssembly instruction
/// consumes about one unit, and so does every byte of a bulk copy. A current CPU core consumes four
/// to seven million units in a millisecond of pure computation, so a call within its wall clock
/// deadline is within its fuel as well.
pub const FUEL_PER_MS: u64 = 5_000_000;

/// The unit in which the time of a call is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metering {
    /// The wall clock: the fastest one, used for serving. The instruction at which a call is
    /// interrupted depends on the machine and its load.
    #[default]
    Wall,
    /// Fuel: each instruction consumes some, [`FUEL_PER_MS`] in a millisecond. The same call takes
    /// the same time and is interrupted at the same instruction on every machine, and NaN bit
    /// patterns are canonicalised.
    Fuel,
}

impl Metering {
    /// Converts a duration to fuel, saturating.
    pub(crate) fn fuel(time: Duration) -> u64 {
        let fuel = time.as_micros().saturating_mul(FUEL_PER_MS.into()) / 1000;
        u64::try_from(fuel).unwrap_or(u64::MAX)
    }

    /// Converts fuel to the duration that it stands for.
    pub(crate) fn time(fuel: u64) -> Duration {
        let nanos = u128::from(fuel) * 1_000_000 / u128::from(FUEL_PER_MS);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The settings of a runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeSettings {
    /// The unit in which the time of calls is measured.
    pub metering: Metering,
    /// The folder of the compilation cache; `None` disables the cache.
    pub cache_dir: Option<PathBuf>,
    /// The place where policies are compiled.
    pub compiler: Compiler,
    /// The allocation strategy of instances.
    pub allocator: Allocator,
    /// Instances of each policy that are created when it is loaded.
    pub warm_instances: usize,
}

/// An error of setting up a runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime rejected the configuration, or could not reserve the address space.
    #[error("failed to set up the WebAssembly engine: {0:#}")]
    Engine(wasmtime::Error),
    /// The thread of the epoch clock could not be spawned.
    #[error("failed to spawn the epoch clock thread: {0}")]
    Ticker(std::io::Error),
}

/// The engine, the epoch clock, the compilation cache, and the state of policies.
#[derive(Debug)]
pub struct Runtime {
    // First, so that it stops before the engine is dropped. `None` if fuel is metered.
    _ticker: Option<Ticker>,
    pub(crate) metering: Metering,
    pub(crate) engine: Engine,
    pub(crate) abi: Abi,
    pub(crate) cache: Option<Cache>,
    pub(crate) compiler: Compiler,
    /// Held while compiling: one component at a time, so that many policies need no more memory
    /// than one.
    pub(crate) compiling: Mutex<()>,
    pub(crate) warm_instances: usize,
    allocator: Allocator,
    // By the name of the policy, so that a new version inherits the state of the previous one.
    states: Mutex<HashMap<String, Arc<State>>>,
}

impl Runtime {
    /// Sets up a runtime.
    ///
    /// # Errors
    /// If wasmtime rejects the settings, or the epoch clock cannot be started.
    pub fn new(settings: RuntimeSettings) -> Result<Arc<Self>, RuntimeError> {
        let metering = settings.metering;
        let on_demand = || engine(metering, InstanceAllocationStrategy::OnDemand);
        let (engine, allocator) = match settings.allocator {
            Allocator::Pooling => (engine(metering, pooling())?, Allocator::Pooling),
            Allocator::OnDemand => (on_demand()?, Allocator::OnDemand),
            Allocator::Auto => match engine(metering, pooling()) {
                Ok(engine) => (engine, Allocator::Pooling),
                // The pool reserves address space, which `ulimit -v` and some containers limit.
                Err(error) => {
                    tracing::warn!(%error, "instance pool unavailable; allocating on demand");
                    (on_demand()?, Allocator::OnDemand)
                }
            },
        };
        let abi = Abi::new(&engine).map_err(RuntimeError::Engine)?;
        let ticker = match metering {
            Metering::Wall => Some(Ticker::start(&engine).map_err(RuntimeError::Ticker)?),
            Metering::Fuel => None,
        };
        Ok(Arc::new(Self {
            _ticker: ticker,
            metering,
            cache: settings.cache_dir.and_then(|dir| Cache::open(dir, &engine)),
            compiler: settings.compiler,
            compiling: Mutex::default(),
            abi,
            engine,
            warm_instances: settings.warm_instances,
            allocator,
            states: Mutex::default(),
        }))
    }

    /// Returns the unit in which the time of calls is measured.
    pub fn metering(&self) -> Metering {
        self.metering
    }

    /// Returns the allocation strategy in use, which is never [`Allocator::Auto`].
    pub fn allocator(&self) -> Allocator {
        self.allocator
    }

    /// Returns the state of a policy, which all its versions share.
    pub(crate) fn policy_state(&self, policy: &str) -> Arc<State> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(states.entry(policy.to_owned()).or_default())
    }
}

/// Creates the engine of the compiling process: the same except for the pool, which would reserve
/// terabytes of address space.
pub(crate) fn compiling_engine(metering: Metering) -> Result<Engine, RuntimeError> {
    engine(metering, InstanceAllocationStrategy::OnDemand)
}

fn engine(
    metering: Metering,
    strategy: InstanceAllocationStrategy,
) -> Result<Engine, RuntimeError> {
    let mut config = Config::new();
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

/// The thread that increments the engine's epoch. It is not a task, because it must run while all
/// worker threads are busy in guests.
#[derive(Debug)]
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: &Engine) -> std::io::Result<Self> {
        let engine = engine.weak();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("policy-epoch".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed)
                && let Some(engine) = engine.upgrade()
            {
                engine.increment_epoch();
                drop(engine);
                std::thread::park_timeout(TICK);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // An error would mean that the thread panicked, which no longer matters here.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::Component;

    use super::*;

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
    fn component_with_two_memories_compiles() {
        let engine = engine(Metering::Wall, InstanceAllocationStrategy::OnDemand).unwrap();
        let compiled = Component::new(&engine, wat::parse_str(TWO_MEMORIES).unwrap());
        assert!(compiled.is_ok(), "{:#}", compiled.err().unwrap());
    }
}
