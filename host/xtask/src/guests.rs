//! Building policies from source.
//!
//! A Rust guest is a `wasm32-unknown-unknown` module, made into a component. On a machine with rustup the target is added;
//! where it cannot be, Debian's own compiler builds the standard library from source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::{guest_inputs_sha256, sha256};
use wit_component::ComponentEncoder;

use crate::command::{cargo, output, run, target_dir};
use crate::setup;

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm", "libstd-rust-web-dev"];

/// A policy that is built from a folder of ours.
pub(crate) struct Guest {
    manifest: PathBuf,
    name: String,
    source: String,
    api: String,
}

/// How the compiler for the target is had.
enum Route {
    /// The toolchain that runs us knows the target.
    Toolchain,
    /// Debian's compiler, with the standard library from source.
    Debian,
}

/// Build all policies and write them, with their hashes, to where the host loads them from.
pub(crate) fn rebuild(root: &Path) -> Result<()> {
    let out = target_dir()?.join("guests").join("components");
    for (guest, component) in build_all(root, &out)? {
        let bytes = fs::read(&component)?;
        let folder = guest.manifest.parent().context("a manifest has a folder")?;
        fs::write(folder.join("policy.wasm"), &bytes)?;
        let inputs = guest_inputs_sha256(root, &guest.source, &guest.api)?;
        let text = fs::read_to_string(&guest.manifest)?;
        fs::write(&guest.manifest, with_hashes(&text, &inputs, &sha256(&bytes))?)?;
        println!("{}: {} bytes", folder.join("policy.wasm").display(), bytes.len());
    }
    Ok(())
}

/// Build all policies into `out`, as `NAME.wasm`.
pub(crate) fn build_all(root: &Path, out: &Path) -> Result<Vec<(Guest, PathBuf)>> {
    let guests = guests(root)?;
    let route = route()?;
    fs::create_dir_all(out)?;
    let mut built = Vec::new();
    for guest in guests {
        let module = build(root, &route, &guest)?;
        let component = out.join(format!("{}.wasm", guest.name));
        fs::write(&component, componentize(&module)?)?;
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
        let name =
            value(&text, "name").with_context(|| format!("{}: there is no `name`", manifest.display()))?;
        let api =
            value(&text, "api").with_context(|| format!("{}: there is no `api`", manifest.display()))?;
        guests.push(Guest { manifest, name, source, api });
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(guests)
}

/// The value of a line `key = "value"`.
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
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
        bail!("the manifest has no lines `inputs-sha256 = \"\"` and `component-sha256 = \"\"` under [build]");
    }
    Ok(lines.join("\n") + "\n")
}

fn route() -> Result<Route> {
    let has_target = || {
        let libdir = output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]));
        libdir.is_some_and(|dir| fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some()))
    };
    if has_target() {
        return Ok(Route::Toolchain);
    }
    // Debian's compiler first where it is there already: asking rustup may mean waiting for a network that is not.
    if !setup::debian_has(&DEBIAN_PACKAGES) {
        println!("the Rust target {TARGET} is missing; trying `rustup target add {TARGET}`");
        if output(Command::new("timeout").args(["120", "rustup", "target", "add", TARGET])).is_some()
            && has_target()
        {
            return Ok(Route::Toolchain);
        }
        println!("that did not work; taking Debian's compiler for WebAssembly");
        setup::debian_install(&DEBIAN_PACKAGES)?;
    }
    Ok(Route::Debian)
}

/// The core module of a guest.
fn build(root: &Path, route: &Route, guest: &Guest) -> Result<Vec<u8>> {
    let target = target_dir()?.join("guests");
    let manifest = Path::new(&guest.source).join("Cargo.toml");
    let mut command = match route {
        Route::Toolchain => cargo(root)?,
        Route::Debian => debian_cargo(root)?,
    };
    command
        .args(["build", "--quiet", "--lib", "--profile", "guest", "--target", TARGET, "--manifest-path"])
        .arg(&manifest);
    // Nothing of the builder's machine gets into the component.
    let home = std::env::var("HOME").unwrap_or_default();
    let mut flags = format!("--remap-path-prefix={}=/src --remap-path-prefix={home}=/home", root.display());
    if matches!(route, Route::Debian) {
        command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]);
        // A panic of a guest is a trap; nobody reads its message, so it need not be in there.
        flags.push_str(" -Zlocation-detail=none -Zfmt-debug=none -Zunstable-options -Cpanic=immediate-abort");
    }
    run(command.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", flags))?;
    let text = fs::read_to_string(root.join(&manifest))?;
    let package = value(&text, "name").context("the guest's Cargo.toml has no name")?.replace('-', "_");
    let module = target.join(TARGET).join("guest").join(format!("{package}.wasm"));
    fs::read(&module).with_context(|| format!("{} cannot be read", module.display()))
}

/// Debian's cargo and compiler, which is told to build what only nightly ones are usually asked for.
fn debian_cargo(root: &Path) -> Result<Command> {
    let mut command = Command::new("/usr/bin/cargo");
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .current_dir(root)
        .env("PATH", format!("/usr/bin:{path}"))
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker()?)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER");
    Ok(command)
}

/// A linker for WebAssembly: the one that every Rust toolchain brings along.
fn linker() -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))
        .context("`rustc --print sysroot` failed")?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))
        .context("`rustc --print host-tuple` failed")?;
    let linker = PathBuf::from(sysroot).join("lib/rustlib").join(host).join("bin/rust-lld");
    if linker.exists() {
        return Ok(linker);
    }
    bail!("there is no linker at {}; install the Rust toolchain with rustup", linker.display())
}

fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = ComponentEncoder::default();
    let component = encoder.validate(true).module(module).and_then(|encoder| encoder.encode());
    component.map_err(|error| anyhow::anyhow!("the module cannot be made a component: {error:#}"))
}
