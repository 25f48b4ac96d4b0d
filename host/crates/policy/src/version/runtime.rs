//! What all policies of a process share: the engine, the compiler, and the states of policies.

use std::path::PathBuf;
use std::sync::Arc;

use crate::contract::guest::Linkers;
use crate::contract::state_store::StateStore;
use crate::wasm::caching_compiler::CachingCompiler;
use crate::wasm::compile::Compiler;
use crate::wasm::engine::{Allocator, RuntimeError, WasmEngine};
use crate::wasm::metering::Metering;

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

/// The engine, the compiler, and the states of policies. Each part is passed to those who need it;
/// the whole is only for those who load policies.
#[derive(Debug)]
pub struct Runtime {
    pub(crate) engine: Arc<WasmEngine>,
    pub(crate) compiler: CachingCompiler,
    pub(crate) linkers: Linkers,
    pub(crate) states: StateStore,
    pub(crate) warm_instances: usize,
}

impl Runtime {
    /// Sets up a runtime.
    ///
    /// # Errors
    /// If wasmtime rejects the settings, or the epoch clock cannot be started.
    pub fn new(settings: RuntimeSettings) -> Result<Arc<Self>, RuntimeError> {
        let RuntimeSettings { metering, cache_dir, compiler, allocator, warm_instances } = settings;
        let engine = WasmEngine::new(metering, allocator)?;
        Ok(Arc::new(Self {
            compiler: CachingCompiler::new(compiler, cache_dir, &engine),
            linkers: Linkers::new(engine.wasmtime()).map_err(RuntimeError::Engine)?,
            engine: Arc::new(engine),
            states: StateStore::default(),
            warm_instances,
        }))
    }

    /// Returns the unit in which the time of calls is measured.
    pub fn metering(&self) -> Metering {
        self.engine.metering()
    }

    /// Returns the allocation strategy in use, which is never [`Allocator::Auto`].
    pub fn allocator(&self) -> Allocator {
        self.engine.allocator()
    }
}
