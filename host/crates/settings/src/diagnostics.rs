//! Errors in a file, each with its code, line and key.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pointsman_domain::units::UnitError;
use pointsman_files::read_regular_text;

use crate::shape::Recorder;
use crate::variable::Variable;

/// Maximum size of a configuration or a scenario in bytes.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The stable code of an error in a configuration or scenario file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The file cannot be read.
    Unreadable,
    /// The file is not valid TOML.
    Syntax,
    /// The key does not exist.
    UnknownKey,
    /// A required key is missing.
    MissingKey,
    /// The value has the wrong TOML type.
    WrongType,
    /// The number is outside the allowed range.
    OutOfRange,
    /// The value cannot be used.
    InvalidValue,
    /// The value contradicts another one in the file.
    Conflict,
    /// The name is used by another item.
    Duplicate,
    /// The name refers to an item that does not exist.
    UnknownName,
    /// A file, an environment variable or a program that the value names is missing or unusable.
    Unavailable,
    /// The file ends early: it is the beginning of the one that is in force.
    CutOff,
    /// The lane can never be loaded into its group's memory.
    OutOfMemory,
    /// A proxy cannot reach the engine of the lane.
    NotPickable,
}

impl Code {
    /// Returns the code as it is printed, for example `unknown_key`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown_key",
            Self::MissingKey => "missing_key",
            Self::WrongType => "wrong_type",
            Self::OutOfRange => "out_of_range",
            Self::InvalidValue => "invalid_value",
            Self::Conflict => "conflict",
            Self::Duplicate => "duplicate",
            Self::UnknownName => "unknown_name",
            Self::Unavailable => "unavailable",
            Self::CutOff => "cut_off",
            Self::OutOfMemory => "out_of_memory",
            Self::NotPickable => "not_pickable",
        }
    }

    /// Returns a problem with this code.
    pub fn with(self, message: impl Into<String>) -> Problem {
        Problem { code: self, message: message.into() }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with a value, without its position. Plain text has [`Code::InvalidValue`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The stable code.
    pub code: Code,
    /// The cause and a hint, in the form `cause; hint`.
    pub message: String,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Code::InvalidValue.with(message)
    }
}

impl From<&str> for Problem {
    fn from(message: &str) -> Self {
        Code::InvalidValue.with(message)
    }
}

impl From<UnitError> for Problem {
    fn from(error: UnitError) -> Self {
        Code::InvalidValue.with(error.to_string())
    }
}

/// One error in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line number, starting at 1; 0 if the error has no position in the file.
    pub line: usize,
    /// Dotted path of the key; empty if the error concerns the whole file.
    pub key: String,
    /// The stable code.
    pub code: Code,
    /// The cause and a hint, in the form `cause; hint`.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line: _, key, code, message } = self;
        let separator = if key.is_empty() { "" } else { ": " };
        write!(f, "{key}{separator}{message} [{code}]")
    }
}

/// The position of a key, kept for errors that are only detected after the file was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    line: usize,
    key: String,
}

impl Location {
    /// Returns the line number, starting at 1; 0 if the key has no position in the file.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Returns the dotted path of the key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns a diagnostic for this key.
    pub fn error(&self, problem: impl Into<Problem>) -> Diagnostic {
        let Problem { code, message } = problem.into();
        Diagnostic { line: self.line, key: self.key.clone(), code, message }
    }
}

/// Collects the errors of one file.
#[derive(Debug)]
pub struct Diagnostics<'a> {
    source: &'a str,
    found: RefCell<Vec<(Range<usize>, Diagnostic)>>,
    /// Names of environment variables that secrets were read from.
    secret_variables: RefCell<Vec<String>>,
    /// References that were replaced by the values of environment variables.
    variables: RefCell<Vec<Variable>>,
    /// Whether secrets are replaced by placeholders instead of being read.
    without_secrets: bool,
    /// Notes what is read, if a schema is made.
    recorder: Option<Recorder>,
}

impl<'a> Diagnostics<'a> {
    /// Creates an empty collection for the text of a file.
    pub fn new(source: &'a str) -> Self {
        Self {
            source,
            found: RefCell::default(),
            secret_variables: RefCell::default(),
            variables: RefCell::default(),
            without_secrets: false,
            recorder: None,
        }
    }

