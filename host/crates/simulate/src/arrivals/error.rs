//! Errors in trace files.

use std::io;
use std::path::PathBuf;

use pointsman_record::ReadError;
use pointsman_settings::{Code, Problem};

/// A trace file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file or folder cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder contains no decision records.
    #[error("no decision records in {}", path.display())]
    NoRecords {
        /// The folder.
        path: PathBuf,
    },
    /// A line is invalid.
    #[error("{}:{line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, starting at 1.
        line: u64,
        /// The cause.
        source: TraceLineError,
    },
    /// A decision record is invalid.
    #[error("{}:{}: {}", path.display(), source.line, source.problem)]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause, with the line number.
        source: ReadError,
    },
}

/// What is wrong with a line of a trace file.
#[derive(Debug, thiserror::Error)]
pub enum TraceLineError {
    /// The line cannot be read.
    #[error("cannot read the line: {0}")]
    Io(#[from] io::Error),
    /// The line is not UTF-8.
    #[error("not valid UTF-8")]
    NotUtf8,
    /// The line is too long for a file of this kind.
    #[error("line is longer than {max} bytes")]
    TooLong {
        /// The maximum length in bytes.
        max: u64,
    },
    /// The header of a table lacks a column.
    #[error("missing column `{name}`: expected the columns `{expected}`")]
    MissingColumn {
        /// The column.
        name: &'static str,
        /// All required columns.
        expected: String,
    },
    /// A field is not a date and time.
    #[error("invalid time \"{0}\": expected for example 2023-11-16 18:15:46.6805900")]
    InvalidTime(String),
    /// A field is not a time in seconds.
    #[error("invalid time \"{0}\": expected seconds, for example 45.5")]
    InvalidSeconds(String),
    /// A field is not a number of tokens.
    #[error("invalid number of tokens \"{0}\": expected an integer")]
    InvalidTokens(String),
    /// The file does not contain a list of objects.
    #[error("not a list of conversations: expected `[{{` at the start")]
    NotConversations,
    /// An object that ends on this line is not a conversation.
    #[error("invalid conversation ending at this position: {0}")]
    InvalidConversation(#[from] serde_json::Error),
    /// A conversation is too long.
    #[error("conversation is longer than {max} bytes")]
    ConversationTooLong {
        /// The maximum length in bytes.
        max: usize,
    },
    /// The file ends inside a conversation.
    #[error("unexpected end of file inside a conversation")]
    Truncated,
}

impl From<&TraceError> for Problem {
    fn from(error: &TraceError) -> Self {
        let code = match error {
            TraceError::Open { .. } => Code::Unreadable,
            TraceError::NoRecords { .. } => Code::Unavailable,
            TraceError::Line { .. } | TraceError::Record { .. } => Code::InvalidValue,
        };
        code.with(error.to_string())
    }
}
