//! Creates policy folders from templates, and builds policies from source in four languages.
//!
//! The folder of a policy contains its source and everything the host loads: [`new_policy`] creates
//! a folder that is complete except for the component, and [`build()`] builds the component. Each
//! language has its own compiler, which [`Tools`] finds; this crate converts core modules to
//! components.

mod c;
mod command;
mod component;
mod embedded;
mod javascript;
mod manifest;
mod python;
mod rust;
mod template;
mod tools;
mod vendor;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

pub use crate::component::componentize;
pub use crate::rust::{DEBIAN_PACKAGES, RustRoute, TARGET, rust_module};
pub use crate::template::new_policy;
pub use crate::tools::Tools;
pub use crate::vendor::vendor;

use crate::manifest::Plan;

/// File name of the component in a policy folder.
const COMPONENT: &str = "policy.wasm";

/// A programming language for policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Rust.
    Rust,
    /// JavaScript or TypeScript.
    JavaScript,
    /// Python.
    Python,
    /// C.
    C,
}

impl Language {
    /// All languages.
    pub const ALL: [Self; 4] = [Self::Rust, Self::JavaScript, Self::Python, Self::C];

    /// Returns the name used in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::JavaScript => "javascript",
            Self::Python => "python",
            Self::C => "c",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Language {
    type Err = BuildError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Accept common aliases.
        let name = match text.to_ascii_lowercase().as_str() {
            "js" | "ts" | "typescript" => "javascript".to_owned(),
            "py" => "python".to_owned(),
            "rs" => "rust".to_owned(),
            other => other.to_owned(),
        };
        Self::ALL.into_iter().find(|language| language.name() == name).ok_or_else(|| {
            BuildError::Usage(format!(
                "unknown language `{text}`; expected rust, javascript, python or c"
            ))
        })
    }
}

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

/// Why a policy folder cannot be created or built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An argument is invalid.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The manifest is invalid or does not describe how to build the policy.
    #[error("{}: {problem}", file.display())]
    Manifest {
        /// The manifest.
        file: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A tool was not found.
    #[error("`{tool}` not found, which is required for policies in {language}; {remedy}")]
    ToolNotFound {
        /// Name of the tool.
        tool: &'static str,
        /// The language that requires the tool.
        language: &'static str,
        /// How to install the tool.
        remedy: &'static str,
    },
    /// A tool failed.
    #[error("`{tool}` failed ({status}):\n{output}")]
    ToolFailed {
        /// Name of the tool.
        tool: String,
        /// Exit status of the tool.
        status: String,
        /// The last lines of its output.
        output: String,
    },
    /// The build result is not a valid policy component.
    #[error("{0}")]
    Component(String),
}

impl BuildError {
    /// Returns a function that adds the file name to an I/O error, for `map_err`.
    pub(crate) fn file(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::File { file, source }
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
    let plan = Plan::load(folder)?;
    let bytes = match plan.language {
        Language::Rust => rust::build(&plan, tools, log)?,
        Language::JavaScript => javascript::build(&plan, tools, log)?,
        Language::Python => python::build(&plan, tools, log)?,
        Language::C => c::build(&plan, tools, log)?,
    };
    component::check(&bytes)?;
    let component = folder.join(COMPONENT);
    component::write(&component, &bytes)?;
    Ok(Built { component, bytes: bytes.len() as u64, took: start.elapsed() })
}
