//! Reading the TOML files that people write: the configuration of a host, and the scenarios of simulations.
//!
//! ```text
//!   source ──parse──> document ──Over──> document with keys that are other ──Section──> validated values
//!                                                                              └──> Mistakes: all, each with its place
//! ```
//!
//! What several kinds of files have in common is read here, so that it has the same words and the same defaults in all of
//! them: [`rules()`] and [`chain()`].

mod mistakes;
mod over;
mod policy;
mod rules;
mod section;

pub use self::mistakes::{FileError, Mistake, Mistakes, Place};
pub use self::over::Over;
pub use self::policy::chain;
pub use self::rules::rules;
pub use self::section::{Section, nearest, shown};

use std::path::Path;

use toml::de::DeTable;

/// Read a document that may have some keys that are other than it says.
///
/// # Errors
/// With every mistake in it, in the order of the file.
pub fn read<T>(
    source: &str,
    over: &[Over],
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<Mistake>> {
    let mistakes = Mistakes::new(source);
    let (document, errors) = DeTable::parse_recoverable(source);
    for error in &errors {
        mistakes.add(error.span().unwrap_or(0..0), "", format!("is not TOML: {}", error.message()));
    }
    if !errors.is_empty() {
        return Err(mistakes.into_sorted());
    }
    let mut table = document.into_inner();
    over.iter().for_each(|over| over.apply(&mut table, &mistakes));
    let read = read(&Section::root(&mistakes, &table));
    let mistakes = mistakes.into_sorted();
    match read {
        Some(read) if mistakes.is_empty() => Ok(read),
        _ => Err(mistakes),
    }
}

/// The folder that paths in a file are relative to.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
