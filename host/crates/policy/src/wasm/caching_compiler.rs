//! From the bytes of a component to compiled code: from the cache, or from the compiler.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Module};

use crate::digest::sha256_hex;
use crate::limits::{MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES, PAGE_BYTES};
use crate::wasm::cache::{Cache, CacheLease, Code};
use crate::wasm::compile::Compiler;
use crate::wasm::engine::WasmEngine;
use crate::wasm::error::{ComponentError, SizeError};
use crate::wasm::parts::{self, Parts};
use crate::wasm::validate::validate;

/// A compiler with a cache.
#[derive(Debug)]
pub(crate) struct CachingCompiler {
    compiler: Compiler,
    cache: Option<Cache>,
    /// Held while compiling: one component at a time, so that many policies need no more memory
    /// than one.
    compiling: Mutex<()>,
}

/// A compiled component, and the modules that it imports because they were compiled on their own.
#[derive(Debug)]
pub(crate) struct Compiled {
    component: Component,
    modules: Vec<Module>,
    /// Keep the code in the cache, for the next start of the host.
    _leases: Vec<CacheLease>,
}

impl CachingCompiler {
    /// Creates a compiler for `engine` with a cache in `cache_dir`; `None` disables the cache.
    pub(crate) fn new(compiler: Compiler, cache_dir: Option<PathBuf>, engine: &WasmEngine) -> Self {
        let cache = cache_dir.and_then(|dir| Cache::open(dir, engine.wasmtime()));
        Self { compiler, cache, compiling: Mutex::default() }
    }

    /// Takes the compiled component from the cache, or validates and compiles it. Its bytes have
    /// been scanned.
    ///
    /// The large modules of an interpreter are compiled and cached one by one, so that the next
    /// version of a policy only compiles what has changed.
    ///
    /// # Errors
    /// If the component is invalid, cannot be compiled, or its instances would be too large.
    pub(crate) fn compile(
        &self,
        engine: &WasmEngine,
        bytes: &[u8],
        digest: &str,
    ) -> Result<Compiled, ComponentError> {
        // Without a cache, parts would be compiled again each time, with less parallelism.
        let parts = self.cache.as_ref().and_then(|_| parts::split(bytes));
        let Some(parts) = parts else {
            let is_valid = || validate(bytes);
            let (component, lease) =
                self.compile_or_load(engine, bytes, digest, Code::component, is_valid)?;
            check_size(&component)?;
            return Ok(Compiled::whole(component, lease));
        };
        self.compile_parts(engine, bytes, &parts)
    }

    /// Compiles the parts of a component. Their sizes together are only known when the component is
    /// instantiated: the limits of each store apply to it, and a version is instantiated before it
    /// is used.
    fn compile_parts(
        &self,
        engine: &WasmEngine,
        bytes: &[u8],
        parts: &Parts<'_>,
    ) -> Result<Compiled, ComponentError> {
        let mut is_validated = false;
        // Once, before the first part that is compiled.
        let mut validate_whole = || {
            if !is_validated {
                validate(bytes)?;
                is_validated = true;
            }
            Ok(())
        };
        let (mut modules, mut leases) = (Vec::new(), Vec::new());
        for part in &parts.modules {
            let digest = sha256_hex(part);
            let (module, lease) =
                self.compile_or_load(engine, part, &digest, Code::module, &mut validate_whole)?;
            modules.push(module);
            leases.extend(lease);
        }
        let digest = sha256_hex(&parts.outline);
        let (component, lease) = self.compile_or_load(
            engine,
            &parts.outline,
            &digest,
            Code::component,
            &mut validate_whole,
        )?;
        leases.extend(lease);
        Ok(Compiled { component, modules, _leases: leases })
    }

    fn compile_or_load<T>(
        &self,
        engine: &WasmEngine,
        bytes: &[u8],
        digest: &str,
        load: fn(&Code, &Engine) -> wasmtime::Result<T>,
        is_valid: impl FnOnce() -> Result<(), ComponentError>,
    ) -> Result<(T, Option<CacheLease>), ComponentError> {
        let mut was_rejected = false;
        let load = |code: &Code| load(code, engine.wasmtime());
        if let Some(cached) = self.cached(digest, load, &mut was_rejected) {
            return Ok(cached);
        }
        is_valid()?;
        let _guard = self.compiling.lock();
        // Another policy with the same component may have been compiled while this one waited.
        if let Some(cached) = self.cached(digest, load, &mut was_rejected) {
            return Ok(cached);
        }
        let code = self.compiler.compile(engine.wasmtime(), engine.metering(), bytes)?;
        let lease = self.cache.as_ref().map(|cache| {
            // Leased first, so that pruning does not remove what is stored.
            let lease = cache.lease(digest);
            cache.store(digest, &code);
            lease
        });
        let loaded = load(&code).map_err(|error| ComponentError::Load(Arc::new(error)))?;
        Ok((loaded, lease))
    }

    /// Takes a component or a module from the cache. A file that is rejected is logged once in each
    /// load, although a load looks twice.
    fn cached<T>(
        &self,
        digest: &str,
        load: impl FnOnce(&Code) -> wasmtime::Result<T>,
        was_rejected: &mut bool,
    ) -> Option<(T, Option<CacheLease>)> {
        let cache = self.cache.as_ref()?;
        match cache.load(digest, load) {
            Ok(loaded) => Some((loaded?, Some(cache.lease(digest)))),
            Err(rejected) => {
                if !std::mem::replace(was_rejected, true) {
                    rejected.log();
                }
                None
            }
        }
    }
}

impl Compiled {
    /// Wraps a component that contains all of its modules.
    pub(crate) fn whole(component: Component, lease: Option<CacheLease>) -> Self {
        Self { component, modules: Vec::new(), _leases: Vec::from_iter(lease) }
    }

    /// Returns the component.
    pub(crate) fn component(&self) -> &Component {
        &self.component
    }

    /// Returns whether [`Compiled::define_parts`] has to be called before linking.
    pub(crate) fn has_parts(&self) -> bool {
        !self.modules.is_empty()
    }

    /// Defines the modules that the component imports.
    ///
    /// # Errors
    /// If the linker has other definitions of their names.
    pub(crate) fn define_parts<T: 'static>(&self, linker: &mut Linker<T>) -> wasmtime::Result<()> {
        for (index, module) in self.modules.iter().enumerate() {
            linker.root().module(&parts::part_name(index), module)?;
        }
        Ok(())
    }
}

/// Checks the sizes that only the compiler knows: those of an instance of the component, which may
/// instantiate a module several times. The scan applies the same limits to modules.
fn check_size(component: &Component) -> Result<(), ComponentError> {
    let Some(needs) = component.resources_required() else {
        return Err(SizeError::Unknown.into());
    };
    // Saturates above the maximum.
    let memory = needs.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES);
    let elements = needs.max_initial_table_size.unwrap_or(0);
    for (what, found, max) in [
        ("memories", needs.num_memories.into(), MAX_MEMORIES.into()),
        ("tables", needs.num_tables.into(), MAX_TABLES.into()),
        ("initial bytes of a memory", memory, MAX_MEMORY_BYTES),
        ("initial elements of a table", elements, MAX_TABLE_ELEMENTS as u64),
    ] {
        if found > max {
            return Err(SizeError::Above { what, found, max }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
