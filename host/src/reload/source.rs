//! The text of the configuration file: whether it has changed, and whether it is complete.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_config::{Config, ConfigError};

use crate::stamp::{Stamp, stamp};

/// The configuration file, and the text of it that is in force.
#[derive(Debug)]
pub(super) struct Source {
    file: PathBuf,
    /// Of the content that is in force.
    in_force: Stamp,
    text: String,
    table: toml::Table,
    /// The tables with which the host was started.
    started: toml::Table,
    /// The file with further lanes, and its stamp when it was read.
    endpoints: Option<(PathBuf, Stamp)>,
}

/// A text that may be applied.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) stamp: Stamp,
    pub(super) text: String,
    pub(super) table: toml::Table,
    /// The stamp of the file with further lanes that is known.
    endpoints: Stamp,
}

impl Candidate {
    /// Returns a text that is not that of the file.
    pub(super) fn from_text(text: String) -> Self {
        Self { stamp: None, table: parse(&text), text, endpoints: None }
    }
}

impl Source {
    /// Creates the source of a host that was started with `text`.
    pub(super) fn new(file: &Path, text: String) -> Self {
        let (stamp, table) = (stamp(file), parse(&text));
        let (file, started) = (file.to_owned(), table.clone());
        Self { file, in_force: stamp, text, started, table, endpoints: None }
    }

    /// Notes the file with further lanes, which has been read.
    pub(super) fn set_endpoints(&mut self, file: Option<&Path>) {
        self.endpoints = file.map(|file| (file.to_owned(), stamp(file)));
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn table(&self) -> &toml::Table {
        &self.table
    }

    pub(super) fn started(&self) -> &toml::Table {
        &self.started
    }

    /// Returns true if the file is not the one that is in force.
    pub(super) fn has_changed(&self) -> bool {
        let is_other = |(file, read): &(PathBuf, Stamp)| stamp(file) != *read;
        stamp(&self.file) != self.in_force || self.endpoints.as_ref().is_some_and(is_other)
    }

    /// Returns true if the file was last changed at least this long ago. A clock that was set back
    /// does not make it wait forever.
    pub(super) fn is_quiet(&self, period: Duration) -> bool {
        let files = self.endpoints.iter().map(|(file, _)| file).chain([&self.file]);
        files.into_iter().all(|file| Self::is_file_quiet(file, period))
    }

    fn is_file_quiet(file: &Path, period: Duration) -> bool {
        let Some((.., seconds, nanoseconds)) = stamp(file) else { return true };
        let part = u32::try_from(nanoseconds).unwrap_or_default();
        let changed = UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or_default(), part);
        SystemTime::now().duration_since(changed).map_or(true, |age| age >= period)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read(&self) -> Result<Candidate, ConfigError> {
        // Before it is read: a change meanwhile is found by the next look.
        let endpoints = self.endpoints.as_ref().and_then(|(file, _)| stamp(file));
        let stamp = stamp(&self.file);
        let text = Config::source(&self.file)?;
        Ok(Candidate { stamp, table: parse(&text), text, endpoints })
    }

    /// Returns true if the file was cut off where it is: its content is the beginning of the one
    /// that is in force. An editor or tool that renames a new file into place does not count.
    pub(super) fn is_cut_off(&self, candidate: &Candidate) -> bool {
        let place = |stamp: Stamp| stamp.map(|(device, inode, ..)| (device, inode));
        place(candidate.stamp) == place(self.in_force)
            && candidate.text.len() < self.text.len()
            && self.text.starts_with(&candidate.text)
    }

    /// Notes that the content was applied, with the lanes of this further file.
    pub(super) fn applied(&mut self, candidate: Candidate, endpoints: Option<&Path>) {
        let Candidate { stamp, text, table, endpoints: read } = candidate;
        (self.in_force, self.text, self.table) = (stamp, text, table);
        let known = self.endpoints.take();
        self.endpoints = endpoints.map(|file| match known {
            Some((known, _)) if known == file => (known, read),
            // It may have changed since it was read, before it was known: it is read once more.
            Some(_) | None => (file.to_owned(), None),
        });
    }
}

/// Returns the tables of a text, for comparisons; of an invalid one, none.
fn parse(text: &str) -> toml::Table {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_file_that_was_cut_off_in_place_is_suspicious() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        let (whole, part) = ("a = 1\nb = 2\n", "a = 1\n");
        fs::write(&file, whole).unwrap();
        let mut source = Source::new(&file, whole.to_owned());
        assert!(!source.has_changed());
        for (text, expected) in [(part, true), ("", true), ("b = 2\n", false), (whole, false)] {
            fs::write(&file, text).unwrap();
            assert_eq!(source.is_cut_off(&source.read().unwrap()), expected, "{text}");
        }
        let new = dir.path().join("new");
        fs::write(&new, part).unwrap();
        fs::rename(&new, &file).unwrap();
        assert!(source.has_changed() && !source.is_cut_off(&source.read().unwrap()));
        assert!(!source.is_quiet(Duration::from_secs(3600)) && source.is_quiet(Duration::ZERO));
        let candidate = source.read().unwrap();
        source.applied(candidate, None);
        assert!(!source.has_changed());
        assert_eq!((source.table().len(), source.started().len()), (1, 2));
    }
}
