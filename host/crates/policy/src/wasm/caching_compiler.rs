//! From the bytes of a component to compiled code: from the cache, or from the compiler.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::Component;

use crate::limits::{MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES, PAGE_BYTES};
use crate::wasm::cache::{Cache, CacheLease};
use crate::wasm::compile::Compiler;
use crate::wasm::engine::WasmEngine;
use crate::wasm::error::{ComponentError, SizeError};
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

impl CachingCompiler {
    /// Creates a compiler for `engine` with a cache in `cache_dir`; `None` disables the cache.
    pub(crate) fn new(compiler: Compiler, cache_dir: Option<PathBuf>, engine: &WasmEngine) -> Self {
        let cache = cache_dir.and_then(|dir| Cache::open(dir, engine.wasmtime()));
        Self { compiler, cache, compiling: Mutex::default() }
    }

    /// Takes the compiled component from the cache, or validates and compiles it. Its bytes have
    /// been scanned. The lease keeps the code in the cache.
    ///
    /// # Errors
    /// If the component is invalid, cannot be compiled, or its instances would be too large.
    pub(crate) fn compile(
        &self,
        engine: &WasmEngine,
        bytes: &[u8],
        digest: &str,
    ) -> Result<(Component, Option<CacheLease>), ComponentError> {
        let compiled = self.compile_or_load(engine, bytes, digest)?;
        check_size(&compiled.0)?;
        Ok(compiled)
    }

    fn compile_or_load(
        &self,
        engine: &WasmEngine,
        bytes: &[u8],
        digest: &str,
    ) -> Result<(Component, Option<CacheLease>), ComponentError> {
        let mut was_rejected = false;
        if let Some(cached) = self.cached(engine, digest, &mut was_rejected) {
            return Ok(cached);
        }
        validate(bytes)?;
        let _guard = self.compiling.lock();
        // Another policy with the same component may have been compiled while this one waited.
        if let Some(cached) = self.cached(engine, digest, &mut was_rejected) {
            return Ok(cached);
        }
        let code = self.compiler.compile(engine.wasmtime(), engine.metering(), bytes)?;
        let lease = self.cache.as_ref().map(|cache| {
            // Leased first, so that pruning does not remove what is stored.
            let lease = cache.lease(digest);
            cache.store(digest, &code);
            lease
        });
        let component = code.component(engine.wasmtime());
        let component = component.map_err(|error| ComponentError::Load(Arc::new(error)))?;
        Ok((component, lease))
    }

    /// Takes a component from the cache. A file that is rejected is logged once in each load,
    /// although a load looks twice.
    fn cached(
        &self,
        engine: &WasmEngine,
        digest: &str,
        was_rejected: &mut bool,
    ) -> Option<(Component, Option<CacheLease>)> {
        let cache = self.cache.as_ref()?;
        match cache.load(engine.wasmtime(), digest) {
            Ok(component) => Some((component?, Some(cache.lease(digest)))),
            Err(rejected) => {
                if !std::mem::replace(was_rejected, true) {
                    rejected.log();
                }
                None
            }
        }
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
