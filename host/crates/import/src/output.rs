//! What an import collects.

use super::document::Document;
use super::kind::Kind;
use super::report::Item;

/// The configuration and the report that a reader writes into.
#[derive(Debug)]
pub(crate) struct Output {
    file: String,
    pub(crate) kind: Kind,
    pub(crate) document: Document,
    pub(crate) items: Vec<Item>,
}

impl Output {
    pub(crate) fn new(file: &str, kind: Kind) -> Self {
        Self { file: file.to_owned(), kind, document: Document::default(), items: Vec::new() }
    }

    /// Returns the name of the source.
    pub(crate) fn file(&self) -> String {
        self.file.clone()
    }

    /// Reports a setting: what it did there, and what to do here.
    pub(crate) fn note(
        &mut self,
        line: impl Into<Option<usize>>,
        key: impl Into<String>,
        there: impl Into<String>,
        here: impl Into<String>,
    ) {
        self.items.push(Item {
            file: self.file.clone(),
            line: line.into(),
            key: key.into(),
            there: there.into(),
            here: here.into(),
        });
    }
}
