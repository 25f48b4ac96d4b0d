//! From a core module to a component, and from that to a file.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use wit_component::{
    ComponentEncoder, DecodedWasm, StringEncoding, decode, embed_component_metadata,
};
use wit_parser::{Resolve, WorldItem};

use crate::BuildError;
use crate::embedded::WIT;

/// The package whose interfaces a policy may import.
const PACKAGE: &str = "pointsman:policy/";

/// Make a component of a core module that carries the types of its world, as Rust's bindings put them in.
///
/// # Errors
/// When the module does not fit its world.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>, BuildError> {
    let mut encoder = ComponentEncoder::default();
    let component = encoder.validate(true).module(module).and_then(|encoder| encoder.encode());
    component.map_err(|error| {
        BuildError::Component(format!(
            "the module that was built cannot be made a component: {error:#}"
        ))
    })
}

/// Put the types of a world into a core module that does not carry them.
pub(crate) fn with_world(module: &[u8], world: &str) -> Result<Vec<u8>, BuildError> {
    let fail = |error| {
        BuildError::Component(format!("the contract cannot be put into the module: {error:#}"))
    };
    let mut resolve = Resolve::default();
    let package = resolve.push_source("pointsman.wit", &contract()).map_err(fail)?;
    let world = resolve.select_world(&[package], Some(world)).map_err(fail)?;
    let mut module = module.to_vec();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)
        .map_err(fail)?;
    Ok(module)
}

/// The contract's files as one text.
pub(crate) fn contract() -> String {
    let mut text = String::new();
    for (name, file) in WIT.iter().filter(|(name, _)| name.ends_with(".wit")) {
        // One package statement is allowed, and the text before it documents the package.
        let (_, rest) = file.split_once("package pointsman:policy@0.1.0;").unwrap_or(("", file));
        if text.is_empty() {
            text.push_str("package pointsman:policy@0.1.0;\n");
        }
        text.push_str(&format!("// {name}\n{rest}\n"));
    }
    text
}

/// Does a component import nothing but what the contract offers? The host would refuse it; here it is known why.
pub(crate) fn check(bytes: &[u8]) -> Result<(), BuildError> {
    let decoded = decode(bytes).map_err(|error| {
        BuildError::Component(format!("what was built is no component: {error:#}"))
    })?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(BuildError::Component(
            "what was built is a package of types, not a component".to_owned(),
        ));
    };
    for (key, item) in &resolve.worlds[world].imports {
        let name = resolve.name_world_key(key);
        if !name.starts_with(PACKAGE) && !matches!(item, WorldItem::Type { .. }) {
            return Err(BuildError::Component(format!(
                "the component imports `{name}`, which policies may not use: there is no clock, no file and no network, \
                 and everything a policy may ask for is in `pointsman:policy`"
            )));
        }
    }
    Ok(())
}

/// Write a file in one step.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".policy-")
        .suffix(".tmp")
        .tempfile_in(folder)
        .map_err(BuildError::file(folder))?;
    file.write_all(bytes).map_err(BuildError::file(path))?;
    file.as_file().sync_all().map_err(BuildError::file(path))?;
    let file = file.persist(path).map_err(|error| BuildError::file(path)(error.error))?;
    // Temporary files are their owner's alone, and a host may run as somebody else.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(BuildError::file(path))?;
    drop(file);
    debug_assert!(fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64));
    Ok(())
}
