//! A reader of the TOML files that people write: host configurations and simulation scenarios.
//!
//! ```text
//!   source ──parse──> document ──Override──> document ──expand──> document ──Section──> values
//!                                                                     └──> Diagnostics: all errors
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
mod shape;
mod value;
mod variable;
mod variables;

pub use self::diagnostics::{Code, Diagnostic, Diagnostics, FileError, Location, Problem};
pub use self::overrides::{InvalidPath, Override};
pub use self::policy::{PolicyPlace, chain, percentage};
pub use self::rules::rules;
pub use self::secret::secret;
pub use self::section::Section;
pub use self::shape::Shape;
pub use self::value::{format_duration, missing, nearest};
pub use self::variable::Variable;
pub use self::variables::{escape_references, expand};

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
    read_with(Diagnostics::new(source), source, overrides, |_, _| {}, read)
}

/// Where secrets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// The variables and files that the document names.
    Read,
    /// Placeholders, for programs that do not use secrets: variables and files may be missing.
    Placeholder,
}

/// Reads a document as [`read`] does, after replacing references to environment variables in its
/// strings, such as `${NAME}`.
///
/// # Errors
/// Every error in the document, in the order of the file. Messages do not have the values of
/// variables whose names say that they are secrets.
pub fn read_expanded<T>(
    source: &str,
    overrides: &[Override],
    secrets: Secrets,
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    let diagnostics = match secrets {
        Secrets::Read => Diagnostics::new(source),
        Secrets::Placeholder => Diagnostics::new(source).without_secrets(),
    };
    read_with(diagnostics, source, overrides, expand, read)
}

fn read_with<T>(
    diagnostics: Diagnostics<'_>,
    source: &str,
    overrides: &[Override],
    expand: impl FnOnce(&mut DeTable<'_>, &Diagnostics<'_>),
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
    expand(&mut table, &diagnostics);
    let value = read(&Section::root(&diagnostics, &table));
    let diagnostics = diagnostics.into_sorted();
    match value {
        Some(value) if diagnostics.is_empty() => Ok(value),
        _ => Err(diagnostics),
    }
}

/// Returns what a reader asks for in a document, which may be invalid. It has the tables of this
/// document, and the keys that the reader has not skipped because of what the document has.
///
/// # Errors
/// If the document is not valid TOML.
pub fn shape<T>(
    source: &str,
    has_references: bool,
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<Shape, toml::de::Error> {
    let document = DeTable::parse(source)?;
    let diagnostics = Diagnostics::new(source).recording();
    drop(read(&Section::root(&diagnostics, document.get_ref())));
    let (recorder, missing) = diagnostics.into_recorded();
    Ok(Shape::new(recorder, missing.into_iter(), has_references))
}

/// Returns the folder that relative paths in a file refer to.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod fuzz;
