//! The text of the configuration file: whether it has changed, and whether it is complete.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_config::{Config, ConfigError, Discovery, Pick};

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
    /// Where further lanes come from.
    discovery: Vec<Arc<dyn Discovery>>,
    /// The table `[pick]` in force, and the versions of the lanes in force.
    picked: Option<(Pick, Versions)>,
}

/// The version of the lanes of each source; `None` if they have to be read once more.
type Versions = Option<Vec<u64>>;

/// A text that may be applied.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) stamp: Stamp,
    pub(super) text: String,
    pub(super) table: toml::Table,
    /// The versions of the lanes, by the table `[pick]` in force.
    versions: Versions,
}

impl Candidate {
    /// Returns a text that is not that of the file.
    pub(super) fn from_text(text: String) -> Self {
        Self { stamp: None, table: parse(&text), text, versions: None }
    }
}

impl Source {
    /// Creates the source of a host that was started with `text`, and with the lanes of these
    /// sources.
    pub(super) fn new(file: &Path, text: String, discovery: Vec<Arc<dyn Discovery>>) -> Self {
        let (stamp, table) = (stamp(file), parse(&text));
        let (file, started) = (file.to_owned(), table.clone());
        Self { file, in_force: stamp, text, started, table, discovery, picked: None }
    }

    /// Notes the table with which the host was started, whose lanes have been read.
    pub(super) fn set_pick(&mut self, pick: Option<&Pick>) {
        self.picked = pick.map(|pick| (pick.clone(), Some(self.versions(pick))));
        self.discovery.iter().for_each(|source| source.follow(pick));
    }

    fn versions(&self, pick: &Pick) -> Vec<u64> {
        self.discovery.iter().map(|source| source.version(pick)).collect()
    }

    /// Returns where further lanes come from.
    pub(super) fn discovery(&self) -> Vec<&dyn Discovery> {
        self.discovery.iter().map(|source| &**source).collect()
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
        let is_other =
            |(pick, read): &(Pick, Versions)| read.as_ref() != Some(&self.versions(pick));
        stamp(&self.file) != self.in_force || self.picked.as_ref().is_some_and(is_other)
    }

    /// Returns true if the file was last changed at least this long ago. A clock that was set back
    /// does not make it wait forever.
    pub(super) fn is_quiet(&self, period: Duration) -> bool {
        let endpoints = self.picked.as_ref().and_then(|(pick, _)| pick.endpoints.as_ref());
        let files = endpoints.into_iter().chain([&self.file]);
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
        let versions = self.picked.as_ref().map(|(pick, _)| self.versions(pick));
        let stamp = stamp(&self.file);
        let text = Config::source(&self.file)?;
        Ok(Candidate { stamp, table: parse(&text), text, versions })
    }

    /// Returns true if the file was cut off where it is: its content is the beginning of the one
    /// that is in force. An editor or tool that renames a new file into place does not count.
    pub(super) fn is_cut_off(&self, candidate: &Candidate) -> bool {
        let place = |stamp: Stamp| stamp.map(|(device, inode, ..)| (device, inode));
        place(candidate.stamp) == place(self.in_force)
            && candidate.text.len() < self.text.len()
            && self.text.starts_with(&candidate.text)
    }

    /// Notes that the content was applied, with further lanes by this table.
    pub(super) fn applied(&mut self, candidate: Candidate, pick: Option<&Pick>) {
        let Candidate { stamp, text, table, versions } = candidate;
        (self.in_force, self.text, self.table) = (stamp, text, table);
        let known = self.picked.take();
        self.picked = pick.map(|pick| match known {
            Some((known, _)) if known == *pick => (known, versions),
            // The lanes may have changed before the table was known: they are read once more.
            Some(_) | None => (pick.clone(), None),
        });
        self.discovery.iter().for_each(|source| source.follow(pick));
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
        let mut source = Source::new(&file, whole.to_owned(), Vec::new());
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
