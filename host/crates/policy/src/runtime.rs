//! The engine that all policies run in, and the clock that ends their calls.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::abi::Abi;
use crate::cache::Cache;
use crate::state::State;

/// Between two ticks of the epoch clock: the grain of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Instances of all policies together. A call is synchronous, so there are never more in use than threads that call.
const MOST_INSTANCES: u32 = 256;
/// Core instances in one component; CPython has 38.
const MOST_CORE_INSTANCES: u32 = 64;
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

/// Settings of the runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeSettings {
    /// Where compiled policies are kept; none are where `None`.
    pub cache_dir: Option<PathBuf>,
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
    // Stops before the engine goes.
    _ticker: Ticker,
    pub(crate) engine: Engine,
    pub(crate) abi: Abi,
    pub(crate) cache: Option<Cache>,
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
        let (engine, allocator) = match settings.allocator {
            Allocator::Pooling => (engine(pooling())?, Allocator::Pooling),
            Allocator::OnDemand => (engine(InstanceAllocationStrategy::OnDemand)?, Allocator::OnDemand),
            Allocator::Auto => match engine(pooling()) {
                Ok(engine) => (engine, Allocator::Pooling),
                // The pool reserves address space, which `ulimit -v` and some containers keep short.
                Err(error) => {
                    tracing::warn!("policies run without an instance pool: {error}");
                    (engine(InstanceAllocationStrategy::OnDemand)?, Allocator::OnDemand)
                }
            },
        };
        let abi = Abi::new(&engine).map_err(RuntimeError::Engine)?;
        Ok(Arc::new(Self {
            _ticker: Ticker::start(&engine).map_err(RuntimeError::Ticker)?,
            cache: settings.cache_dir.and_then(|dir| Cache::open(dir, &engine)),
            abi,
            engine,
            warm_instances: settings.warm_instances,
            allocator,
            states: Mutex::default(),
        }))
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

fn engine(strategy: InstanceAllocationStrategy) -> Result<Engine, RuntimeError> {
    let mut config = Config::new();
    config
        .allocation_strategy(strategy)
        // Calls are synchronous: no task bookkeeping around each of them.
        .concurrency_support(false)
        // Calls end at their deadline, whatever the guest does.
        .epoch_interruption(true)
        // Must fit into the stack of whoever calls; tokio's workers have 2 MiB.
        .max_wasm_stack(512 << 10)
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(true)
        // The tools for JavaScript and Python make components of several, and what wasmtime puts between two of them uses the
        // memories of both. Without it, wasmtime 48 panics over such a component instead of refusing it.
        .wasm_multi_memory(true)
        // What no policy needs, and what past escapes and aborts were made of, is off.
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_gc(false)
        .wasm_exceptions(false)
        .wasm_function_references(false)
        // Its results differ between CPUs.
        .wasm_relaxed_simd(false);
    Engine::new(&config).map_err(RuntimeError::Engine)
}

fn pooling() -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(MOST_INSTANCES)
        .total_core_instances(MOST_INSTANCES * 8)
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