    /// Notes what is read.
    pub(crate) fn recording(self) -> Self {
        Self { without_secrets: true, recorder: Some(Recorder::default()), ..self }
    }

    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Returns what was read, and the paths of keys that were missing.
    pub(crate) fn into_recorded(self) -> (Recorder, Vec<String>) {
        let found = self.found.into_inner().into_iter().map(|(_, diagnostic)| diagnostic);
        let missing = found.filter(|found| found.code == Code::MissingKey).map(|found| found.key);
        let missing = missing.collect();
        (self.recorder.unwrap_or_default(), missing)
    }

    /// Replaces the values of all secrets by placeholders, without reading variables or files.
    pub(crate) fn without_secrets(self) -> Self {
        Self { without_secrets: true, ..self }
    }

    /// Returns true if secrets are replaced by placeholders.
    pub(crate) fn is_without_secrets(&self) -> bool {
        self.without_secrets
    }

    /// Adds an error at a byte range of the source. A range past the end of the source marks a key
    /// that came from elsewhere, for example from the command line, and gets line 0.
    pub fn add(&self, range: Range<usize>, key: &str, problem: impl Into<Problem>) {
        let diagnostic = self.location(range.clone(), key).error(problem);
        self.found.borrow_mut().push((range, diagnostic));
    }

    /// Returns true if there is an error at this byte range.
    pub(crate) fn has_error_at(&self, range: &Range<usize>) -> bool {
        self.found.borrow().iter().any(|(known, _)| known == range)
    }

    /// Notes the name of an environment variable that holds a secret.
    pub(crate) fn add_secret_variable(&self, name: &str) {
        self.secret_variables.borrow_mut().push(name.to_owned());
    }

    /// Returns the names of the environment variables that hold secrets, sorted.
    pub(crate) fn secret_variables(&self) -> Vec<String> {
        let mut names = self.secret_variables.borrow().clone();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Notes that a reference was replaced by the value of an environment variable.
    pub(crate) fn add_variable(&self, variable: Variable) {
        self.variables.borrow_mut().push(variable);
    }

    /// Returns the references that were replaced, in the order of their keys.
    pub(crate) fn variables(&self) -> Vec<Variable> {
        self.variables.borrow().clone()
    }

    /// Returns all errors in the order of the file, without duplicates, and without the secrets of
    /// environment variables.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(range, _)| range.start);
        let variables = self.variables.into_inner();
        let mut sorted: Vec<Diagnostic> = Vec::with_capacity(found.len());
        for (_, mut diagnostic) in found {
            let hide = |text, variable: &Variable| variable.hide_in(text);
            diagnostic.message = variables.iter().fold(diagnostic.message, hide);
            // Variants of a document share tables, so an error in one is found once for each
            // variant.
            if !sorted.contains(&diagnostic) {
                sorted.push(diagnostic);
            }
        }
        sorted
    }

    pub(crate) fn location(&self, range: Range<usize>, key: &str) -> Location {
        let before = self.source.as_bytes().get(..range.start);
        let line =
            before.map_or(0, |before| before.iter().filter(|byte| **byte == b'\n').count() + 1);
        Location { line, key: key.to_owned() }
    }
}

/// All errors of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    file: PathBuf,
    diagnostics: Vec<Diagnostic>,
}

impl FileError {
    /// Creates the error of a file from its diagnostics.
    pub fn new(file: &Path, diagnostics: Vec<Diagnostic>) -> Self {
        Self { file: file.to_owned(), diagnostics }
    }

    /// Reads the text of a regular file of at most 8 MiB.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn source(file: &Path) -> Result<String, Self> {
        read_regular_text(file, MAX_FILE_BYTES).map_err(|error| {
            let problem = Code::Unreadable.with(error.to_string());
            Self::new(file, vec![Location::default().error(problem)])
        })
    }

    /// Returns the errors in the order of the file.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            match diagnostic.line {
                0 => write!(f, "{newline}{}: {diagnostic}", self.file.display())?,
                line => write!(f, "{newline}{}:{line}: {diagnostic}", self.file.display())?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for FileError {}
