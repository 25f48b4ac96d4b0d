//! From the bytes of a file to a linked component, or an error that says why it is not usable.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::abi::{Linked, Track, VERSION};
use crate::cache::CacheLease;
use crate::compile::CompileError;
use crate::runtime::{MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES, Runtime};
use crate::scan;

/// Maximum size of a component, in bytes. CPython's has 18.4 MB.
pub(crate) const MAX_COMPONENT_BYTES: u64 = 32 << 20;
/// Bytes of a page of linear memory.
const PAGE_BYTES: u64 = 64 << 10;

/// An error that makes a file unusable as the component of a policy.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// Compiled machine code, which is only accepted from the host's own cache.
    #[error(
        "compiled machine code (.cwasm) is only loaded from the host's own cache; use the .wasm \
         component"
    )]
    Precompiled,
    /// A core module.
    #[error("a core module is not a component; convert it with `wasm-tools component new`")]
    CoreModule,
    /// A file of another format.
    #[error("not a WebAssembly file")]
    NotWasm,
    /// WebAssembly that is malformed, or uses a feature that this host does not support.
    #[error("not a component that this host supports: {0}")]
    Invalid(wasmparser::Error),
    /// Compiled code that the engine did not load.
    #[error("failed to load the compiled component: {0:#}")]
    Load(Arc<wasmtime::Error>),
    /// An import from outside the contract.
    #[error("forbidden import `{0}`: policies may only import interfaces of `pointsman:policy`")]
    ForbiddenImport(String),
    /// An interface that only a later version of the contract has.
    #[error(
        "requires `{name}`, but this host implements {contract} {served}; use a newer host, or \
         build for {served}"
    )]
    NewerVersion {
        /// The interface.
        name: String,
        /// The contract that the interface belongs to.
        contract: &'static str,
        /// The versions that this host implements.
        served: String,
    },
    /// An interface of a version of the contract that this host does not implement.
    #[error(
        "requires `{name}`, which this host does not support: it implements {contract} {served}; \
         build for {served}"
    )]
    UnservedVersion {
        /// The interface.
        name: String,
        /// The contract that the interface belongs to.
        contract: &'static str,
        /// The versions that this host implements.
        served: String,
    },
    /// A missing export.
    #[error("missing required export `{name}` of a {guest}")]
    MissingExport {
        /// The export.
        name: String,
        /// The kind of component that has to export it.
        guest: &'static str,
    },
    /// An import of a middleware that is part of neither its contract nor WASI.
    #[error(
        "forbidden import `{0}`: a vLLM Router middleware may only import interfaces of `wasi:`"
    )]
    MiddlewareImport(String),
    /// A component that is above a limit.
    #[error(transparent)]
    TooLarge(#[from] SizeError),
    /// Validation that exceeded its time limit.
    #[error("validation took longer than {} s", .0.as_secs())]
    Slow(Duration),
    /// A component that was not compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A component whose types do not match the contract, although its names do.
    #[error("built for an incompatible contract version (host: {VERSION}): {0:#}")]
    Types(Arc<wasmtime::Error>),
}

/// The limit that a component exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    /// A number is above its maximum.
    Above {
        /// The things that are counted, in the plural.
        what: &'static str,
        /// The number that was found.
        found: u64,
        /// The maximum.
        max: u64,
    },
    /// Modules or components are imported, so the sizes are unknown.
    Unknown,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above { what, found, max } => {
                write!(f, "too many {what}: {found} (maximum: {max})")
            }
            Self::Unknown => f.write_str("imports modules or components, whose sizes are unknown"),
        }
    }
}

impl std::error::Error for SizeError {}

impl ComponentError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Precompiled
            | Self::CoreModule
            | Self::NotWasm
            | Self::Invalid(_)
            | Self::Load(_) => "component_invalid",
            Self::ForbiddenImport(_) | Self::MiddlewareImport(_) => "import_forbidden",
            Self::NewerVersion { .. } | Self::UnservedVersion { .. } | Self::Types(_) => {
                "contract_mismatch"
            }
            Self::MissingExport { .. } => "export_missing",
            Self::TooLarge(_) => "component_too_large",
            Self::Slow(_) => "validation_timeout",
            Self::Compile(error) => error.code(),
        }
    }
}

/// A linked component.
pub(crate) struct Loaded {
    pub(crate) linked: Linked,
    /// The SHA-256 in hexadecimal.
    pub(crate) digest: String,
    /// The interfaces that it imports, without package and version.
    pub(crate) imports: Vec<String>,
    /// Keeps the compiled code in the cache, for the next start of the host.
    _lease: Option<CacheLease>,
}

/// Scans, compiles (or takes from the cache), and links a component.
pub(crate) fn load(
    runtime: &Runtime,
    track: Track,
    bytes: &[u8],
) -> Result<Loaded, ComponentError> {
    let digest = hex(&Sha256::digest(bytes));
    // Even if the code is in the cache: the rules may have changed since it was compiled.
    let shape = scan::scan(bytes, track.contract())?;
    tracing::debug!(?shape, digest, "scanned component");
    let (component, lease) = compiled(runtime, bytes, &digest)?;
    Ok(Loaded {
        linked: link(runtime, track, &component)?,
        imports: shape.imports,
        digest,
        _lease: lease,
    })
}

/// Takes the compiled component from the cache, or validates and compiles it. Its bytes have been
/// [scanned](scan::scan).
pub(crate) fn compiled(
    runtime: &Runtime,
    bytes: &[u8],
    digest: &str,
) -> Result<(Component, Option<CacheLease>), ComponentError> {
    let cached = || {
        let cache = runtime.cache.as_ref()?;
        Some((cache.load(&runtime.engine, digest)?, Some(cache.lease(digest))))
    };
    if let Some(cached) = cached() {
        return Ok(cached);
    }
    scan::validate(bytes)?;
    let _guard = runtime.compiling.lock().unwrap_or_else(PoisonError::into_inner);
    // Another policy with the same component may have been compiled while this one waited.
    if let Some(cached) = cached() {
        return Ok(cached);
    }
    let code = runtime.compiler.compile(&runtime.engine, runtime.metering, bytes)?;
    let lease = runtime.cache.as_ref().map(|cache| {
        // Leased first, so that pruning does not remove what is stored.
        let lease = cache.lease(digest);
        cache.store(digest, &code);
        lease
    });
    let component = code.component(&runtime.engine);
    let component = component.map_err(|error| ComponentError::Load(Arc::new(error)))?;
    Ok((component, lease))
}

/// Links a compiled component, which checks the types of its imports and the names of its exports.
pub(crate) fn link(
    runtime: &Runtime,
    track: Track,
    component: &Component,
) -> Result<Linked, ComponentError> {
    check_size(component)?;
    runtime.abi.link(track, component).map_err(|error| ComponentError::Types(Arc::new(error)))
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

/// Returns `bytes` in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
