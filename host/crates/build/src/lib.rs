//! Creates policy folders from templates, and builds policies from source in four languages.
//!
//! The folder of a policy contains its source and everything the host loads: [`new_policy`] creates
//! a folder that is complete except for the component, and [`build()`] builds the component. Each
//! language has its own compiler, which [`Tools`] finds; this crate converts core modules to
//! components.

mod c;
mod command;
mod component;
mod coverage;
mod custom;
mod embedded;
mod error;
mod hooks;
mod inputs;
mod javascript;
mod language;
mod manifest;
mod python;
mod rust;
mod source_map;
mod template;
mod tools;
mod vendor;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use crate::component::componentize;
pub use crate::coverage::{Instrumented, Region, build_instrumented};
pub use crate::error::BuildError;
pub use crate::inputs::changed_since_build;
pub use crate::language::Language;
pub use crate::rust::{DEBIAN_PACKAGES, RustRoute, TARGET, rust_module};
pub use crate::template::{Template, new_policy};
pub use crate::tools::Tools;
pub use crate::vendor::vendor;

use crate::inputs::Inputs;
use crate::manifest::BuildPlan;

/// File name of the component in a policy folder.
const COMPONENT: &str = "policy.wasm";

/// The result of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Path of the component.
    pub component: PathBuf,
    /// Size of the component in bytes.
    pub bytes: u64,
    /// Duration of the build.
    pub took: Duration,
}

/// Returns the component of the policy in `folder` if a build would not change what it does: it was
/// built here, and nothing has changed since. Only for languages whose builds are not reproducible,
/// where each build is a new version: their components have the random seeds and the time of the
/// interpreter's start.
///
/// # Errors
/// Returns an error if the manifest is invalid.
pub fn current_component(folder: &Path) -> Result<Option<PathBuf>, BuildError> {
    let language = match BuildPlan::load(folder)? {
        BuildPlan::Language(plan) => Some(plan.language),
        BuildPlan::Command(_) => None,
    };
    let is_current = match language {
        Some(Language::JavaScript | Language::Python) => {
            inputs::changes(folder).is_some_and(|changes| changes.is_empty())
        }
        // May have sources in other folders.
        Some(Language::Rust | Language::C) | None => false,
    };
    Ok(is_current.then(|| folder.join(COMPONENT)))
}

/// Replaces the SDK and the contract in the folder of a policy by those of this program.
///
/// # Errors
/// Returns an error if the manifest is invalid, if the folder has no SDK, or if a file cannot be
/// written.
pub fn update_sdk(folder: &Path) -> Result<(), BuildError> {
    match BuildPlan::load(folder)? {
        BuildPlan::Language(plan) => {
            plan.require("sdk")?;
            vendor(&plan.folder, plan.language)
        }
        BuildPlan::Command(_) => {
            Err(BuildError::Usage("a policy with `build.command` has no SDK".to_owned()))
        }
    }
}

/// Builds the policy in `folder` as described by its manifest and writes the component. `log`
/// receives the commands and their output.
///
/// The component is replaced atomically, so a host that watches the folder never reads a partial
/// file. If the build fails, the old component stays.
///
/// # Errors
/// Returns an error if the manifest is invalid, or a tool is missing or fails.
pub fn build(folder: &Path, tools: &Tools, log: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let start = Instant::now();
    let plan = BuildPlan::load(folder)?;
    let inputs = Inputs::read(folder);
    let bytes = match &plan {
        BuildPlan::Command(plan) => custom::build(plan, log)?,
        BuildPlan::Language(plan) => match plan.language {
            Language::Rust => rust::build(plan, tools, log)?,
            Language::JavaScript => javascript::build(plan, tools, log)?,
            Language::Python => python::build(plan, tools, log)?,
            Language::C => c::build(plan, tools, log)?,
        },
    };
    component::check(&bytes)?;
    let component = folder.join(COMPONENT);
    component::write(&component, &bytes)?;
    inputs.write(folder, &bytes)?;
    Ok(Built { component, bytes: bytes.len() as u64, took: start.elapsed() })
}
