//! Builds the example policy in each language, a policy from each template, and policies that fail,
//! as complete policy folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_build::{Language, RustRoute, Tools, new_policy, vendor};
use pointsman_xtask::command::{run, target_dir};
use pointsman_xtask::{folders_sha256, setup};

/// Folder of the example.
const EXAMPLE: &str = "plugins/examples/team-lanes";
/// Folder of the templates.
const TEMPLATES: &str = "host/crates/build/templates";
/// Folder of the generated Python types of the contract, for editors and native tests.
const PYTHON_BINDINGS: &str = "plugins/sdk/python/bindings";
/// The generated files that are kept. The others are for asynchronous worlds.
const BINDINGS: [&str; 2] = ["wit_world", "componentize_py_types.py"];
/// Folder of the sources of policies that fail.
const BROKEN: &str = "tests/broken";
/// The policies that fail, with their sources in [`BROKEN`] and in the folder of the policy.
const BROKEN_POLICIES: [(&str, Language, &str); 5] = [
    ("broken-javascript", Language::JavaScript, "policy.js"),
    ("broken-typescript", Language::JavaScript, "policy.ts"),
    ("broken-python", Language::Python, "policy.py"),
    ("broken-rust", Language::Rust, "lib.rs"),
    ("broken-c", Language::C, "policy.c"),
];
/// File next to each component, with the digest of its inputs.
const INPUTS: &str = ".inputs-sha256";

/// Builds all examples and templates into `out`, except those whose inputs have not changed.
pub(super) fn build(root: &Path, route: RustRoute, out: &Path) -> Result<()> {
    let [python, node] = setup::guest_tools(root)?;
    let tools = Tools::from_environment()
        .with_folder(python)
        .with_folder(node)
        // A separate target folder: the compiler flags differ from those of the other policies, and
        // alternating between them would rebuild everything.
        .with_target_dir(target_dir()?.join("guests/new"));
    for language in Language::ALL {
        let folder = out.join(format!("team-lanes-{language}"));
        let own = [format!("{EXAMPLE}/{language}")];
        build_if_stale(root, language, &own, &folder, || {
            example(root, route, language, &folder, &tools)
        })?;
        // Golden cases are not an input of the component, so they are always copied.
        fs::copy(root.join(EXAMPLE).join("cases.jsonl"), folder.join("cases.jsonl"))?;
        let name = format!("new-{language}");
        let folder = out.join(&name);
        let own = ["common", language.name()].map(|part| format!("{TEMPLATES}/{part}"));
        build_if_stale(root, language, &own, &folder, || {
            new_policy(out, &name, language)?;
            build_folder(&folder, &tools)
        })?;
    }
    for (name, language, source) in BROKEN_POLICIES {
        let folder = out.join(name);
        let own = [BROKEN.to_owned(), format!("{TEMPLATES}/{language}")];
        build_if_stale(root, language, &own, &folder, || {
            new_policy(out, name, language)?;
            break_policy(root, &folder, language, source)?;
            build_folder(&folder, &tools)
        })?;
    }
    Ok(())
}

/// Replaces the source of a new policy by one that fails.
fn break_policy(root: &Path, folder: &Path, language: Language, source: &str) -> Result<()> {
    fs::copy(root.join(BROKEN).join(source), folder.join("src").join(source))?;
    fs::remove_file(folder.join("cases.jsonl"))?;
    let manifest = folder.join("policy.toml");
    let mut text = fs::read_to_string(&manifest)?.replace("policy.js", source);
    if matches!(language, Language::JavaScript | Language::Python) {
        text = text.replace(
            "[build]",
            "[build]\nhooks = [\"on-failure\", \"on-complete\", \"on-outcome\", \"on-tick\"]",
        );
    }
    fs::write(manifest, text)?;
    Ok(())
}

/// Rebuilds a folder, unless it was built from the same inputs.
fn build_if_stale(
    root: &Path,
    language: Language,
    own: &[String],
    folder: &Path,
    build: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let sdk = format!("plugins/sdk/{language}");
    let mut folders = vec![sdk.as_str(), "wit/0.1", "host/crates/build/src"];
    folders.extend(own.iter().map(String::as_str));
    let node = fs::read_to_string(root.join("tests/node/package.json"))?;
    let inputs = folders_sha256(root, &folders, &format!("{:?} {node}", setup::GUEST_WHEELS))?;
    let inputs_file = folder.join(INPUTS);
    if fs::read_to_string(&inputs_file).is_ok_and(|previous| previous == inputs)
        && folder.join("policy.wasm").exists()
    {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("failed to remove {}", folder.display()))?;
    }
    build().with_context(|| format!("failed to build {}", folder.display()))?;
    fs::write(inputs_file, inputs)?;
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
    // The Rust example is a crate of the workspace, so that the lints and tests cover it.
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

/// Copies a folder recursively.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
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

/// Checks that the Python bindings in the SDK match the contract.
pub(super) fn check_python_bindings(root: &Path) -> Result<()> {
    let generated = python_bindings(root)?;
    let digest = |folder: &Path| folders_sha256(folder, &["."], "");
    if digest(generated.path())? != digest(&root.join(PYTHON_BINDINGS))? {
        bail!("{PYTHON_BINDINGS} does not match the contract; run `cargo xtask guests`");
    }
    Ok(())
}

/// Writes the Python bindings of the SDK.
pub(super) fn write_python_bindings(root: &Path) -> Result<()> {
    let generated = python_bindings(root)?;
    let folder = root.join(PYTHON_BINDINGS);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    copy(generated.path(), &folder)
}

fn python_bindings(root: &Path) -> Result<tempfile::TempDir> {
    let [python, _] = setup::guest_tools(root)?;
    let (all, kept) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut command = Command::new(python.join("componentize-py"));
    command.arg("--wit-path").arg(root.join("wit/0.1")).args([
        "--world",
        "complete-policy",
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
