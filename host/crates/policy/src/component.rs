//! From the bytes of a file to a linked component, or a sentence that says why not.

use std::sync::PoisonError;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::abi::{Linked, Track, VERSION};
use crate::cache::Kept;
use crate::compile::CompileError;
use crate::runtime::{MOST_MEMORIES, MOST_MEMORY, MOST_TABLE_ELEMENTS, MOST_TABLES, Runtime};
use crate::scan;

/// Longest component. CPython's is 18.4 MB.
pub(crate) const MOST_BYTES: u64 = 32 << 20;
/// Bytes of a page of linear memory.
const PAGE: u64 = 64 << 10;

/// Why a file is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// Machine code, which is never taken from anybody.
    #[error(
        "it is compiled machine code (.cwasm), which is only ever loaded from the host's own cache; give the .wasm component"
    )]
    Precompiled,
    /// A module that nobody made a component of.
    #[error("it is a core module and no component; make one of it with `wasm-tools component new`")]
    CoreModule,
    /// Something else.
    #[error("it is no WebAssembly component that this host can run: {0}")]
    Invalid(String),
    /// An import from outside the contract.
    #[error(
        "it imports `{0}`, which policies may not use: everything a policy may ask for is in `pointsman:policy`"
    )]
    ForbiddenImport(String),
    /// An interface that only a later contract has.
    #[error(
        "it needs `{name}`, and this host has {contract} {served}; use a newer host, or build it for {served}"
    )]
    NewerVersion {
        /// The interface.
        name: String,
        /// What it belongs to.
        contract: &'static str,
        /// What we serve.
        served: String,
    },
    /// An interface of a contract that is no more, or was never released.
    #[error(
        "it needs `{name}`, which this host does not serve: it has {contract} {served}; build it for {served}"
    )]
    UnservedVersion {
        /// The interface.
        name: String,
        /// What it belongs to.
        contract: &'static str,
        /// What we serve.
        served: String,
    },
    /// An export is missing.
    #[error("it does not export `{name}`, which every {guest} has to")]
    MissingExport {
        /// The export.
        name: String,
        /// What has to have it.
        guest: &'static str,
    },
    /// An import that neither its contract nor WASI has.
    #[error(
        "it imports `{0}`, and a vLLM Router middleware may import interfaces of `wasi:` and no others"
    )]
    MiddlewareImport(String),
    /// Its shape is beyond the limits.
    #[error("it has {0}")]
    TooLarge(String),
    /// It is made to hold up whoever validates it.
    #[error("validating it took longer than {} s", .0.as_secs())]
    Slow(Duration),
    /// It could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Names fit, types do not.
    #[error("it was built for another contract than {VERSION}: {0}")]
    Types(String),
}

/// A loaded component and its digest in hexadecimal.
pub(crate) struct Loaded {
    pub(crate) linked: Linked,
    pub(crate) digest: String,
    /// Names of the interfaces that it imports, without package and version.
    pub(crate) imports: Vec<String>,
    /// Keeps the compiled code in the cache, for the next start.
    _kept: Option<Kept>,
}

/// Scan, compile (or take from the cache), and link a component.
pub(crate) fn load(
    runtime: &Runtime,
    track: Track,
    bytes: &[u8],
) -> Result<Loaded, ComponentError> {
    let digest = hex(&Sha256::digest(bytes));
    // Always, as the rules may have changed since the code in the cache was made.
    let shape = scan::look(bytes, track.contract())?;
    tracing::debug!(?shape, "the component {digest} is within the limits");
    let (component, kept) = compiled(runtime, bytes, &digest)?;
    Ok(Loaded {
        linked: link(runtime, track, &component)?,
        imports: shape.imports,
        digest,
        _kept: kept,
    })
}

/// The compiled component: from the cache, or validated and compiled now. Its bytes have been [looked at](scan::look).
pub(crate) fn compiled(
    runtime: &Runtime,
    bytes: &[u8],
    digest: &str,
) -> Result<(Component, Option<Kept>), ComponentError> {
    let cached = || {
        let cache = runtime.cache.as_ref()?;
        Some((cache.load(&runtime.engine, digest)?, Some(cache.keep(digest))))
    };
    if let Some(cached) = cached() {
        return Ok(cached);
    }
    scan::validate(bytes)?;
    let _turn = runtime.compiling.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever had the turn before may have compiled the same.
    if let Some(cached) = cached() {
        return Ok(cached);
    }
    let code = runtime.compiler.compile(&runtime.engine, runtime.metering, bytes)?;
    let kept = runtime.cache.as_ref().map(|cache| {
        let kept = cache.keep(digest);
        cache.store(digest, &code);
        kept
    });
    let component = code.component(&runtime.engine);
    let component = component.map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
    Ok((component, kept))
}

/// Link a compiled component; all names and types are checked here.
pub(crate) fn link(
    runtime: &Runtime,
    track: Track,
    component: &Component,
) -> Result<Linked, ComponentError> {
    check_size(component)?;
    runtime.abi.link(track, component).map_err(|error| ComponentError::Types(format!("{error:#}")))
}

/// What only the compiler knows: needs of instances, and a module may have many. The limits are those of the scan, which
/// sees modules.
fn check_size(component: &Component) -> Result<(), ComponentError> {
    let Some(needs) = component.resources_required() else {
        return Err(ComponentError::TooLarge(
            "imports of modules or components, whose needs are not known".into(),
        ));
    };
    let memory = needs.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE);
    let elements = needs.max_initial_table_size.unwrap_or(0);
    let problem = if needs.num_memories > MOST_MEMORIES {
        format!("{} memories, and {MOST_MEMORIES} are the limit", needs.num_memories)
    } else if needs.num_tables > MOST_TABLES {
        format!("{} tables, and {MOST_TABLES} are the limit", needs.num_tables)
    } else if memory > MOST_MEMORY {
        format!("a memory of {memory} bytes from the start, and {MOST_MEMORY} are the limit")
    } else if elements > MOST_TABLE_ELEMENTS as u64 {
        format!("a table of {elements} elements, and {MOST_TABLE_ELEMENTS} are the limit")
    } else {
        return Ok(());
    };
    Err(ComponentError::TooLarge(problem))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
