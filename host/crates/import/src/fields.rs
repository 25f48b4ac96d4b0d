//! A mapping whose keys are taken one by one, so that each key is either imported or reported.

use super::output::Output;
use super::yaml::{Entry, Node};

/// The keys of a mapping that have not been taken.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// The path of the mapping, for the report.
    path: String,
    rest: Vec<&'a Entry>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: impl Into<String>, node: &'a Node) -> Self {
        Self { path: path.into(), rest: node.entries().iter().collect() }
    }

    /// Returns the path of a key, for the report.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Takes a key.
    pub(crate) fn take(&mut self, key: &str) -> Option<&'a Entry> {
        let place = self.rest.iter().position(|entry| entry.key == key)?;
        Some(self.rest.remove(place))
    }

    /// Takes a key with a text.
    pub(crate) fn text(&mut self, key: &str) -> Option<(usize, &'a str)> {
        let place =
            self.rest.iter().position(|entry| entry.key == key && entry.value.text().is_some())?;
        let entry = self.rest.remove(place);
        Some((entry.line, entry.value.text()?))
    }

    /// Takes a key with a number of at least `min`; another value is left, and so reported.
    pub(crate) fn number(&mut self, key: &str, min: u64) -> Option<(usize, u64)> {
        let entry = self.rest.iter().find(|entry| entry.key == key)?;
        let number: u64 = entry.value.text()?.parse().ok().filter(|number| *number >= min)?;
        let line = entry.line;
        self.take(key)?;
        Some((line, number))
    }

    /// Takes a key with a boolean; another value is left, and so reported.
    pub(crate) fn flag(&mut self, key: &str) -> Option<bool> {
        let entry = self.rest.iter().find(|entry| entry.key == key)?;
        let on = match entry.value.text()? {
            "true" | "True" | "yes" | "on" | "1" => true,
            "false" | "False" | "no" | "off" | "0" => false,
            _ => return None,
        };
        self.take(key)?;
        Some(on)
    }

    /// Takes a key that is reported if it is there.
    pub(crate) fn report(&mut self, output: &mut Output, key: &str, there: &str, here: &str) {
        if let Some(entry) = self.take(key) {
            output.note(entry.line, self.path(key), there, here);
        }
    }

    /// Reports all keys that have not been taken.
    pub(crate) fn report_rest(self, output: &mut Output) {
        for entry in &self.rest {
            let there = format!("a setting of {} that is not imported", output.kind.name());
            output.note(entry.line, self.path(&entry.key), there, "review it by hand");
        }
    }
}
