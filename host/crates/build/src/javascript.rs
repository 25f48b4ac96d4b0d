//! Builds JavaScript and TypeScript policies with QuickJS. The component contains a snapshot of the
//! program's state after its start.
//!
//! componentize-qjs resolves imports, but does not support TypeScript: esbuild strips the types and
//! bundles all modules. Types are not checked; use an editor or `tsc` for that.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pointsman_files::{read_regular, read_regular_text};

use crate::command::run;
use crate::component::MAX_OUTPUT_BYTES;
use crate::error::BuildError;
use crate::hooks::{Hooks, camel_case};
use crate::language::Language;
use crate::manifest::Plan;
use crate::source_map::line_table;
use crate::tools::{Tool, Tools};

const COMPONENTIZE: Tool = Tool {
    name: "componentize-qjs",
    language: "JavaScript",
    remedy: "install it with `npm install componentize-qjs` in the policy's folder, or with `npm \
             install -g componentize-qjs`",
};
const ESBUILD: Tool = Tool {
    name: "esbuild",
    language: "TypeScript",
    remedy: "install it with `npm install esbuild` in the policy's folder, or with `npm install -g \
             esbuild`",
};

/// Name of the bundle of a TypeScript policy.
const BUNDLE: &str = "bundle.js";

/// Builds the component.
pub(crate) fn build(
    plan: &Plan,
    tools: &Tools,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BuildError> {
    debug_assert_eq!(plan.language, Language::JavaScript);
    let componentize = tools.find(&COMPONENTIZE, &plan.folder)?;
    plan.require("sdk/guest.js")?;
    let contract = plan.require("wit")?;
    let scratch = plan.scratch()?;
    let contract = plan.hooks.write_contract(&contract, &scratch)?;
    let mut entry = scratch.join("entry.js");
    fs::write(&entry, entry_module(plan)).map_err(BuildError::file(&entry))?;
    if plan.source.extension().is_some_and(|extension| extension == "ts" || extension == "mts") {
        entry = bundle(plan, tools, entry, log)?;
    }
    let component = scratch.join("policy.wasm");
    let mut command = Command::new(componentize);
    command
        .current_dir(&plan.folder)
        .arg("--wit")
        .arg(contract)
        .args(["--world", Hooks::WORLD])
        .arg("--js")
        .arg(&entry)
        .arg("--module-root")
        .arg(&plan.folder)
        // WASI functions are stubs that trap, and exports are synchronous: the host supports
        // neither WASI nor async calls. `--minify` would change the lines of a bundle.
        .args(["--stub-wasi", "--sync", "--output"])
        .arg(&component);
    run(&mut command, log)?;
    Ok(read_regular(&component, MAX_OUTPUT_BYTES)?)
}

/// Returns the source of the entry module, which binds the policy to the host.
fn entry_module(plan: &Plan) -> String {
    let source = plan.source.to_string_lossy().replace('\\', "/");
    let exports = plan.hooks.exports(camel_case);
    format!(
        "import \"../sdk/globals.js\";\nimport policy from \"../{source}\";\n\
         import {{ guest }} from \"../sdk/guest.js\";\n\
         export const {{ {exports} }} = guest(policy);\n"
    )
}

/// Bundles TypeScript modules into one JavaScript module.
fn bundle(
    plan: &Plan,
    tools: &Tools,
    entry: PathBuf,
    log: &mut dyn FnMut(&str),
) -> Result<PathBuf, BuildError> {
    let bundle = entry.with_file_name(BUNDLE);
    let mut command = Command::new(tools.find(&ESBUILD, &plan.folder)?);
    command
        .current_dir(&plan.folder)
        .arg(&entry)
        .args([
            "--bundle",
            "--format=esm",
            "--platform=neutral",
            "--target=es2022",
            "--log-level=warning",
            "--sourcemap=external",
        ])
        .args(["--external:pointsman:*", &format!("--outfile={}", bundle.display())]);
    run(&mut command, log)?;
    let map = bundle.with_extension("js.map");
    let map = read_regular_text(&map, MAX_OUTPUT_BYTES)?;
    let text = read_regular_text(&bundle, MAX_OUTPUT_BYTES)? + &line_table(BUNDLE, &map)?;
    fs::write(&bundle, text).map_err(BuildError::file(&bundle))?;
    Ok(bundle)
}
