//! The files of a policy's folder that make a version. They are read completely before any of them
//! is used.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_files::{ReadError, read_regular, read_regular_text};
use sha2::{Digest as _, Sha256};

use crate::digest::hex;
use crate::limits::{MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES};
use crate::version::error::LoadError;
use crate::version::manifest::{self, Manifest};
use crate::version::signature;
use pointsman_spec::Settings;

/// Maximum size of the golden cases and the signature, in bytes each.
const MAX_TEXT_BYTES: u64 = 8 << 20;
/// Delay between two attempts to read a folder that is being written to. With
/// [`MAX_SETTLE_ATTEMPTS`] this waits up to two seconds for a writer.
const SETTLE_DELAY: Duration = Duration::from_millis(50);
/// Attempts after which a folder that keeps changing is read as it is.
const MAX_SETTLE_ATTEMPTS: u32 = 40;

/// The contents of a policy's folder.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    /// The folder, for messages.
    pub(crate) dir: PathBuf,
    pub(crate) manifest_text: String,
    pub(crate) manifest: Manifest,
    pub(crate) component: Vec<u8>,
    /// `None` without golden cases.
    pub(crate) cases: Option<String>,
    pub(crate) signature: Option<String>,
}

/// The metadata of a folder's files. If the stamp is unchanged, so are the files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stamp(Vec<Option<FileStamp>>);

/// Device, inode, size, and the times at which content and inode changed.
type FileStamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl Stamp {
    /// Reads the stamp of the files that a bundle consists of. Symbolic links are followed, because
    /// some tools replace a whole folder by changing a link.
    pub(crate) fn read(dir: &Path) -> Self {
        // If a manifest renames its files, the manifest has changed, and so has the stamp.
        let mut files = vec![dir.to_owned()];
        files.extend(
            [manifest::FILE, "policy.wasm", "cases.jsonl", signature::FILE]
                .map(|name| dir.join(name)),
        );
        if let Ok(manifest) = Manifest::load(dir) {
            files.extend([dir.join(manifest.file), dir.join(manifest.cases)]);
        }
        let stamp = |file: &PathBuf| {
            let metadata = fs::metadata(file).ok()?;
            let (modified, changed) = (
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            );
            Some((metadata.dev(), metadata.ino(), metadata.size(), modified, changed))
        };
        Self(files.iter().map(stamp).collect())
    }
}

impl Bundle {
    /// Reads the folder, once it has stopped changing.
    ///
    /// # Errors
    /// If a file is missing, unreadable, too large or invalid; the error names the file.
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        for _ in 0..MAX_SETTLE_ATTEMPTS {
            let before = Stamp::read(dir);
            let bundle = Self::read_once(dir);
            if Stamp::read(dir) == before {
                return bundle;
            }
            #[expect(clippy::disallowed_methods, reason = "no event to wait for")]
            std::thread::park_timeout(SETTLE_DELAY);
        }
        Self::read_once(dir)
    }

    fn read_once(dir: &Path) -> Result<Self, LoadError> {
        let manifest_text = read_regular_text(&dir.join(manifest::FILE), MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&dir.join(manifest::FILE), &manifest_text)?;
        let component = read_regular(&dir.join(&manifest.file), MAX_COMPONENT_BYTES)?;
        let text = |name: &Path| optional(read_regular_text(&dir.join(name), MAX_TEXT_BYTES));
        Ok(Self {
            cases: text(&manifest.cases)?,
            signature: text(Path::new(signature::FILE))?,
            dir: dir.to_owned(),
            manifest_text,
            manifest,
            component,
        })
    }

    /// Returns the files of the bundle, relative to the folder.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let optional = [
            self.cases.as_ref().map(|_| self.manifest.cases.clone()),
            self.signature.as_ref().map(|_| PathBuf::from(signature::FILE)),
        ];
        let required = [self.manifest.file.clone(), PathBuf::from(manifest::FILE)];
        optional.into_iter().flatten().chain(required).collect()
    }

    /// Returns the digest, in hexadecimal, of everything that makes a version: component, manifest
    /// and the operator's settings. Golden cases are not part of it: they validate a version and do
    /// not change it.
    pub(crate) fn fingerprint(&self, settings: &Settings) -> String {
        let mut hasher = Sha256::new();
        let settings = serde_json::to_vec(settings).unwrap_or_default();
        for part in [self.component.as_slice(), self.manifest_text.as_bytes(), &settings] {
            // With its length, so that bytes cannot move from one part to the next.
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hex(&hasher.finalize())
    }
}

/// The files of a policy that a host loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFiles {
    /// The name in the manifest.
    pub name: String,
    /// The version in the manifest.
    pub version: String,
    /// The file of the component.
    pub component: PathBuf,
    /// The files, relative to the folder. Their names have no folders.
    pub files: Vec<PathBuf>,
}

impl PolicyFiles {
    /// Reads the files in a policy's folder, as far as that is needed to list them.
    ///
    /// # Errors
    /// If a file is missing, unreadable, too large or invalid; the error names the file.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let bundle = Bundle::read(dir)?;
        let files = bundle.files();
        let Manifest { name, version, file, .. } = bundle.manifest;
        Ok(Self { name, version, component: file, files })
    }
}

/// Turns the error of a missing file into `None`.
fn optional(read: Result<String, ReadError>) -> Result<Option<String>, ReadError> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
