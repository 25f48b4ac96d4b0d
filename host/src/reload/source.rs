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
}

/// A text that may be applied.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) stamp: Stamp,
    pub(super) text: String,
    pub(super) table: toml::Table,
}

impl Source {
    /// Creates the source of a host that was started with `text`.
    pub(super) fn new(file: &Path, text: String) -> Self {
        let (stamp, table) = (stamp(file), parse(&text));
        Self { file: file.to_owned(), in_force: stamp, text, started: table.clone(), table }
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
        stamp(&self.file) != self.in_force
    }

    /// Returns true if the file was last changed at least this long ago. A clock that was set back
    /// does not make it wait forever.
    pub(super) fn is_quiet(&self, period: Duration) -> bool {
        let Some((.., seconds, nanoseconds)) = stamp(&self.file) else { return true };
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
        let stamp = stamp(&self.file);
        let text = Config::source(&self.file)?;
        Ok(Candidate { stamp, table: parse(&text), text })
    }

    /// Returns true if the file was cut off where it is: its content is the beginning of the one
    /// that is in force. An editor or tool that renames a new file into place does not count.
    pub(super) fn is_cut_off(&self, candidate: &Candidate) -> bool {
        let place = |stamp: Stamp| stamp.map(|(device, inode, ..)| (device, inode));
        place(candidate.stamp) == place(self.in_force)
            && candidate.text.len() < self.text.len()
            && self.text.starts_with(&candidate.text)
    }

    /// Notes that the content was applied.
    pub(super) fn applied(&mut self, candidate: Candidate) {
        let Candidate { stamp, text, table } = candidate;
        (self.in_force, self.text, self.table) = (stamp, text, table);
    }
}

/// Returns the tables of a text, for comparisons; of an invalid one, none.
pub(super) fn parse(text: &str) -> toml::Table {
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
        source.applied(candidate);
        assert!(!source.has_changed());
        assert_eq!((source.table().len(), source.started().len()), (1, 2));
    }
}
