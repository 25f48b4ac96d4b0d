//! The engine that all policies run in, and the clock that ends their calls.

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

/// Between two ticks of the epoch clock: the grain of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Instances of all policies together. A call is synchronous, so each policy has at most one for each thread that calls;
/// this is room for sixty policies on sixteen threads. It is address space, not memory: about 6 TiB of the 128 there are.
const MOST_INSTANCES: u32 = 1024;
/// Core instances of all policies together. Most policies have two or three; CPython has 38, and few will use that.
const MOST_CORE_INSTANCES_IN_ALL: u32 = 16 * MOST_INSTANCES;
/// Core instances in one component; CPython has 38.
pub(crate) const MOST_CORE_INSTANCES: u32 = 64;
/// Linear memories in one component.
pub(crate) const MOST_MEMORIES: u32 = 4;
/// Tables in one component.
pub(crate) const MOST_TABLES: u32 = 16;
/// Elements of one table; CPython has 5,696.
pub(crate) const MOST_TABLE_ELEMENTS: usize = 20_000;
/// Bytes of one linear memory, whatever an operator allows.
pub(crate) const MOST_MEMORY: u64 = 256 << 20;

/// Where instances live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocator {
    /// The pool, or, where the address space is too short for it, on demand.
    #[default]
    Auto,
    /// In a pool that is reserved at the start: quickest to instantiate.
    Pooling,
    /// Wherever there is room.
    OnDemand,
}

/// Fuel that a call gets for each millisecond of its deadline. Every instruction of WebAssembly burns about one, and so does every
/// byte that is copied at once. A core of today burns four to seven million in a millisecond of nothing but computing: what is
/// in time by the clock is in time by fuel.
pub const FUEL_PER_MS: u64 = 5_000_000;

/// What the time of a call is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metering {
    /// The wall clock. Quickest, and what serves; where a call is cut off depends on the machine and its load.
    #[default]
    Wall,
    /// What the guest does: each instruction burns fuel, [`FUEL_PER_MS`] of it in a millisecond. The same call takes the same time
    /// and is cut off at the same place on every machine, and numbers that are none have the same bits.
    Fuel,
}

impl Metering {
    /// Fuel for so much time.
    pub(crate) fn fuel(time: Duration) -> u64 {
        let fuel = time.as_micros().saturating_mul(FUEL_PER_MS.into()) / 1000;
        u64::try_from(fuel).unwrap_or(u64::MAX)
    }

