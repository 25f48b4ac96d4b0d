//! What of a source has no equal counterpart.

use std::fmt;

use serde::Serialize;

/// A setting of the source that the configuration does not have, or that means something else
/// there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The file as the caller named it.
    pub file: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key in the source, such as `models.qwen.ttl`.
    pub key: String,
    /// What it did there.
    pub there: String,
    /// What to do here instead.
    pub here: String,
}

impl fmt::Display for Item {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        let Self { key, there, here, .. } = self;
        write!(formatter, ": {}: {}; here: {}", one_line(key), one_line(there), one_line(here))
    }
}

/// Everything that the operator should know of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The settings, mostly in the order of the source.
    pub items: Vec<Item>,
}

/// Replaces control characters, which would change a terminal or break a comment.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
