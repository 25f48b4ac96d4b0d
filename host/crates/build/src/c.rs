//! Builds C policies: a freestanding module, compiled by Zig, with the SDK's small library instead
//! of a libc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_files::read_regular;
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

use crate::command::run;
use crate::component::{MAX_OUTPUT_BYTES, componentize, contract, with_world};
use crate::error::BuildError;
use crate::hooks::Hooks;
use crate::language::Language;
use crate::manifest::Plan;
use crate::tools::{Tool, Tools};

const ZIG: Tool = Tool {
    name: "zig",
    language: "C",
    remedy: "install it with `pip install ziglang`, preferably in a virtual environment (`.venv` \
             in the policy's folder is found), or from your distribution",
};
/// Name of the executable in the Python package.
const PYTHON_ZIG: &str = "python-zig";

/// Checks at run time that the SDK reports with their location. The module has no runtime library
/// of the compiler: the handlers are in the SDK's `fault.c`.
const CHECKS: [&str; 2] = [
    "-fsanitize=bounds,null,integer-divide-by-zero,shift,unreachable",
    "-fno-sanitize-recover=all",
];

/// Builds the component.
pub(crate) fn build(
    plan: &Plan,
    tools: &Tools,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BuildError> {
    debug_assert_eq!(plan.language, Language::C);
    let zig = match tools.search(PYTHON_ZIG, &plan.folder) {
        Some(zig) => zig,
        None => tools.find(&ZIG, &plan.folder)?,
    };
    let sdk = plan.require("sdk")?;
    let scratch = plan.scratch()?;
    write_bindings(&scratch, &plan.hooks)?;
    let module = scratch.join("module.wasm");
    let mut command = Command::new(zig);
    command
        .current_dir(&plan.folder)
        .args(["cc", "-target", "wasm32-freestanding", "-std=c17", "-Os", "-Wall", "-Wextra"])
        .args(["-nostdlib", "-ffreestanding", "-fno-builtin"])
        .args(CHECKS)
        .args(["-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=65536"])
        .arg("-I")
        .arg(&scratch)
        .arg("-I")
        .arg(&sdk)
        .arg("-isystem")
        .arg(sdk.join("freestanding"));
    command.args(plan.hooks.macros().map(|name| format!("-D{name}")));
    command.args(sources(plan, &sdk)?).arg("-o").arg(&module);
    run(&mut command, log)?;
    let module = read_regular(&module, MAX_OUTPUT_BYTES)?;
    componentize(&with_world(&module, &plan.hooks)?)
}

/// Returns the sources of the policy (all `.c` files in the folder of the source in the manifest),
/// the SDK and the bindings.
fn sources(plan: &Plan, sdk: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let source = plan.source_path();
    let mut files = vec![plan.folder.join(".build/policy.c")];
    for folder in [source.parent().unwrap_or(&plan.folder), sdk, &sdk.join("freestanding")] {
        for entry in fs::read_dir(folder).map_err(BuildError::file(folder))? {
            let path = entry.map_err(BuildError::file(folder))?.path();
            if path.extension().is_some_and(|extension| extension == "c") {
                files.push(path);
            }
        }
    }
    files.sort();
    // Relative to the folder of the policy, in which the compiler runs: the component contains the
    // names of its sources.
    let relative = |file: PathBuf| match file.strip_prefix(&plan.folder) {
        Ok(name) => name.to_owned(),
        Err(_) => file,
    };
    Ok(files.into_iter().map(relative).collect())
}

/// Writes the bindings of a world, `policy.h` and `policy.c`, to a folder.
pub(crate) fn write_bindings(folder: &Path, hooks: &Hooks) -> Result<(), BuildError> {
    let fail = |error| BuildError::Component(format!("failed to generate C bindings: {error:#}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_source("pointsman.wit", &contract(hooks)).map_err(fail)?;
    let world = resolve.select_world(&[package], Some(Hooks::WORLD)).map_err(fail)?;
    let options = wit_bindgen_c::Opts {
        // The types are embedded in the linked module; see `with_world`.
        no_object_file: true,
        // One name for all worlds, so that the SDK can include one header.
        rename_world: Some("policy".to_owned()),
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).map_err(fail)?;
    for (name, text) in files.iter() {
        let path = folder.join(name);
        fs::write(&path, text).map_err(BuildError::file(&path))?;
    }
    Ok(())
}
