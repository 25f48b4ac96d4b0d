//! A reader of the TOML files that people write: host configurations and simulation scenarios.
//!
//! ```text
//!   source ──parse──> document ──Override──> document ──Section──> validated values
//!                                                         └──> Diagnostics: all errors
//! ```
//!
//! Tables that several kinds of files share are read here, so that they have the same keys,
//! defaults and messages everywhere: [`rules()`] and [`chain()`].

mod diagnostics;
mod overrides;
mod policy;
mod rules;
mod secret;
mod section;
mod value;

pub use self::diagnostics::{Code, Diagnostic, Diagnostics, FileError, Location, Problem};
pub use self::overrides::{InvalidPath, Override};
pub use self::policy::chain;
pub use self::rules::rules;
pub use self::secret::secret;
pub use self::section::Section;
pub use self::value::{format_duration, missing, nearest};

use std::path::Path;

use toml::de::DeTable;

/// Reads a document after replacing some of its keys.
///
/// # Errors
/// Every error in the document, in the order of the file.
pub fn read<T>(
    source: &str,
    overrides: &[Override],
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    read_with(Diagnostics::new(source), source, overrides, read)
}

/// Reads a document as [`read`] does, with placeholders instead of secrets, for programs that do
/// not use them: the variables and files of secrets may be missing.
///
/// # Errors
/// As those of [`read`].
pub fn read_without_secrets<T>(
    source: &str,
    overrides: &[Override],
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    read_with(Diagnostics::new(source).without_secrets(), source, overrides, read)
}

fn read_with<T>(
    diagnostics: Diagnostics<'_>,
    source: &str,
    overrides: &[Override],
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    let (document, syntax_errors) = DeTable::parse_recoverable(source);
    for error in &syntax_errors {
        let problem = Code::Syntax.with(format!("invalid TOML: {}", error.message()));
        diagnostics.add(error.span().unwrap_or(0..0), "", problem);
    }
    if !syntax_errors.is_empty() {
        return Err(diagnostics.into_sorted());
    }
    let mut table = document.into_inner();
    overrides.iter().for_each(|keys| keys.apply(&mut table, &diagnostics));
    let value = read(&Section::root(&diagnostics, &table));
    let diagnostics = diagnostics.into_sorted();
    match value {
        Some(value) if diagnostics.is_empty() => Ok(value),
        _ => Err(diagnostics),
    }
}

/// Returns the folder that relative paths in a file refer to.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod fuzz;
