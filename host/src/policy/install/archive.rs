//! Reads policies from tar archives (ustar, with the extensions of GNU tar and pax as far as they
//! do not change names or sizes). Nothing but the names and contents of regular files is used.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Bytes of a header, and the unit in which contents are padded.
const BLOCK: usize = 512;
/// Maximum size of an archive in bytes: a component, the other files, and what a host ignores.
pub(super) const MAX_ARCHIVE_BYTES: u64 = 64 << 20;
/// Maximum entries of an archive.
const MAX_ENTRIES: usize = 1000;

/// Why an archive cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArchiveError {
    /// A header is not one of a tar archive.
    #[error("not an uncompressed tar archive: invalid header at byte {0}")]
    Header(usize),
    /// The archive ends within an entry.
    #[error("the archive is cut off at byte {0}")]
    CutOff(usize),
    /// A name leads out of the archive's folder.
    #[error("invalid name \"{}\": expected a relative path without `..`", .0.display())]
    Path(PathBuf),
    /// An entry is neither a regular file nor a folder.
    #[error(
        "\"{}\" is neither a regular file nor a folder (type `{kind}`); links, devices and long \
         names are not supported",
        path.display()
    )]
    Kind {
        /// The name of the entry.
        path: PathBuf,
        /// The type of the entry.
        kind: char,
    },
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
            Self::Header(_) | Self::CutOff(_) => "archive_invalid",
            Self::Path(_) | Self::Kind { .. } | Self::Twice(_) => "archive_entry_forbidden",
            Self::TooManyEntries => "archive_too_large",
            Self::NoManifest => "file_missing",
        }
    }
}

/// Returns the files in the folder of the manifest, by name. Files in folders below it are left
/// out: a host loads none of them.
pub(super) fn policy_files(archive: &[u8]) -> Result<BTreeMap<PathBuf, &[u8]>, ArchiveError> {
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
fn regular_files(archive: &[u8]) -> Result<BTreeMap<PathBuf, &[u8]>, ArchiveError> {
    let mut files = BTreeMap::new();
    let mut at = 0;
    for _ in 0..MAX_ENTRIES {
        let header = archive.get(at..at + BLOCK).ok_or(ArchiveError::CutOff(at))?;
        // A block of zeros ends the archive.
        if header.iter().all(|byte| *byte == 0) {
            return Ok(files);
        }
        let header = Header::parse(header).ok_or(ArchiveError::Header(at))?;
        let start = at + BLOCK;
        let end = start.checked_add(header.size).ok_or(ArchiveError::CutOff(at))?;
        let content = archive.get(start..end).ok_or(ArchiveError::CutOff(at))?;
        at = start + header.size.next_multiple_of(BLOCK);
        let path = relative(&header.path).ok_or_else(|| ArchiveError::Path(header.path.clone()))?;
        match header.kind {
            b'0' | 0 => {
                if files.insert(path.clone(), content).is_some() {
                    return Err(ArchiveError::Twice(path));
                }
            }
            b'5' => {}
            // Attributes of pax, which may give the next entry another name or size.
            b'g' | b'x' if !has_key(content, "path") && !has_key(content, "size") => {}
            kind => return Err(ArchiveError::Kind { path, kind: kind.into() }),
        }
    }
    Err(ArchiveError::TooManyEntries)
}

/// Returns whether attributes of pax (`LENGTH KEY=VALUE`, one per line) may have this key.
fn has_key(content: &[u8], key: &str) -> bool {
    let part = format!(" {key}=");
    content.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Returns a path without `.`; `None` if it may lead out of its folder.
fn relative(path: &Path) -> Option<PathBuf> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect()
}

/// What is used of a header.
struct Header {
    path: PathBuf,
    size: usize,
    kind: u8,
}

impl Header {
    /// Parses a block of [`BLOCK`] bytes; `None` if it is not a valid header.
    fn parse(block: &[u8]) -> Option<Self> {
        const CHECKSUM: std::ops::Range<usize> = 148..156;
        let sum: usize = block.iter().map(|byte| usize::from(*byte)).sum();
        let own: usize = block.get(CHECKSUM)?.iter().map(|byte| usize::from(*byte)).sum();
        // The checksum counts itself as blanks.
        let is_intact = octal(block.get(CHECKSUM)?)? == sum - own + CHECKSUM.len() * 32;
        if !is_intact || !block.get(257..)?.starts_with(b"ustar") {
            return None;
        }
        let name = text(block.get(..100)?)?;
        // GNU tar keeps times here, in its own format.
        let is_posix = block.get(257..263)? == b"ustar\0";
        let prefix = if is_posix { text(block.get(345..500)?)? } else { "" };
        let path = Path::new(prefix).join(name);
        // Joining a rooted name would drop the prefix.
        let is_rooted = !prefix.is_empty() && Path::new(name).has_root();
        let size = octal(block.get(124..136)?)?;
        (!is_rooted).then_some(Self { path, size, kind: *block.get(156)? })
    }
}

/// Parses a text that ends with a zero or with its field.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field.split(|byte| *byte == 0).next()?).ok()
}

/// Parses an octal number that is padded with blanks and zeros.
fn octal(field: &[u8]) -> Option<usize> {
    usize::from_str_radix(text(field)?.trim(), 8).ok()
}

#[cfg(test)]
mod tests;
