//! The flags of a command line.

use super::words::is_secret_flag;

/// Words of which flags are taken; what is left is passed on unchanged.
#[derive(Debug)]
pub(crate) struct Flags(Vec<String>);

impl Flags {
    pub(crate) fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    /// Removes all occurrences of a flag, and returns the value of the last one. A flag at the end
    /// has an empty value.
    pub(crate) fn value(&mut self, names: &[&str]) -> Option<String> {
        let mut found = None;
        while let Some(place) = self.0.iter().position(|word| names.contains(&name(word).as_str()))
        {
            let word = self.0.remove(place);
            found = Some(match word.split_once('=') {
                Some((_, value)) => value.to_owned(),
                None if place < self.0.len() => self.0.remove(place),
                None => String::new(),
            });
        }
        found
    }

    /// Removes all occurrences of a flag without a value, and returns whether there was one.
    pub(crate) fn switch(&mut self, names: &[&str]) -> bool {
        let before = self.0.len();
        self.0.retain(|word| !names.contains(&name(word).as_str()));
        self.0.len() < before
    }

    /// Removes a flag with one value or more, and returns its values.
    pub(crate) fn list(&mut self, names: &[&str]) -> Vec<String> {
        let mut values = Vec::new();
        while let Some(place) = self.0.iter().position(|word| names.contains(&name(word).as_str()))
        {
            let word = self.0.remove(place);
            values.extend(word.split_once('=').map(|(_, value)| value.to_owned()));
            while self.0.get(place).is_some_and(|word| !word.starts_with('-')) {
                values.push(self.0.remove(place));
            }
        }
        values
    }

    /// Removes the first word if it is not a flag.
    pub(crate) fn positional(&mut self) -> Option<String> {
        self.0.first().filter(|word| !word.starts_with('-'))?;
        Some(self.0.remove(0))
    }

    pub(crate) fn has(&self, names: &[&str]) -> bool {
        self.0.iter().any(|word| names.contains(&name(word).as_str()))
    }

    /// Removes the flags whose values are secrets, and returns their names.
    pub(crate) fn secrets(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(flag) = self
            .0
            .iter()
            .filter(|word| word.starts_with('-'))
            .map(|word| name(word))
            .find(|flag| is_secret_flag(flag))
        {
            self.list(&[&flag]);
            found.push(flag);
        }
        found
    }

    pub(crate) fn into_words(self) -> Vec<String> {
        self.0
    }
}

/// Returns the flag of a word without its value, with dashes in place of underscores, which vLLM
/// treats alike.
fn name(word: &str) -> String {
    let flag = word.split('=').next().unwrap_or(word);
    if flag.starts_with("--") { flag.replace('_', "-") } else { flag.to_owned() }
}
