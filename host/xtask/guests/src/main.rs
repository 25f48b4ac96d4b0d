//! Builds policies from source, for `cargo xtask guests` and `cargo xtask test`.
//!
//! The policies in `policies/` are written in Rust, and their components are checked in. The
//! example in four languages and the templates are built for tests only.
//!
//! This is a program of its own so that `cargo xtask demo` does not compile the WIT toolchain.

mod contract;
mod examples;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use pointsman_build::{DEBIAN_PACKAGES, RustRoute, TARGET, componentize, rust_module};
use pointsman_xtask::command::{output, root, target_dir};
use pointsman_xtask::{guest_inputs_sha256, setup, sha256};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root = root()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => rebuild(&root),
        ["--out", out] => build_all(&root, Path::new(out)),
        ["contract"] => contract::write(&root),
        ["contract", "--check"] => contract::check(&root),
        _ => bail!("unknown arguments; expected none, `--out DIR`, or `contract [--check]`"),
    }
}

/// A policy that is built from the source tree.
struct Guest {
    manifest: PathBuf,
    name: String,
    source: String,
    api: String,
}

/// Builds all policies and writes the components and their digests to `policies/`.
fn rebuild(root: &Path) -> Result<()> {
    let out = target_dir()?.join("guests").join("components");
    for (guest, component) in build_policies(root, route()?, &out)? {
        let bytes = fs::read(&component)?;
        let folder = guest.manifest.parent().context("manifest has no parent folder")?;
        fs::write(folder.join("policy.wasm"), &bytes)?;
        let inputs = guest_inputs_sha256(root, &guest.source, &guest.api)?;
        let text = fs::read_to_string(&guest.manifest)?;
        fs::write(&guest.manifest, with_digests(&text, &inputs, &sha256(&bytes))?)?;
        println!("{}: {} bytes", folder.join("policy.wasm").display(), bytes.len());
    }
    examples::write_python_bindings(root)
}

/// Builds everything into `out`: the policies as `NAME.wasm`, the example in each language as
/// folder `team-lanes-LANGUAGE`, and a new policy from each template as folder `new-LANGUAGE`.
fn build_all(root: &Path, out: &Path) -> Result<()> {
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

/// Returns all policies whose manifests have a source.
fn guests(root: &Path) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for entry in fs::read_dir(root.join("policies")).context("failed to read policies/")? {
        let manifest = entry?.path().join("policy.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        let Some(source) = value(&text, "source") else { continue };
        let name = value(&text, "name")
            .with_context(|| format!("{}: `name` is required", manifest.display()))?;
        let api = value(&text, "api")
            .with_context(|| format!("{}: `api` is required", manifest.display()))?;
        guests.push(Guest { manifest, name, source, api });
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(guests)
}

/// Returns the value of the line `key = "value"`.
fn value(text: &str, key: &str) -> Option<String> {
    let line =
        text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// Returns the manifest with these digests.
fn with_digests(text: &str, inputs: &str, component: &str) -> Result<String> {
    let mut found = 0;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let digests = [("inputs-sha256", inputs), ("component-sha256", component)];
        match digests.into_iter().find(|(key, _)| line.starts_with(key)) {
            Some((key, digest)) => {
                found += 1;
                lines.push(format!("{key} = \"{digest}\""));
            }
            None => lines.push(line.to_owned()),
        }
    }
    if found != 2 {
        bail!(
            "manifest: expected the lines `inputs-sha256 = \"\"` and `component-sha256 = \"\"` in \
             [build]"
        );
    }
    Ok(lines.join("\n") + "\n")
}

/// Returns the compiler for the target, and installs one if there is none.
fn route() -> Result<RustRoute> {
    // Check for an installed compiler first: without a network, rustup waits for a timeout.
    if let Some(route) = RustRoute::find() {
        return Ok(route);
    }
    println!("the Rust target {TARGET} is not installed; running `rustup target add {TARGET}`");
    let added =
        output(Command::new("timeout").args(["120", "rustup", "target", "add", TARGET])).is_some();
    if !added || RustRoute::find().is_none() {
        println!("failed to add the target; installing Debian's compiler for WebAssembly");
        setup::debian_install(&DEBIAN_PACKAGES)?;
    }
    RustRoute::find().with_context(|| format!("no Rust compiler for {TARGET}"))
}

/// Builds the component of a crate in the workspace.
fn rust_component(root: &Path, route: RustRoute, source: &str) -> Result<Vec<u8>> {
    let target = target_dir()?.join("guests");
    let module =
        rust_module(route, &root.join(source), root, &target, &mut |line| println!("{line}"))?;
    Ok(componentize(&module)?)
}
