//! Building policies from source.
//!
//! Those in `policies/` are written in Rust, and their components are kept in the tree. The example in four languages and the
//! templates for new policies are built for the tests only.

mod examples;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_build::{DEBIAN_PACKAGES, RustRoute, TARGET, componentize, rust_module};
use pointsman_xtask::{guest_inputs_sha256, sha256};

use crate::command::{output, target_dir};
use crate::setup;

/// A policy that is built from a folder of ours.
struct Guest {
    manifest: PathBuf,
    name: String,
    source: String,
    api: String,
}

/// Build all policies and write them, with their hashes, to where the host loads them from.
pub(crate) fn rebuild(root: &Path) -> Result<()> {
    let out = target_dir()?.join("guests").join("components");
    for (guest, component) in build_policies(root, route()?, &out)? {
        let bytes = fs::read(&component)?;
        let folder = guest.manifest.parent().context("a manifest has a folder")?;
        fs::write(folder.join("policy.wasm"), &bytes)?;
        let inputs = guest_inputs_sha256(root, &guest.source, &guest.api)?;
        let text = fs::read_to_string(&guest.manifest)?;
        fs::write(&guest.manifest, with_hashes(&text, &inputs, &sha256(&bytes))?)?;
        println!("{}: {} bytes", folder.join("policy.wasm").display(), bytes.len());
    }
    examples::write_python_bindings(root)
}

/// Build everything into `out`: the policies as `NAME.wasm`, the example in each language as the folder
/// `team-lanes-LANGUAGE`, and a new policy of each template as `new-LANGUAGE`.
pub(crate) fn build_all(root: &Path, out: &Path) -> Result<()> {
    let route = route()?;
    build_policies(root, route, out)?;
    examples::check_python_bindings(root)?;
    examples::build(root, route, out)
}

fn build_policies(root: &Path, route: RustRoute, out: &Path) -> Result<Vec<(Guest, PathBuf)>> {
    fs::create_dir_all(out)?;
    let mut built = Vec::new();
    for guest in guests(root)? {
        let component = out.join(format!("{}.wasm", guest.name));
        fs::write(&component, rust_component(root, route, &guest.source)?)?;
        println!("built {}: {} bytes", component.display(), fs::metadata(&component)?.len());
        built.push((guest, component));
    }
    Ok(built)
}

/// All policies whose manifests name a source of ours.
fn guests(root: &Path) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for entry in fs::read_dir(root.join("policies")).context("policies/ cannot be read")? {
        let manifest = entry?.path().join("policy.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        let Some(source) = value(&text, "source") else { continue };
        let name = value(&text, "name")
            .with_context(|| format!("{}: there is no `name`", manifest.display()))?;
        let api = value(&text, "api")
            .with_context(|| format!("{}: there is no `api`", manifest.display()))?;
        guests.push(Guest { manifest, name, source, api });
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(guests)
}

/// The value of a line `key = "value"`.
fn value(text: &str, key: &str) -> Option<String> {
    let line =
        text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// The manifest with these hashes, and otherwise as it was.
fn with_hashes(text: &str, inputs: &str, component: &str) -> Result<String> {
    let mut found = 0;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let hash = [("inputs-sha256", inputs), ("component-sha256", component)];
        match hash.into_iter().find(|(key, _)| line.starts_with(key)) {
            Some((key, hash)) => {
                found += 1;
                lines.push(format!("{key} = \"{hash}\""));
            }
            None => lines.push(line.to_owned()),
        }
    }
    if found != 2 {
        bail!(
            "the manifest has no lines `inputs-sha256 = \"\"` and `component-sha256 = \"\"` under [build]"
        );
    }
    Ok(lines.join("\n") + "\n")
}

/// How Rust's compiler for the target is had; what is missing is installed where we may.
fn route() -> Result<RustRoute> {
    // What is there already first: asking rustup may mean waiting for a network that is not.
    if let Some(route) = RustRoute::find() {
        return Ok(route);
    }
    println!("the Rust target {TARGET} is missing; trying `rustup target add {TARGET}`");
    let added =
        output(Command::new("timeout").args(["120", "rustup", "target", "add", TARGET])).is_some();
    if !added || RustRoute::find().is_none() {
        println!("that did not work; taking Debian's compiler for WebAssembly");
        setup::debian_install(&DEBIAN_PACKAGES)?;
    }
    RustRoute::find().with_context(|| format!("there is no Rust compiler for {TARGET}"))
}

/// The component of a crate in our tree.
fn rust_component(root: &Path, route: RustRoute, source: &str) -> Result<Vec<u8>> {
    let target = target_dir()?.join("guests");
    let module =
        rust_module(route, &root.join(source), root, &target, &mut |line| println!("{line}"))?;
    Ok(componentize(&module)?)
}
