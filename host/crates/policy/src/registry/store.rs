//! The version store on disk, so that a restarted host knows the active version of each policy, the
//! earlier ones to roll back to, and the rejected ones.
//!
//! ```text
//!   STORE/cortex/slot.json                the role of each version
//!   STORE/cortex/events.json              what happened to the versions
//!   STORE/cortex/<fingerprint>/           the files of a version, copied from the policy's folder
//!     policy.toml  policy.wasm  cases.jsonl  policy.sig  settings.json
//! ```
//!
//! Serving needs nothing of this: errors are logged and otherwise ignored.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pointsman_files::{
    FolderError, ReadError, check_private, create_private, read_private, write_atomic,
};
use pointsman_spec::Settings;
use serde::{Deserialize, Serialize};

use crate::registry::events::Events;
use crate::registry::slot::RejectReason;
use crate::version::bundle::Bundle;
use crate::version::error::LoadError;
use crate::version::manifest::{self, read_error_code};
use crate::version::signature;

/// The file with the roles of the versions. Its format is that of [`SlotRecord`].
const SLOT: &str = "slot.json";
/// The file of format 1, in which the same fields have other names.
const LEGACY_SLOT: &str = "place.json";
/// The file with the events. Its format is that of [`Events`].
const EVENTS: &str = "events.json";
const SETTINGS: &str = "settings.json";
/// Maximum size of [`SLOT`], [`EVENTS`] and [`SETTINGS`] in bytes.
const MAX_RECORD_BYTES: u64 = 8 << 20;
/// The version of the format of [`SLOT`].
const FORMAT: u32 = 2;

/// The roles of the versions of a policy, by their fingerprints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct SlotRecord {
    /// The version of the format; format 1 did not have this field.
    pub(crate) format: u32,
    pub(crate) active: Option<String>,
    /// The candidate. It is staged again from the policy's folder, so only its files are kept.
    #[serde(alias = "trial")]
    pub(crate) candidate: Option<String>,
    pub(crate) history: Vec<String>,
    /// Fingerprints of rejected versions, and the reasons; oldest first.
    #[serde(alias = "set-aside")]
    pub(crate) rejected: Vec<(String, RejectReason)>,
    pub(crate) disabled: bool,
}

impl Default for SlotRecord {
    fn default() -> Self {
        Self {
            format: FORMAT,
            active: None,
            candidate: None,
            history: Vec::new(),
            rejected: Vec::new(),
            disabled: false,
        }
    }
}

/// An error of loading a stored version.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the version is missing or invalid.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file of the store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Other users can write to the store, or it cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The settings or the roles of the versions are invalid.
    #[error("{}: invalid content: {error}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// The cause.
        error: serde_json::Error,
    },
    /// The files are not those that were stored.
    #[error("{}: files do not match the fingerprint", dir.display())]
    Damaged {
        /// The folder of the version.
        dir: PathBuf,
    },
}

impl StoreError {
    /// Returns true if there is no such file or folder.
    fn is_not_found(&self) -> bool {
        match self {
            Self::Read(error) => error.is_not_found(),
            Self::Folder(error) => error.is_not_found(),
            Self::Load(_) | Self::Content { .. } | Self::Damaged { .. } => false,
        }
    }

    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Load(error) => error.code(),
            Self::Read(error) => read_error_code(error),
            Self::Folder(_) => "store_untrusted",
            Self::Content { .. } | Self::Damaged { .. } => "store_damaged",
        }
    }
}

