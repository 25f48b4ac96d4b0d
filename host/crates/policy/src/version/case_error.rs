//! Errors of golden cases.

use std::path::PathBuf;

/// An error of parsing the request of a case.
pub type FactsError = Box<dyn std::error::Error + Send + Sync>;

/// A difference between the decision and a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The part of the decision: `lane`, `fallback`, `edits`, …
    pub what: &'static str,
    /// The expected value.
    pub expected: String,
    /// The value that the policy decided.
    pub got: String,
}

/// A golden case that is invalid or fails.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A line is not a case.
    #[error("{}:{line}: invalid case: {error}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The error.
        error: serde_json::Error,
    },
    /// The state of a case is invalid.
    #[error("{}:{line}: case `{name}`: {error}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The error.
        error: CaseStateError,
    },
    /// What the hook of a case is called with is invalid.
    #[error("{}:{line}: case `{name}`: {error}", file.display())]
    Input {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The error.
        error: CaseInputError,
    },
    /// The policy decided differently.
    #[error(
        "{}:{line}: case `{name}` failed: {}: expected {}, found {}",
        file.display(), difference.what, difference.expected, difference.got
    )]
    Failed {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The first difference.
        difference: Difference,
    },
}

/// An error in what the hook of a case is called with.
#[derive(Debug, thiserror::Error)]
pub enum CaseInputError {
    /// The request cannot be parsed.
    #[error("invalid request: {0}")]
    Request(FactsError),
    /// A field is missing that the hook needs.
    #[error("missing `{field}`")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A failure or an outcome names a lane that the fleet does not have.
    #[error("unknown lane `{lane}`")]
    UnknownLane {
        /// The name.
        lane: String,
    },
    /// A note of an outcome has a value that notes cannot have.
    #[error("invalid note `{key}`: expected true, false, an integer or a string")]
    Note {
        /// The key.
        key: String,
    },
    /// An expectation does not apply to the hook.
    #[error("`expect.{field}` does not apply to `{hook}`")]
    Unexpected {
        /// The field of `expect`.
        field: &'static str,
        /// The hook.
        hook: &'static str,
    },
}

/// An error in the state of a case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaseStateError {
    /// A value is neither an integer nor a string.
    #[error("invalid state `{key}`: expected an integer or a string")]
    Type {
        /// The key.
        key: String,
    },
    /// A key or a value is too long.
    #[error("invalid state `{key}`: key or value too long")]
    TooLong {
        /// The key.
        key: String,
    },
}

impl CaseError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } | Self::State { .. } | Self::Input { .. } => "case_invalid",
            Self::Failed { .. } => "case_failed",
        }
    }
}
