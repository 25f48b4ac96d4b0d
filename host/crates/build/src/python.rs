//! Builds Python policies with CPython. The component contains all modules that are imported at its
//! start.

use std::fs;
use std::process::Command;

use pointsman_files::read_regular;

use crate::command::run;
use crate::component::MAX_OUTPUT_BYTES;
use crate::error::BuildError;
use crate::hooks::{Hooks, pascal_case};
use crate::language::Language;
use crate::manifest::Plan;
use crate::tools::{Tool, Tools};

const COMPONENTIZE: Tool = Tool {
    name: "componentize-py",
    language: "Python",
    remedy: "install it with `pip install componentize-py`, preferably in a virtual environment \
             (`.venv` in the policy's folder is found)",
};

/// Builds the component.
pub(crate) fn build(
    plan: &Plan,
    tools: &Tools,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BuildError> {
    debug_assert_eq!(plan.language, Language::Python);
    let componentize = tools.find(&COMPONENTIZE, &plan.folder)?;
    let sdk = plan.require("sdk/pointsman")?;
    let contract = plan.require("wit")?;
    let scratch = plan.scratch()?;
    let contract = plan.hooks.write_contract(&contract, &scratch)?;
    let source = plan.source_path();
    let module = source
        .file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|stem| is_identifier(stem))
        .ok_or_else(|| {
            BuildError::Usage(format!(
                "{}: invalid module name; only letters, digits and `_` are allowed",
                source.display()
            ))
        })?;
    let entry = scratch.join("entry.py");
    fs::write(&entry, entry_module(module, &plan.hooks)).map_err(BuildError::file(&entry))?;
    let component = scratch.join("policy.wasm");
    let mut command = Command::new(componentize);
    command
        .current_dir(&scratch)
        // Otherwise the packages of the active environment would be included in the component.
        .env_remove("VIRTUAL_ENV")
        .arg("--wit-path")
        .arg(contract)
        .args(["--world", Hooks::WORLD, "componentize", "--stub-wasi", "--python-path", "."])
        .arg("--python-path")
        .arg(source.parent().unwrap_or(&plan.folder))
        .arg("--python-path")
        .arg(sdk.parent().unwrap_or(&plan.folder))
        .arg("--output")
        .arg(&component)
        .arg("entry");
    run(&mut command, log)?;
    Ok(read_regular(&component, MAX_OUTPUT_BYTES)?)
}

/// Returns the source of the entry module, which binds the policy to the host.
fn entry_module(module: &str, hooks: &Hooks) -> String {
    let exports = hooks.exports(pascal_case);
    format!(
        "from pointsman.guest import bind, {exports}\nfrom {module} import policy\n\nbind(policy)\n\
         __all__ = {:?}\n",
        exports.split(", ").collect::<Vec<_>>()
    )
}

fn is_identifier(name: &str) -> bool {
    let is_allowed = |part: char| part.is_ascii_alphanumeric() || part == '_';
    name.chars().all(is_allowed)
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name != "entry"
}