/// The folder of one policy in the store.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Returns the folder of `policy` in `store`. Names of policies are valid folder names.
    pub(crate) fn for_policy(store: &Path, policy: &str) -> Self {
        Self { dir: store.join(policy) }
    }

    /// Reads the roles of the versions; empty if there are none, or they cannot be read.
    pub(crate) fn read_slot(&self) -> SlotRecord {
        self.try_read_slot().unwrap_or_else(|error| {
            let code = error.code();
            tracing::warn!(code, %error, "failed to read stored versions; starting without them");
            SlotRecord::default()
        })
    }

    /// Reads the roles of the versions; empty if there are none.
    ///
    /// # Errors
    /// If they cannot be read, or are invalid.
    pub(crate) fn try_read_slot(&self) -> Result<SlotRecord, StoreError> {
        let mut file = self.dir.join(SLOT);
        let mut read = self.read(&file);
        if read.as_ref().is_err_and(StoreError::is_not_found) {
            file = self.dir.join(LEGACY_SLOT);
            read = self.read(&file);
        }
        let text = match read {
            Err(error) if error.is_not_found() => return Ok(SlotRecord::default()),
            read => read?,
        };
        let parsed: Result<SlotRecord, _> = serde_json::from_slice(&text);
        // The legacy format differs in names only, which the aliases accept.
        match parsed {
            Ok(record) => Ok(SlotRecord { format: FORMAT, ..record }),
            Err(error) => Err(StoreError::Content { file, error }),
        }
    }

    /// Reads the events; none if there are none, or they cannot be read.
    pub(crate) fn read_events(&self) -> Events {
        let file = self.dir.join(EVENTS);
        let read = || match self.read(&file) {
            Err(error) if error.is_not_found() => Ok(Events::default()),
            read => serde_json::from_slice(&read?)
                .map_err(|error| StoreError::Content { file: file.clone(), error }),
        };
        read().unwrap_or_else(|error| {
            let code = error.code();
            tracing::warn!(code, %error, "failed to read the history of a policy");
            Events::default()
        })
    }

    /// Writes the events.
    pub(crate) fn write_events(&self, events: &Events) {
        let text = serde_json::to_vec(events).unwrap_or_default();
        let written = create_private(&self.dir).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| write_private(&self.dir.join(EVENTS), &text)) {
            let dir = self.dir.display();
            tracing::warn!(%dir, %error, "failed to store the history of a policy");
        }
    }

    /// Reads a file that only this user can have written.
    fn read(&self, file: &Path) -> Result<Vec<u8>, StoreError> {
        check_private(&self.dir)?;
        Ok(read_private(file, MAX_RECORD_BYTES)?)
    }

    /// Writes the roles of the versions, and removes the files of versions without a role.
    pub(crate) fn write_slot(&self, record: &SlotRecord) {
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        let written = create_private(&self.dir).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| write_private(&self.dir.join(SLOT), &text)) {
            tracing::warn!(dir = %self.dir.display(), %error, "failed to store policy versions");
            return;
        }
        // Only after the new file exists; an error leaves an old file that is not read any more.
        fs::remove_file(self.dir.join(LEGACY_SLOT)).ok();
        let has_role = |name: &str| {
            let versions = record.active.iter().chain(&record.candidate).chain(&record.history);
            versions.into_iter().any(|version| version == name)
        };
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && !has_role(&name) {
                // A folder that stays only takes disk space; the next write retries.
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }

    /// Stores the files of a version.
    pub(crate) fn save(&self, fingerprint: &str, bundle: &Bundle, settings: &Settings) {
        let dir = self.dir.join(fingerprint);
        let save = || -> io::Result<()> {
            create_private(&dir)?;
            let settings = serde_json::to_vec_pretty(settings).unwrap_or_default();
            write_private(&dir.join(&bundle.manifest.file), &bundle.component)?;
            if let Some(cases) = &bundle.cases {
                write_private(&dir.join(&bundle.manifest.cases), cases.as_bytes())?;
            }
            if let Some(signature) = &bundle.signature {
                write_private(&dir.join(signature::FILE), signature.as_bytes())?;
            }
            write_private(&dir.join(SETTINGS), &settings)?;
            // Last: a folder with a manifest is complete.
            write_private(&dir.join(manifest::FILE), bundle.manifest_text.as_bytes())
        };
        if let Err(error) = save() {
            tracing::warn!(dir = %dir.display(), %error, "failed to store policy version");
            // An incomplete folder has no manifest, so it is not loaded even if it stays.
            fs::remove_dir_all(&dir).ok();
        }
    }

    /// Loads the files of a version.
    ///
    /// # Errors
    /// If a file is missing or unreadable, or the files are not those that were stored.
    pub(crate) fn load(&self, fingerprint: &str) -> Result<(Bundle, Settings), StoreError> {
        let dir = self.dir.join(fingerprint);
        check_private(&self.dir)?;
        check_private(&dir)?;
        let bundle = Bundle::read(&dir)?;
        let file = dir.join(SETTINGS);
        let settings = read_private(&file, MAX_RECORD_BYTES)?;
        let settings: Settings = match serde_json::from_slice(&settings) {
            Ok(settings) => settings,
            Err(error) => return Err(StoreError::Content { file, error }),
        };
        // A stored version that has changed is another version, which has not been validated.
        if bundle.fingerprint(&settings) != fingerprint {
            return Err(StoreError::Damaged { dir });
        }
        Ok((bundle, settings))
    }
}

fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    Ok(write_atomic(file, content, 0o600)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SlotRecord {
        SlotRecord {
            active: Some("two".into()),
            history: vec!["one".into()],
            rejected: vec![("three".into(), RejectReason::operator())],
            disabled: true,
            ..SlotRecord::default()
        }
    }

    #[test]
    fn slot_is_read_back_and_versions_without_a_role_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::for_policy(dir.path(), "a");
        assert_eq!(store.read_slot(), SlotRecord::default());
        for name in ["one", "two", "three"] {
            create_private(&dir.path().join("a").join(name)).unwrap();
        }
        store.write_slot(&record());
        assert_eq!(store.read_slot(), record());
        let exists = |name: &str| dir.path().join("a").join(name).exists();
        assert!(exists("one") && exists("two") && !exists("three"));
        fs::write(dir.path().join("a").join(SLOT), "half a fi").unwrap();
        assert_eq!(store.read_slot(), SlotRecord::default());
    }

    #[test]
    fn legacy_slot_is_read_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::for_policy(dir.path(), "a");
        create_private(&store.dir).unwrap();
        let legacy = r#"{"active": "two", "trial": null, "history": ["one"],
            "set-aside": [["three", "rolled back by an operator"]], "disabled": true}"#;
        fs::write(store.dir.join(LEGACY_SLOT), legacy).unwrap();
        assert_eq!(store.read_slot(), record());
        store.write_slot(&record());
        assert!(store.dir.join(SLOT).exists() && !store.dir.join(LEGACY_SLOT).exists());
        assert_eq!(store.read_slot(), record());
    }
}