    /// The time that so much fuel stands for.
    pub(crate) fn time(fuel: u64) -> Duration {
        let nanos = u128::from(fuel) * 1_000_000 / u128::from(FUEL_PER_MS);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Settings of the runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeSettings {
    /// What the time of calls is measured in.
    pub metering: Metering,
    /// Where compiled policies are kept; none are where `None`.
    pub cache_dir: Option<PathBuf>,
    /// Where policies are compiled.
    pub compiler: Compiler,
    /// Where instances live.
    pub allocator: Allocator,
    /// Instances of each policy that are made when it is loaded.
    pub warm_instances: usize,
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime refuses the configuration, or has no room.
    #[error("the WebAssembly engine cannot be set up: {0:#}")]
    Engine(wasmtime::Error),
    /// There is no thread for the clock.
    #[error("the thread that ends policy calls cannot be started: {0}")]
    Ticker(std::io::Error),
}

/// The engine, the clock, the cache of compiled components, and the state of policies.
#[derive(Debug)]
pub struct Runtime {
    // Stops before the engine goes. There is none where nobody looks at the clock.
    _ticker: Option<Ticker>,
    pub(crate) metering: Metering,
    pub(crate) engine: Engine,
    pub(crate) abi: Abi,
    pub(crate) cache: Option<Cache>,
    pub(crate) compiler: Compiler,
    /// Held while compiling: one at a time, so that many policies need no more memory than one.
    pub(crate) compiling: Mutex<()>,
    pub(crate) warm_instances: usize,
    allocator: Allocator,
    // By name of the policy, so that a new version finds what an old one put there.
    states: Mutex<HashMap<String, Arc<State>>>,
}

impl Runtime {
    /// Set up the runtime.
    ///
    /// # Errors
    /// When the engine cannot be set up as asked for.
    pub fn new(settings: RuntimeSettings) -> Result<Arc<Self>, RuntimeError> {
        let metering = settings.metering;
        let on_demand = || engine(metering, InstanceAllocationStrategy::OnDemand);
        let (engine, allocator) = match settings.allocator {
            Allocator::Pooling => (engine(metering, pooling())?, Allocator::Pooling),
            Allocator::OnDemand => (on_demand()?, Allocator::OnDemand),
            Allocator::Auto => match engine(metering, pooling()) {
                Ok(engine) => (engine, Allocator::Pooling),
                // The pool reserves address space, which `ulimit -v` and some containers keep short.
                Err(error) => {
                    tracing::warn!("policies run without an instance pool: {error}");
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

    /// What the time of calls is measured in.
    pub fn metering(&self) -> Metering {
        self.metering
    }

    /// Where instances live, as it turned out.
    pub fn allocator(&self) -> Allocator {
        self.allocator
    }

    /// The state of the policy of that name.
    pub(crate) fn state_of(&self, policy: &str) -> Arc<State> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(states.entry(policy.to_owned()).or_default())
    }
}

/// The engine that compiles in a process of its own: the same but for the pool, which would reserve terabytes of addresses.
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
        // Calls are synchronous: no task bookkeeping around each of them.
        .concurrency_support(false)
        // Calls end at their deadline, whatever the guest does.
        .epoch_interruption(metering == Metering::Wall)
        .consume_fuel(metering == Metering::Fuel)
        // Which bits a number has that is none is the CPU's choice, and a guest could see them.
        .cranelift_nan_canonicalization(metering == Metering::Fuel)
        .relaxed_simd_deterministic(metering == Metering::Fuel)
        // Must fit into the stack of whoever calls; tokio's workers have 2 MiB.
        .max_wasm_stack(512 << 10)
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(true)
        // What may be used at all is decided in one place, for this engine and for the scan of components.
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(FEATURES, true)
        // Not for guests, whose modules the scan keeps to one: where parts of one component pass strings to each other, as
        // QuickJS's do, the code that wasmtime makes for that sees the memories of both. Without it, wasmtime panics over it.
        .wasm_multi_memory(true)
        .shared_memory(false);
    Engine::new(&config).map_err(RuntimeError::Engine)
}

fn pooling() -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MOST_INSTANCES)
        .total_core_instances(MOST_CORE_INSTANCES_IN_ALL)
        .total_memories(MOST_INSTANCES)
        .total_tables(MOST_INSTANCES * 4)
        .max_core_instances_per_component(MOST_CORE_INSTANCES)
        .max_memories_per_component(MOST_MEMORIES)
        .max_tables_per_component(MOST_TABLES)
        .table_elements(MOST_TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(MOST_MEMORY).unwrap_or(usize::MAX))
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(2 << 20)
        // Memory of instances that are gone goes back to the system but for this much each.
        .linear_memory_keep_resident(64 << 10)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(16);
    InstanceAllocationStrategy::Pooling(pool)
}

/// The thread that moves the engine's epoch on. A thread and not a task: it must run when all workers are stuck in guests.
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
            // It cannot have panicked, and there would be nothing to do about it.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::Component;

    use super::*;

    /// Two parts of one component, each with a memory, and a string that goes from one to the other.
    const TWO_MEMORIES: &str = r#"(component
        (component $callee
            (core module $m
                (memory (export "memory") 1)
                (func (export "take") (param i32 i32))
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func (export "take") (param "text" string)
                (canon lift (core func $i "take") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
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
    fn fuel_is_time() {
        assert_eq!(Metering::fuel(Duration::from_millis(5)), 5 * FUEL_PER_MS);
        for time in [Duration::ZERO, Duration::from_millis(50), Duration::from_micros(7)] {
            assert_eq!(Metering::time(Metering::fuel(time)), time);
        }
        assert_eq!(Metering::fuel(Duration::MAX), u64::MAX);
    }

    #[test]
    fn components_of_several_parts_can_be_compiled() {
        let engine = engine(Metering::Wall, InstanceAllocationStrategy::OnDemand).unwrap();
        let compiled = Component::new(&engine, wat::parse_str(TWO_MEMORIES).unwrap());
        assert!(compiled.is_ok(), "{:#}", compiled.err().unwrap());
    }
}
