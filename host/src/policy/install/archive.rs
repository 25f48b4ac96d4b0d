//! Reads policies from tar archives. Nothing but the names and contents of regular files is used.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

/// Maximum size of an archive in bytes: a component, the other files, and what a host ignores.
pub(super) const MAX_ARCHIVE_BYTES: u64 = 64 << 20;
/// Maximum entries of an archive.
const MAX_ENTRIES: usize = 1000;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The archive is damaged or not a tar archive.
    #[error("not a whole, uncompressed tar archive: {0}")]
    Invalid(#[from] io::Error),
    /// A name leads out of the archive's folder.
    #[error("invalid name \"{}\": expected a relative path without `..`", .0.display())]
    Path(PathBuf),
    /// An entry is neither a regular file nor a folder.
    #[error("\"{}\" is neither a regular file nor a folder", .0.display())]
    Kind(PathBuf),
    /// Two entries have the same name.
    #[error("\"{}\" is in the archive twice", .0.display())]
    Twice(PathBuf),
    /// The archive has too many entries.
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The archive has no manifest.
    #[error("missing policy.toml: expected it at the top level, or in a single folder")]
    NoManifest,
}

impl ArchiveError {
    /// Returns the stable, machine-readable code of this error.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "archive_invalid",
            Self::Path(_) | Self::Kind(_) | Self::Twice(_) => "archive_entry_forbidden",
            Self::TooManyEntries => "archive_too_large",
            Self::NoManifest => "file_missing",
        }
    }
}

/// Returns the files in the folder of the manifest, by name. Files in folders below it are left
/// out: a host loads none of them.
pub(super) fn policy_files(archive: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>, ArchiveError> {
    let files = regular_files(archive)?;
    let manifests = files.keys().filter(|path| path.ends_with("policy.toml"));
    let manifest = manifests.min_by_key(|path| path.components().count());
    let folder =
        manifest.and_then(|path| path.parent()).ok_or(ArchiveError::NoManifest)?.to_owned();
    if folder.components().count() > 1 {
        return Err(ArchiveError::NoManifest);
    }
    let inside = files.into_iter().filter(|(path, _)| path.parent() == Some(&*folder));
    Ok(inside.filter_map(|(path, content)| Some((path.file_name()?.into(), content))).collect())
}

/// Returns all regular files by path.
fn regular_files(archive: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>, ArchiveError> {
    let mut files = BTreeMap::new();
    for (index, entry) in Archive::new(archive).entries()?.enumerate() {
        if index == MAX_ENTRIES {
            return Err(ArchiveError::TooManyEntries);
        }
        let mut entry = entry?;
        let named = entry.path()?.into_owned();
        let path = relative(&named).ok_or(ArchiveError::Path(named))?;
        match entry.header().entry_type() {
            EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                // Shorter if the archive ends within the entry.
                if content.len() as u64 != entry.size() {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if files.insert(path.clone(), content).is_some() {
                    return Err(ArchiveError::Twice(path));
                }
            }
            EntryType::Directory | EntryType::XGlobalHeader => {}
            _ => return Err(ArchiveError::Kind(path)),
        }
    }
    Ok(files)
}

/// Returns a path without `.`; `None` if it may lead out of its folder.
fn relative(path: &Path) -> Option<PathBuf> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect()
}

#[cfg(test)]
mod tests;
