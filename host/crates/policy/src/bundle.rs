//! Everything in a policy's folder that makes a version, read whole before anything is done with it.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::component::{MOST_BYTES, hex};
use crate::manifest::{self, Manifest};
use crate::signature;
use crate::spec::Settings;
use crate::version::LoadError;

/// Longest manifest, golden cases and signature.
const MOST_TEXT: u64 = 8 << 20;
/// Whoever writes a policy file by file gets this long, in steps of this, before what is there is taken as it is.
const SETTLE: (Duration, u32) = (Duration::from_millis(50), 40);
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

/// What a look at a folder's files shows without reading them: if it differs, so may they.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stamp(Vec<Option<FileStamp>>);

/// Device, inode, size, and when content and inode changed.
type FileStamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl Stamp {
    /// The stamp of the files that a bundle is made of. Links are followed, because that is how whole folders are swapped.
    pub(crate) fn of(dir: &Path) -> Self {
        // A manifest may give files other names; it has changed then, and so has the folder.
        let mut files = vec![dir.to_owned()];
        files.extend(
            [manifest::FILE, "policy.wasm", "cases.jsonl", signature::FILE]
                .map(|name| dir.join(name)),
        );
        if let Ok(manifest) = Manifest::load(dir) {
            files.extend([dir.join(manifest.file), dir.join(manifest.cases)]);
        }
        let stamp = |file: &PathBuf| {
            let found = fs::metadata(file).ok()?;
            let (written, changed) =
                ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
            Some((found.dev(), found.ino(), found.size(), written, changed))
        };
        Self(files.iter().map(stamp).collect())
    }
}

impl Bundle {
    /// Read the folder, once nobody is writing to it any more.
    ///
    /// # Errors
    /// With the file that cannot be read, or is not what it should be.
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        let (pause, most) = SETTLE;
        for _ in 0..most {
            let before = Stamp::of(dir);
            let bundle = Self::read_once(dir);
            if Stamp::of(dir) == before {
                return bundle;
            }
            std::thread::park_timeout(pause);
        }
        Self::read_once(dir)
    }

    fn read_once(dir: &Path) -> Result<Self, LoadError> {
        let manifest_text = read_text(&dir.join(manifest::FILE))?;
        let manifest = Manifest::parse(&dir.join(manifest::FILE), &manifest_text)?;
        let component = read(&dir.join(&manifest.file), MOST_BYTES)?;
        Ok(Self {
            cases: optional(read_text(&dir.join(&manifest.cases)))?,
            signature: optional(read_text(&dir.join(signature::FILE)))?,
            dir: dir.to_owned(),
            manifest_text,
            manifest,
            component,
        })
    }

    /// Digest of all that makes a version: component, manifest and what the operator set, in hexadecimal. Golden cases do
    /// not belong to it: they prove a version, and do not change it.
    pub(crate) fn fingerprint(&self, settings: &Settings) -> String {
        let mut hasher = Sha256::new();
        let settings = serde_json::to_vec(settings).unwrap_or_default();
        for part in [self.component.as_slice(), self.manifest_text.as_bytes(), &settings] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hex(&hasher.finalize())
    }
}

fn read_text(file: &Path) -> Result<String, LoadError> {
    String::from_utf8(read(file, MOST_TEXT)?).map_err(|_| fail(file, "is not text in UTF-8"))
}

/// A file that need not be there.
fn optional(read: Result<String, LoadError>) -> Result<Option<String>, LoadError> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(LoadError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(file: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing { file: file.display().to_string() },
        _ => fail(file, &format!("cannot be read: {error}")),
    };
    let opened = fs::File::open(file).map_err(cannot)?;
    let mut content = Vec::new();
    opened.take(most + 1).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > most {
        return Err(fail(file, &format!("is longer than {most} bytes, which is the limit")));
    }
    Ok(content)
}

fn fail(file: &Path, what: &str) -> LoadError {
    LoadError::File { file: file.display().to_string(), what: what.to_owned() }
}
