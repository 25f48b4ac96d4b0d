//! Why a source cannot be imported.

use std::fmt;

/// The kind of an [`ImportError`], with a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The text is malformed.
    InvalidSyntax,
    /// The content belongs to none of the known kinds.
    UnknownKind,
    /// The content may belong to several kinds, or a folder has several sources.
    Ambiguous,
    /// The text, its nesting or the number of its models exceeds a limit.
    TooLarge,
    /// The source describes no lane.
    NothingFound,
}

impl ErrorCode {
    /// Returns the code as it is printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSyntax => "invalid_syntax",
            Self::UnknownKind => "unknown_kind",
            Self::Ambiguous => "ambiguous",
            Self::TooLarge => "too_large",
            Self::NothingFound => "nothing_found",
        }
    }

    /// Returns an error that concerns a whole file.
    pub fn error(self, file: impl Into<String>, message: impl Into<String>) -> ImportError {
        ImportError { code: self, file: file.into(), position: None, message: message.into() }
    }

    /// Returns an error at a line and, if it is known, a column; both count from 1.
    pub(crate) fn at(
        self,
        file: &str,
        line: usize,
        column: Option<usize>,
        message: impl Into<String>,
    ) -> ImportError {
        ImportError { position: Some((line, column)), ..self.error(file, message) }
    }
}

/// Why a source cannot be imported. Never quotes values of the source, which may be secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportError {
    /// The kind of the error.
    pub code: ErrorCode,
    /// The file as the caller named it.
    pub file: String,
    /// Line and column, from 1.
    pub position: Option<(usize, Option<usize>)>,
    /// The cause and a hint.
    pub message: String,
}

impl fmt::Display for ImportError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(formatter, ":{line}")?;
            if let Some(column) = column {
                write!(formatter, ":{column}")?;
            }
        }
        write!(formatter, ": {} [{}]", self.message, self.code.as_str())
    }
}

impl std::error::Error for ImportError {}
