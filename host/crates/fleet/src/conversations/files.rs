//! The files of saved conversations.
//!
//! ```text
//!   <state-dir>/conversations/<lane>/<id>.bin    what the engine saved
//!   <state-dir>/conversations/<lane>/<id>.json   what is known of it; written last
//! ```
//!
//! A `.bin` without a `.json` was not saved completely, or may have holes after a power failure: it
//! is deleted at the next start.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_files::{
    create_private, is_temporary, open_private, open_private_with, read_private, write_atomic,
};
use serde_json::{Value, json};

use super::index::Record;
use super::plan::{ConversationPrompt, FileId, Owner};
use crate::process::escape;

/// The version of the `.json` files; files of other versions are deleted.
const VERSION: u64 = 1;
/// Maximum size of a `.json` file: the hashes of the longest prompt take 64 KiB of it.
const MAX_RECORD: u64 = 1 << 20;
const MODE: u32 = 0o600;

/// The folder of all saved conversations.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Creates the folder in a state directory, for this user only.
    pub(super) fn create(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("conversations");
        private(&path)?;
        Ok(Self(path))
    }

    /// Creates the folder of a lane, in which its engine writes, and returns it.
    pub(super) fn create_lane(&self, lane: &str) -> io::Result<PathBuf> {
        let path = self.lane(lane);
        private(&path)?;
        Ok(path)
    }

    fn lane(&self, lane: &str) -> PathBuf {
        self.0.join(escape(lane))
    }

    fn path(&self, lane: &str, file: FileId, extension: &str) -> PathBuf {
        self.lane(lane).join(format!("{file}.{extension}"))
    }

    /// Returns the name by which the engine knows a file.
    pub(super) fn name(file: FileId) -> String {
        format!("{file}.bin")
    }

    /// Creates an empty file for the engine to write to, so that it has the right mode from the
    /// start.
    pub(super) fn reserve(&self, lane: &str, file: FileId) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let path = self.path(lane, file, "bin");
        open_private_with(&path, options.write(true).create_new(true)).map_err(io::Error::other)?;
        Ok(())
    }

    /// Returns the size of what the engine saved.
    pub(super) fn size(&self, lane: &str, file: FileId) -> io::Result<u64> {
        Ok(fs::symlink_metadata(self.path(lane, file, "bin"))?.len())
    }

    /// Returns the bytes that are free on the disk for this user.
    pub(super) fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.0).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes a file durable. Blocks until the disk has it.
    pub(super) fn commit(&self, file: FileId, record: &Record) -> io::Result<()> {
        let path = self.path(&record.lane, file, "bin");
        // An engine may have replaced the file.
        fs::set_permissions(&path, Permissions::from_mode(MODE))?;
        // Before the record: after a power failure a file could have the right size and no content.
        open_private(&path).map_err(io::Error::other)?.sync_data()?;
        let path = self.path(&record.lane, file, "json");
        write_atomic(&path, to_json(record).to_string().as_bytes(), MODE).map_err(io::Error::other)
    }

    /// Deletes a file. The record goes first, so that none is left without its file.
    pub(super) fn delete(&self, lane: &str, file: FileId) {
        for extension in ["json", "bin"] {
            let path = self.path(lane, file, extension);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "failed to delete a file");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Reads what earlier hosts have saved, and deletes what is not complete.
    pub(super) fn load(&self) -> Vec<(FileId, Record)> {
        let lanes = entries(&self.0).into_iter().filter(|path| path.is_dir());
        lanes.flat_map(|lane| self.load_lane(&lane)).collect()
    }

    fn load_lane(&self, folder: &Path) -> Vec<(FileId, Record)> {
        let files = entries(folder);
        let mut records = Vec::new();
        let has_extension =
            |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
        for path in files.iter().filter(|path| has_extension(path, "json")) {
            let record = id_of(path).zip(read_record(path)).filter(|(file, record)| {
                self.lane(&record.lane) == folder
                    && self.size(&record.lane, *file).is_ok_and(|size| size == record.bytes)
            });
            match record {
                Some(record) => records.push(record),
                None => remove(path),
            }
        }
        for path in files.iter().filter(|path| !has_extension(path, "json")) {
            let is_known =
                id_of(path).is_some_and(|id| records.iter().any(|(file, _)| *file == id));
            if !is_known && (has_extension(path, "bin") || is_temporary(path)) {
                remove(path);
            }
        }
        records
    }
}

fn private(path: &Path) -> io::Result<()> {
    create_private(path).map_err(io::Error::other)?;
    // The names of lanes and the sizes of conversations are for this user only.
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "failed to delete a file");
    }
}

fn id_of(path: &Path) -> Option<FileId> {
    let stem = path.file_stem()?.to_str()?;
    (stem.len() == 32).then(|| u128::from_str_radix(stem, 16).ok().map(FileId)).flatten()
}

fn read_record(path: &Path) -> Option<Record> {
    let bytes = read_private(path, MAX_RECORD).ok()?;
    from_json(&serde_json::from_slice(&bytes).ok()?)
}

fn to_json(record: &Record) -> Value {
    let Owner { tenant, key } = &record.prompt.owner;
    let blocks: String = record.prompt.blocks.iter().map(|block| format!("{block:016x}")).collect();
    json!({
        "version": VERSION,
        "lane": record.lane,
        "fingerprint": format!("{:016x}", record.fingerprint),
        "tenant": tenant.as_deref(),
        "key": key.as_deref(),
        "blocks": blocks,
        "prompt_tokens": record.prompt_tokens,
        "saved_tokens": record.saved_tokens,
        "bytes": record.bytes,
        "used": record.used.as_secs(),
    })
}

fn from_json(value: &Value) -> Option<Record> {
    if value["version"] != VERSION {
        return None;
    }
    let text = |key: &str| value[key].as_str();
    let number = |key: &str| value[key].as_u64();
    let tokens = |key: &str| u32::try_from(number(key)?).ok();
    let hash = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let blocks = text("blocks")?;
    let blocks: Option<Vec<u64>> =
        (0..blocks.len()).step_by(16).map(|at| hash(blocks.get(at..at + 16)?)).collect();
    let owner = Owner { tenant: text("tenant").map(Arc::from), key: text("key").map(Arc::from) };
    Some(Record {
        lane: text("lane")?.to_owned(),
        fingerprint: hash(text("fingerprint")?)?,
        prompt: ConversationPrompt { owner, blocks: blocks?.into() },
        prompt_tokens: tokens("prompt_tokens")?,
        saved_tokens: tokens("saved_tokens")?,
        bytes: number("bytes")?,
        used: Duration::from_secs(number("used")?),
    })
}

#[cfg(test)]
mod tests;
