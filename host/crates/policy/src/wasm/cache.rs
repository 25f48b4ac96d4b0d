//! A cache of compiled components on disk, so that a host does not compile at every start.
//!
//! A compiled component is machine code: loading it means trusting its writer. So a file is only
//! loaded if this user wrote it, no other user can write to it or to its folder, and its digest is
//! correct. The name of a file is the digest of the component and a hash of everything that the
//! code depends on: the version and the settings of wasmtime, and the CPU.

use std::cmp::Reverse;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use pointsman_files::{ReadError, create_private, is_temporary, open_private, write_atomic};
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// Length of the digest at the end of a file.
const DIGEST_LEN: usize = 32;
/// Maximum number of files. Files in use are never removed; the others are removed in the order of
/// their last use.
const MAX_FILES: usize = 128;
/// Maximum size of all files, in bytes. CPython's component compiles to 35 MB.
const MAX_CACHE_BYTES: u64 = 1 << 30;
/// Age of an incomplete file after which its writer is assumed to have crashed.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// Extension of a complete file.
const COMPLETE: &str = "cwasm";

/// Compiled code that this host's own compiler produced, now or before an earlier start. Only this
/// type is ever loaded, and only these two sources create it.
pub(crate) struct Code(Vec<u8>);

impl Code {
    /// Wraps the output of the compiler, in this process or in a child that runs this program.
    pub(crate) fn from_compiler(code: Vec<u8>) -> Self {
        Self(code)
    }

    /// Loads the code.
    ///
    /// The code is copied into private memory and not mapped from its file, although mapping would
    /// share pages: changing a mapped file would change code that was already checked, and
    /// truncating it would kill the host with SIGBUS.
    #[expect(
        unsafe_code,
        reason = "the only place that loads compiled code; the rest of this module makes it safe"
    )]
    pub(crate) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the code must be the unchanged output of `precompile_component` of an engine with
        // the same settings. It came from our compiler through a pipe, or from a file that only we
        // can write, with a correct digest and the compatibility hash in its name; wasmtime checks
        // its settings again.
        unsafe { Component::deserialize(engine, &self.0) }
    }

    /// Loads the code of a core module: a part of a component.
    #[expect(unsafe_code, reason = "as for components; the rest of this module makes it safe")]
    pub(crate) fn module(&self, engine: &Engine) -> wasmtime::Result<Module> {
        // SAFETY: as for `component`, with `precompile_module`.
        unsafe { Module::deserialize(engine, &self.0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Code({} bytes)", self.len())
    }
}

/// Returns a hash of everything that compiled code depends on: the version and the settings of
/// wasmtime, the CPU, and our own version.
pub(crate) fn compatibility(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    hasher.finish()
}

/// The cache in one folder.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    compatibility: u64,
    in_use: Mutex<Vec<Weak<str>>>,
}

/// Keeps the code of a component in the cache while it is alive.
#[derive(Debug)]
pub(crate) struct CacheLease(
    #[expect(dead_code, reason = "only its reference count is used")] Arc<str>,
);

/// The reason why a file of the cache is not loaded.
#[derive(Debug, thiserror::Error)]
enum ReadCodeError {
    #[error(transparent)]
    Open(#[from] ReadError),
    #[error("failed to read: {0}")]
    Read(#[from] io::Error),
    #[error("digest mismatch")]
    Digest,
}

/// A file of the cache that is not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub(crate) struct RejectedEntry {
    path: PathBuf,
    error: String,
}

impl RejectedEntry {
    /// Logs that the component is compiled although there is a file.
    pub(crate) fn log(&self) {
        tracing::warn!(
            event = "cache_entry_rejected",
            path = %self.path.display(),
            error = self.error,
            "ignoring cached code of a policy"
        );
    }
}

impl Cache {
    /// Opens the cache in `dir`. Logs a warning and returns `None` if the folder cannot be created,
    /// or other users can write to it.
    pub(crate) fn open(dir: PathBuf, engine: &Engine) -> Option<Self> {
        if let Err(error) = create_private(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "compilation cache disabled");
            return None;
        }
        Some(Self { dir, compatibility: compatibility(engine), in_use: Mutex::default() })
    }

