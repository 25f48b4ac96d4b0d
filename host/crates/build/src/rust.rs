//! Builds Rust policies: a core module for `wasm32-unknown-unknown`, converted to a component.
//!
//! rustup provides the target as a toolchain component. Debian does not package the target, but has
//! a compiler that can build the standard library from source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_files::{read_regular, read_regular_text};
use serde::Deserialize;

use crate::command::{output, run};
use crate::component::{MAX_OUTPUT_BYTES, componentize};
use crate::error::BuildError;
use crate::language::Language;
use crate::manifest::{MAX_MANIFEST_BYTES, Plan};
use crate::tools::{Tool, Tools};

/// The compilation target of policies.
pub const TARGET: &str = "wasm32-unknown-unknown";
/// The Debian packages of a compiler for the target.
pub const DEBIAN_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm", "libstd-rust-web-dev"];

const TARGET_TOOL: Tool = Tool {
    name: "rustc",
    language: "Rust",
    remedy: "install the target wasm32-unknown-unknown with `rustup target add \
             wasm32-unknown-unknown`, or on Debian with `apt-get install rustc-web cargo-web \
             rust-web-src rust-web-llvm libstd-rust-web-dev`",
};

/// Optimizes for speed: the code of a policy takes an eighth less time in its calls than with
/// `opt-level = "s"`, and components are at most 6 % larger.
const PROFILE: [&str; 7] = [
    "profile.guest.inherits=\"release\"",
    "profile.guest.opt-level=3",
    "profile.guest.lto=true",
    "profile.guest.codegen-units=1",
    "profile.guest.panic=\"abort\"",
    "profile.guest.strip=true",
    "profile.guest.debug=false",
];

/// The source of the compiler for the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RustRoute {
    /// The Rust toolchain has the target installed.
    Toolchain,
    /// Debian's compiler, which builds the standard library from source.
    Debian,
}

impl RustRoute {
    /// Returns the route available on this machine.
    pub fn find() -> Option<Self> {
        let libdir =
            output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]));
        if libdir.is_some_and(|dir| fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some()))
        {
            return Some(Self::Toolchain);
        }
        let installed = |package: &&str| {
            output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]))
                .is_some_and(|status| status == "install ok installed")
        };
        DEBIAN_PACKAGES.iter().all(installed).then_some(Self::Debian)
    }
}

/// Builds the component.
pub(crate) fn build(
    plan: &Plan,
    tools: &Tools,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BuildError> {
    debug_assert_eq!(plan.language, Language::Rust);
    let route = RustRoute::find().ok_or(BuildError::ToolNotFound {
        tool: TARGET_TOOL.name,
        language: TARGET_TOOL.language,
        remedy: TARGET_TOOL.remedy,
    })?;
    let target = tools.target_dir(&plan.folder);
    componentize(&rust_module(route, &plan.source_path(), &plan.folder, &target, log)?)
}

/// Builds the crate in `folder` and returns its core module. Paths below `root` are remapped to
/// `/src`, so that the module does not depend on the location of the sources.
///
/// # Errors
/// Returns an error if the crate has no name or does not compile.
pub fn rust_module(
    route: RustRoute,
    folder: &Path,
    root: &Path,
    target: &Path,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BuildError> {
    let manifest = folder.join("Cargo.toml");
    let library = library_name(&manifest)?;
    let mut command = match route {
        RustRoute::Toolchain => {
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        }
        RustRoute::Debian => debian_cargo()?,
    };
    command
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--lib",
            "--profile",
            "guest",
            "--target",
            TARGET,
            "--manifest-path",
        ])
        .arg(&manifest);
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    // Keep paths of the build machine out of the component, so that builds are reproducible.
    let home = std::env::var("HOME").unwrap_or_default();
    let mut flags =
        format!("--remap-path-prefix={}=/src --remap-path-prefix={home}=/deps", root.display());
    if route == RustRoute::Debian {
        command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]);
        // The SDK reports the message and the location of a panic. Values in messages are cut to
        // their outermost names, because full formatting doubles the size of the component.
        flags.push_str(" -Zlocation-detail=file,line -Zfmt-debug=shallow");
    }
    run(command.env("CARGO_TARGET_DIR", target).env("RUSTFLAGS", flags), log)?;
    let module = target.join(TARGET).join("guest").join(format!("{library}.wasm"));
    Ok(read_regular(&module, MAX_OUTPUT_BYTES)?)
}

/// Returns the name of the library target of a crate.
fn library_name(manifest: &Path) -> Result<String, BuildError> {
    #[derive(Deserialize)]
    struct Named {
        name: Option<String>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        package: Named,
        lib: Option<Named>,
    }
    let text = read_regular_text(manifest, MAX_MANIFEST_BYTES)?;
    let fail = |problem: String| BuildError::Manifest { file: manifest.to_owned(), problem };
    let Manifest { package, lib } =
        toml::from_str(&text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
    let name = lib.and_then(|lib| lib.name).or(package.name);
    name.map(|name| name.replace('-', "_")).ok_or_else(|| fail("package.name: required".to_owned()))
}

/// Returns a command for Debian's cargo and compiler. `RUSTC_BOOTSTRAP` enables the unstable
/// options that build the standard library.
fn debian_cargo() -> Result<Command, BuildError> {
    let mut command = Command::new("/usr/bin/cargo");
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("/usr/bin:{path}"))
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker()?)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER");
    Ok(command)
}

/// Returns a linker for WebAssembly: the `rust-lld` of the Rust toolchain.
fn linker() -> Result<PathBuf, BuildError> {
    let print = |what: &str| {
        output(Command::new("rustc").args(["--print", what]))
            .ok_or_else(|| BuildError::Usage(format!("`rustc --print {what}` failed")))
    };
    let linker = PathBuf::from(print("sysroot")?)
        .join("lib/rustlib")
        .join(print("host-tuple")?)
        .join("bin/rust-lld");
    if linker.exists() {
        return Ok(linker);
    }
    Err(BuildError::Usage(format!(
        "linker not found at {}; install the Rust toolchain with rustup",
        linker.display()
    )))
}
