//! Converts core modules to components, and checks and writes components.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use pointsman_files::write_atomic;
use wit_component::{
    ComponentEncoder, DecodedWasm, StringEncoding, decode, embed_component_metadata,
};
use wit_parser::{Resolve, WorldItem};

use crate::embedded::WIT;
use crate::error::BuildError;
use crate::hooks::Hooks;

/// Maximum size of the output of a compiler in bytes; CPython's component has 18 MB.
pub(crate) const MAX_OUTPUT_BYTES: u64 = 256 << 20;
/// Prefix of the interfaces that a policy may import.
const PACKAGE: &str = "pointsman:policy/";

/// Converts a core module to a component. The module has to contain the types of its world, as
/// modules with Rust bindings do.
///
/// # Errors
/// Returns an error if the module does not match its world.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>, BuildError> {
    let component = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode());
    component.map_err(|error| {
        BuildError::Component(format!("failed to convert the module to a component: {error:#}"))
    })
}

/// Adds the types of the world with these hooks to a core module.
pub(crate) fn with_world(module: &[u8], hooks: &Hooks) -> Result<Vec<u8>, BuildError> {
    let fail = |error| {
        BuildError::Component(format!("failed to embed the contract in the module: {error:#}"))
    };
    let mut resolve = Resolve::default();
    let package = resolve.push_source("pointsman.wit", &contract(hooks)).map_err(fail)?;
    let world = resolve.select_world(&[package], Some(Hooks::WORLD)).map_err(fail)?;
    let mut module = module.to_vec();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).map_err(fail)?;
    Ok(module)
}

/// Returns the files of the contract as one WIT document, with the world of a component with these
/// hooks.
pub(crate) fn contract(hooks: &Hooks) -> String {
    let mut text = String::new();
    for (name, file) in WIT.iter().filter(|(name, _)| name.ends_with(".wit")) {
        // A document has one package statement; the text before it documents the package.
        let (_, rest) = file.split_once("package pointsman:policy@0.1.3;").unwrap_or(("", file));
        if text.is_empty() {
            text.push_str("package pointsman:policy@0.1.3;\n");
        }
        text.push_str(&format!("// {name}\n{rest}\n"));
    }
    text + &hooks.world()
}

/// Checks that a component imports only interfaces of the contract. The host would reject the
/// component too, but here the error can explain the cause.
pub(crate) fn check(bytes: &[u8]) -> Result<(), BuildError> {
    let decoded = decode(bytes).map_err(|error| {
        BuildError::Component(format!("the build result is not a component: {error:#}"))
    })?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(BuildError::Component(
            "the build result is a package of types, not a component".to_owned(),
        ));
    };
    for (key, item) in &resolve.worlds[world].imports {
        let name = resolve.name_world_key(key);
        if !name.starts_with(PACKAGE) && !matches!(item, WorldItem::Type { .. }) {
            return Err(BuildError::Component(format!(
                "the component imports `{name}`, which is not available to policies; policies \
                 have no clock, files or network and may only import from `pointsman:policy`"
            )));
        }
    }
    Ok(())
}

/// Writes the component, so that a host that watches the folder reads all of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    write_atomic(path, bytes, 0o644)
        .map_err(|error| BuildError::File { file: error.path, source: error.source })?;
    // Regardless of the umask, because the host may run as a different user.
    fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(BuildError::file(path))
}
