//! From the bytes of a file to a linked component, or a sentence that says why not.

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::abi::{Linked, PACKAGE, REQUIRED_EXPORTS, Track, VERSION, vllm_middleware};
use crate::runtime::{MOST_MEMORIES, MOST_MEMORY, MOST_TABLE_ELEMENTS, MOST_TABLES, Runtime};

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
    #[error("it is no WebAssembly component: {0}")]
    Invalid(String),
    /// An import from outside the contract.
    #[error(
        "it imports `{0}`, which policies may not use: everything a policy may ask for is in `pointsman:policy`"
    )]
    ForbiddenImport(String),
    /// An import that only a later contract has.
    #[error(
        "it needs `{import}`, and this host has policy API {VERSION}; use a newer host, or build it for {VERSION}"
    )]
    NewerImport {
        /// The import.
        import: String,
    },
    /// An export is missing.
    #[error("it does not export `pointsman:policy/{0}`, which every policy has to")]
    MissingExport(&'static str),
    /// An import that neither its contract nor WASI has.
    #[error("it imports `{0}`, and a vLLM Router middleware may import interfaces of `wasi:` and no others")]
    MiddlewareImport(String),
    /// It is no middleware.
    #[error("its manifest says that it is a vLLM Router middleware, and it does not export `{0}`")]
    NoMiddleware(&'static str),
    /// Its shape is beyond the limits.
    #[error("it has {0}")]
    TooLarge(String),
    /// Names fit, types do not.
    #[error("it was built for another contract than {VERSION}: {0}")]
    Types(String),
}

/// A loaded component and its digest in hexadecimal.
pub(crate) struct Loaded {
    pub(crate) linked: Linked,
    pub(crate) digest: String,
}

/// Compile (or take from the cache), check and link a component.
pub(crate) fn load(runtime: &Runtime, track: Track, bytes: &[u8]) -> Result<Loaded, ComponentError> {
    let digest = hex(&Sha256::digest(bytes));
    let cached = runtime.cache.as_ref().and_then(|cache| cache.load(&runtime.engine, &digest));
    let component = match cached {
        Some(component) => component,
        None => compile(runtime, bytes, &digest)?,
    };
    match track {
        Track::V0_1 => check_names(&runtime.engine, &component)?,
        Track::VllmMiddleware => vllm_middleware::check_names(&runtime.engine, &component)?,
    }
    check_size(&component)?;
    let linked =
        runtime.abi.link(track, &component).map_err(|error| ComponentError::Types(format!("{error:#}")))?;
    Ok(Loaded { linked, digest })
}

fn compile(runtime: &Runtime, bytes: &[u8], digest: &str) -> Result<Component, ComponentError> {
    if Engine::detect_precompiled(bytes).is_some() {
        return Err(ComponentError::Precompiled);
    }
    // The header of a core module and of a component differ in the layer field (component-model, Binary.md).
    match bytes.get(..8) {
        Some(b"\0asm\x01\0\0\0") => return Err(ComponentError::CoreModule),
        Some(header) if header.starts_with(b"\0asm") => {}
        _ => return Err(ComponentError::Invalid("it does not begin as WebAssembly does".into())),
    }
    let component = Component::from_binary(&runtime.engine, bytes);
    let component = component.map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
    if let Some(cache) = &runtime.cache
        && let Ok(code) = component.serialize()
    {
        cache.store(digest, &code);
    }
    Ok(component)
}

fn check_names(engine: &Engine, component: &Component) -> Result<(), ComponentError> {
    let kind = component.component_type();
    for (import, _) in kind.imports(engine) {
        let Some(rest) = import.strip_prefix(PACKAGE) else {
            return Err(ComponentError::ForbiddenImport(import.to_owned()));
        };
        let version = rest.split_once('@').map_or("", |(_, version)| version);
        if newer(version) {
            return Err(ComponentError::NewerImport { import: import.to_owned() });
        }
    }
    for required in REQUIRED_EXPORTS {
        let is_it = |export: &str| {
            export
                .strip_prefix(PACKAGE)
                .and_then(|rest| rest.strip_prefix(required))
                .is_some_and(|rest| rest.starts_with('@'))
        };
        if !kind.exports(engine).any(|(export, _)| is_it(export)) {
            return Err(ComponentError::MissingExport(required));
        }
    }
    Ok(())
}

/// Is `version` one that this host is too old for? Within a track, a later version may have what we do not.
fn newer(version: &str) -> bool {
    let numbers = |version: &str| -> Option<Vec<u64>> {
        version.split('.').map(|number| number.parse().ok()).collect()
    };
    match (numbers(version), numbers(VERSION)) {
        (Some(theirs), Some(ours)) => theirs > ours,
        _ => true,
    }
}

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

#[cfg(test)]
mod tests {
    use super::newer;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, is_newer) in [
            ("0.1.0", false),
            ("0.0.9", false),
            ("0.1.1", true),
            ("0.1.10", true),
            ("1.0.0", true),
            ("x", true),
        ] {
            assert_eq!(newer(version), is_newer, "{version}");
        }
    }
}
