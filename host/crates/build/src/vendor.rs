//! Copies the contract and an SDK to a policy's folder, so that the policy can be built on any
//! machine and builds the same way after an update of this program.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::c;
use crate::embedded::{WIT, WORKSPACE, sdk};
use crate::error::BuildError;
use crate::hooks::Hooks;
use crate::language::Language;

/// Path of the contract relative to the Rust SDK, in the project and in a policy's folder.
const CONTRACT_PATHS: (&str, &str) = ("../../../wit/0.1", "../wit");

/// Writes `wit/` and `sdk/` to `folder` and replaces existing ones.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub fn vendor(folder: &Path, language: Language) -> Result<(), BuildError> {
    for name in ["wit", "sdk"] {
        let old = folder.join(name);
        if old.exists() {
            fs::remove_dir_all(&old).map_err(BuildError::file(&old))?;
        }
    }
    write_contract(&folder.join("wit"))?;
    for (name, text) in sdk(language).iter().filter(|(name, _)| is_needed(name)) {
        let text = match (language, *name) {
            (Language::Rust, "Cargo.toml") => standalone(text)?,
            (Language::Rust, _) => text.replace(CONTRACT_PATHS.0, CONTRACT_PATHS.1),
            _ => (*text).to_owned(),
        };
        write(&folder.join("sdk").join(name), &text)?;
    }
    if language == Language::C {
        // For editors; a build generates its own.
        fs::create_dir_all(folder.join(".build")).map_err(BuildError::file(folder))?;
        c::write_bindings(&folder.join(".build"), &Hooks::default())?;
    }
    Ok(())
}

/// Writes the files of the contract to `folder`.
pub(crate) fn write_contract(folder: &Path) -> Result<(), BuildError> {
    for (name, text) in WIT.iter().filter(|(name, _)| name.ends_with(".wit")) {
        write(&folder.join(name), text)?;
    }
    Ok(())
}

/// Returns false for the tests of an SDK, which policies do not need.
fn is_needed(name: &str) -> bool {
    !name.starts_with("test/") && !name.starts_with("tests/")
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(BuildError::file(folder))?;
    }
    fs::write(path, text).map_err(BuildError::file(path))
}

/// Returns the manifest of a crate with all values inherited from the workspace written out.
fn standalone(manifest: &str) -> Result<String, BuildError> {
    let parse = |text: &str| -> Result<Table, BuildError> {
        toml::from_str(text).map_err(|error| {
            BuildError::Usage(format!("invalid manifest of the Rust SDK: {error}"))
        })
    };
    let (mut crate_, workspace) = (parse(manifest)?, parse(WORKSPACE)?);
    let inherited =
        workspace.get("workspace").and_then(Value::as_table).cloned().unwrap_or_default();
    let section =
        |name: &str| inherited.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
    if let Some(package) = crate_.get_mut("package").and_then(Value::as_table_mut) {
        write_out(package, &section("package"));
    }
    if let Some(dependencies) = crate_.get_mut("dependencies").and_then(Value::as_table_mut) {
        write_out(dependencies, &section("dependencies"));
    }
    // The tests of the SDK are not copied, so their dependencies are not needed.
    crate_.remove("dev-dependencies");
    crate_.remove("lints");
    Ok(format!("# The Rust SDK of Pointsman, as `pointsman policy new` wrote it.\n{crate_}"))
}

/// Replaces `key = { workspace = true, … }` by the value of the workspace.
fn write_out(table: &mut Table, inherited: &Table) {
    for (key, value) in table.iter_mut() {
        let Some(own) = value.as_table().filter(|own| own.contains_key("workspace")) else {
            continue;
        };
        let Some(source) = inherited.get(key) else { continue };
        let more: Table = own.iter().filter(|(key, _)| *key != "workspace").map(clone).collect();
        *value = match source {
            Value::Table(source) => Value::Table(source.iter().map(clone).chain(more).collect()),
            plain if more.is_empty() => plain.clone(),
            plain => Value::Table(
                [("version".to_owned(), plain.clone())].into_iter().chain(more).collect(),
            ),
        };
    }
}

fn clone((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_sdk_does_not_depend_on_the_workspace() {
        let dir = tempfile::tempdir().unwrap();
        vendor(dir.path(), Language::Rust).unwrap();
        let manifest = fs::read_to_string(dir.path().join("sdk/Cargo.toml")).unwrap();
        assert!(!manifest.contains("workspace"), "{manifest}");
        let bindings = fs::read_to_string(dir.path().join("sdk/src/generated.rs")).unwrap();
        assert!(
            bindings.contains("\"../wit\"") && !bindings.contains("../../../wit"),
            "{bindings}"
        );
        assert!(dir.path().join("wit/policy.wit").exists());
    }
}
