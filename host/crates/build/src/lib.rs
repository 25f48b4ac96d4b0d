//! Policy folders: made from templates, and built from source in four languages.
//!
//! A policy's folder is both its source and what the host loads: [`new_policy`] writes one that is complete but for its
//! component, and [`build`] makes that. What a language needs to be built is its own tool, found by [`Tools`]; making a core
//! module a component is done here.

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

/// Name of the component in a policy's folder.
const COMPONENT: &str = "policy.wasm";

/// A language that policies are written in.
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
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rust, Self::JavaScript, Self::Python, Self::C];

    /// As it is written in a manifest and on the command line.
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
        // What people type for it, too.
        let name = match text.to_ascii_lowercase().as_str() {
            "js" | "ts" | "typescript" => "javascript".to_owned(),
            "py" => "python".to_owned(),
            "rs" => "rust".to_owned(),
            other => other.to_owned(),
        };
        Self::ALL.into_iter().find(|language| language.name() == name).ok_or_else(|| {
            BuildError::Usage(format!(
                "there is no language `{text}`; there are rust, javascript, python and c"
            ))
        })
    }
}

/// A component that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The file.
    pub component: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Why a policy's folder cannot be made, or not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// The manifest does not say how to build the policy.
    #[error("{}: {what}", file.display())]
    Manifest {
        /// The manifest.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A tool is not there.
    #[error("`{tool}` is needed for policies in {language} and cannot be found; {remedy}")]
    NoTool {
        /// Its name.
        tool: &'static str,
        /// What needs it.
        language: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A tool failed.
    #[error("`{tool}` failed ({status}):\n{output}")]
    Failed {
        /// Its name.
        tool: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// What was built is no policy.
    #[error("{0}")]
    Component(String),
}

impl BuildError {
    /// For `map_err` of what touches a file.
    pub(crate) fn file(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |error| Self::File { file, error }
    }
}

/// Build the policy in `folder` as its manifest says, and write its component. `log` gets what is run and what it prints.
///
/// The component is replaced in one step, so a host that watches the folder never sees half of one; when the build fails, the
/// old one stays.
///
/// # Errors
/// With the file and key that are wrong, the tool that is missing and how to get it, or what the tool said.
pub fn build(folder: &Path, tools: &Tools, log: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let begun = Instant::now();
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
    Ok(Built { component, bytes: bytes.len() as u64, took: begun.elapsed() })
}
