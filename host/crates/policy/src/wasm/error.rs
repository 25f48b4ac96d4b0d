//! Errors that make a file unusable as the component of a policy.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::contract_version::VERSION;
use crate::wasm::compile::error::CompileError;

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
