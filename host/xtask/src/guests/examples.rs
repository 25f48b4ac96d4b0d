//! The example policy in each language, and a policy of each template: complete folders, as a user would have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_build::{Language, RustRoute, Tools, new_policy, vendor};
use pointsman_xtask::folders_sha256;

use crate::command::{run, target_dir};
use crate::setup;

/// Where the example is.
const EXAMPLE: &str = "plugins/examples/team-lanes";
/// Where the templates are.
const TEMPLATES: &str = "host/crates/build/templates";
/// The types of the contract for Python's editors and native tests.
const PYTHON_BINDINGS: &str = "plugins/sdk/python/bindings";
/// What of them is kept: the rest of what the tool writes is for asynchronous worlds.
const BINDINGS: [&str; 2] = ["wit_world", "componentize_py_types.py"];
/// Beside each component: what it was built from.
const INPUTS: &str = ".inputs-sha256";

/// Build all of them into `out`; those whose inputs have not changed are left.
pub(super) fn build(root: &Path, route: RustRoute, out: &Path) -> Result<()> {
    let [python, node] = setup::guest_tools(root)?;
    let tools = Tools::from_environment()
        .with_folder(python)
        .with_folder(node)
        // Of its own: other flags than those of the tree's policies would make each of them build everything anew.
        .with_target_dir(target_dir()?.join("guests/new"));
    for language in Language::ALL {
        let folder = out.join(format!("team-lanes-{language}"));
        let own = [format!("{EXAMPLE}/{language}")];
        unless_fresh(root, language, &own, &folder, || {
            example(root, route, language, &folder, &tools)
        })?;
        // They are no part of the component.
        fs::copy(root.join(EXAMPLE).join("cases.jsonl"), folder.join("cases.jsonl"))?;
        let name = format!("new-{language}");
        let folder = out.join(&name);
        let own = ["common", language.name()].map(|part| format!("{TEMPLATES}/{part}"));
        unless_fresh(root, language, &own, &folder, || {
            new_policy(out, &name, language)?;
            build_folder(&folder, &tools)
        })?;
    }
    Ok(())
}

/// Make a folder anew, unless it was made of the same inputs.
fn unless_fresh(
    root: &Path,
    language: Language,
    own: &[String],
    folder: &Path,
    make: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let sdk = format!("plugins/sdk/{language}");
    let mut folders = vec![sdk.as_str(), "wit/0.1", "host/crates/build/src"];
    folders.extend(own.iter().map(String::as_str));
    let node = fs::read_to_string(root.join("tests/node/package.json"))?;
    let inputs = folders_sha256(root, &folders, &format!("{:?} {node}", setup::GUEST_WHEELS))?;
    let noted = folder.join(INPUTS);
    if fs::read_to_string(&noted).is_ok_and(|noted| noted == inputs)
        && folder.join("policy.wasm").exists()
    {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("{} cannot be replaced", folder.display()))?;
    }
    make().with_context(|| format!("{} cannot be built", folder.display()))?;
    fs::write(noted, inputs)?;
    Ok(())
}

fn example(
    root: &Path,
    route: RustRoute,
    language: Language,
    folder: &Path,
    tools: &Tools,
) -> Result<()> {
    let source = root.join(EXAMPLE).join(language.name());
    copy(&source, folder)?;
    if language != Language::Rust {
        vendor(folder, language)?;
        return build_folder(folder, tools);
    }
    // A crate of our workspace, whose lints and tests are those of all others.
    let component = super::rust_component(root, route, &format!("{EXAMPLE}/rust"))?;
    fs::write(folder.join("policy.wasm"), &component)?;
    println!("built {}: {} bytes", folder.display(), component.len());
    Ok(())
}

fn build_folder(folder: &Path, tools: &Tools) -> Result<()> {
    let built = pointsman_build::build(folder, tools, &mut |line| println!("{line}"))?;
    println!(
        "built {}: {} bytes in {} ms",
        built.component.display(),
        built.bytes,
        built.took.as_millis()
    );
    Ok(())
}

/// Copy a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Are the types that Python's SDK has those of the contract?
pub(super) fn check_python_bindings(root: &Path) -> Result<()> {
    let made = python_bindings(root)?;
    let digest = |folder: &Path| folders_sha256(folder, &["."], "");
    if digest(made.path())? != digest(&root.join(PYTHON_BINDINGS))? {
        bail!("{PYTHON_BINDINGS} is not what the contract says; run `cargo xtask guests`");
    }
    Ok(())
}

/// Write the types that Python's SDK has.
pub(super) fn write_python_bindings(root: &Path) -> Result<()> {
    let made = python_bindings(root)?;
    let folder = root.join(PYTHON_BINDINGS);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    copy(made.path(), &folder)
}

fn python_bindings(root: &Path) -> Result<tempfile::TempDir> {
    let [python, _] = setup::guest_tools(root)?;
    let (all, kept) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut command = Command::new(python.join("componentize-py"));
    command.arg("--wit-path").arg(root.join("wit/0.1")).args([
        "--world",
        "full-policy",
        "bindings",
    ]);
    run(command.arg(all.path()))?;
    for name in BINDINGS {
        let (from, to): (PathBuf, PathBuf) = (all.path().join(name), kept.path().join(name));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(kept)
}