    /// Loads the compiled code of the component or module with this digest; `None` if it is not in
    /// the cache. `load` is [`Code::component`] or [`Code::module`].
    ///
    /// # Errors
    /// If there is a file that must not be loaded.
    pub(crate) fn load<T>(
        &self,
        digest: &str,
        load: impl FnOnce(&Code) -> wasmtime::Result<T>,
    ) -> Result<Option<T>, RejectedEntry> {
        let path = self.path(digest);
        let loaded = match read_ours(&path) {
            Ok(code) => load(&code).map(Some).map_err(|error| format!("{error:#}")),
            Err(ReadCodeError::Open(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        loaded.map_err(|error| RejectedEntry { path, error })
    }

    /// Stores compiled code, and removes the files that have not been used for the longest time.
    /// Errors are logged: without the cache, the next start compiles again.
    pub(crate) fn store(&self, digest: &str, code: &Code) {
        let path = self.path(digest);
        let content = [&code.0[..], &Sha256::digest(&code.0)].concat();
        if let Err(error) = write_atomic(&path, &content, 0o600) {
            tracing::warn!(file = %path.display(), %error, "failed to cache compiled code");
        }
        if let Err(error) = self.prune(MAX_FILES, MAX_CACHE_BYTES) {
            tracing::warn!(
                dir = %self.dir.display(), %error, "failed to prune the compilation cache"
            );
        }
    }

    /// Marks the code of a component as in use.
    pub(crate) fn lease(&self, digest: &str) -> CacheLease {
        let name = Arc::from(self.name(digest));
        let mut in_use = self.in_use.lock();
        in_use.retain(|name| name.strong_count() > 0);
        in_use.push(Arc::downgrade(&name));
        CacheLease(name)
    }

    /// Removes the least recently used files until the rest is within the limits, and abandoned
    /// partial files.
    fn prune(&self, max_files: usize, max_bytes: u64) -> io::Result<()> {
        let in_use: Vec<Arc<str>> = {
            let in_use = self.in_use.lock();
            in_use.iter().filter_map(Weak::upgrade).collect()
        };
        let now = SystemTime::now();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            // Another host with the same cache may have removed it.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            let used = metadata.modified()?;
            if path.extension().is_some_and(|end| end == COMPLETE) {
                files.push((used, metadata.len(), path));
            } else if is_temporary(&path)
                && now.duration_since(used).is_ok_and(|age| age > ABANDONED_AFTER)
            {
                remove(&path)?;
            }
        }
        files.sort_by_key(|(used, ..)| Reverse(*used));
        let is_in_use = |path: &Path| {
            in_use.iter().any(|name| path.file_name().is_some_and(|file| file == &**name))
        };
        let (used, unused): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(_, _, path)| is_in_use(path));
        let (mut count, mut bytes) =
            (used.len(), used.iter().map(|(_, length, _)| length).sum::<u64>());
        for (_, length, path) in unused {
            count += 1;
            // Sparse files may claim any length.
            bytes = bytes.saturating_add(length);
            if count > max_files || bytes > max_bytes {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn name(&self, digest: &str) -> String {
        format!("{digest}-{:016x}.{COMPLETE}", self.compatibility)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(self.name(digest))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a file that only this user can have written, and marks it as used now.
fn read_ours(path: &Path) -> Result<Code, ReadCodeError> {
    let mut file = open_private(path)?;
    let mut content = Vec::new();
    let size = file.by_ref().take(MAX_CACHE_BYTES).read_to_end(&mut content)?;
    let length = size.checked_sub(DIGEST_LEN).ok_or(ReadCodeError::Digest)?;
    let digest = content.split_off(length);
    if Sha256::digest(&content)[..] != digest[..] {
        return Err(ReadCodeError::Digest);
    }
    // May fail on a read-only file system, where nothing is pruned either.
    file.set_modified(SystemTime::now()).ok();
    Ok(Code(content))
}

#[cfg(test)]
mod tests;
