//! Why a policy folder cannot be created or built.

use std::path::{Path, PathBuf};

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
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] pointsman_files::ReadError),
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
