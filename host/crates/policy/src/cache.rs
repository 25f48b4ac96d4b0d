//! Compiled components on disk, so that a start need not compile.
//!
//! A compiled component is machine code: loading one means trusting whoever wrote it. So only files are loaded that this
//! user wrote, in a folder that nobody else may write to, and whose digest is that of their content. The name of a file is
//! the digest of the component and a hash of everything that the code depends on: wasmtime's version and settings, and the
//! CPU.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Length of the digest that a file ends with.
const DIGEST: usize = 32;
/// Files that are kept. Those in use are kept in any case; beyond that, whatever was used last.
const MOST_FILES: usize = 64;
/// Bytes of the files that are kept. CPython's component compiles to 35 MB.
const MOST_FILE_BYTES: u64 = 1 << 30;
/// A file that is still being written after this long never will be.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Ends of the names of files: whole ones, and those being written.
const WHOLE: &str = "cwasm";
const PARTIAL: &str = "new";

/// Compiled code that this host has made: by its own compiler, just now, or at an earlier start and kept since. There is no
/// other way to have one, and no other thing is ever loaded.
pub(crate) struct Code(Vec<u8>);

impl Code {
    /// What our own compiler gave, in this process or through the pipe of a child that runs this program.
    pub(crate) fn of_our_compiler(code: Vec<u8>) -> Self {
        Self(code)
    }

    /// Load it.
    ///
    /// It is copied into memory of its own and not mapped from its file, although that would share its pages: whoever changes
    /// a mapped file changes code that was checked, and whoever cuts it short ends the host with a signal.
    #[expect(
        unsafe_code,
        reason = "the one place where compiled code is loaded; everything around it is there to make that safe"
    )]
    pub(crate) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the code must be what `precompile_component` of an engine with the same settings has made, unchanged. It
        // came from our compiler through a pipe, or from a file that is ours alone, whose digest is right, and whose name
        // carries the compatibility hash; wasmtime checks its settings once more.
        unsafe { Component::deserialize(engine, &self.0) }
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

/// Everything that compiled code depends on: wasmtime's version and settings, the CPU, and our own version.
pub(crate) fn compatibility(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    compatibility: u64,
    in_use: Mutex<Vec<Weak<str>>>,
}

/// While it lives, the code of a component stays in the cache.
#[derive(Debug)]
pub(crate) struct Kept(#[expect(dead_code, reason = "counted, never read")] Arc<str>);

impl Cache {
    /// The cache in `dir`; `None`, with a line in the log, if that folder cannot be trusted or made.
    pub(crate) fn open(dir: PathBuf, engine: &Engine) -> Option<Self> {
        if let Err(error) = make_private(&dir) {
            tracing::warn!("compiled policies are not kept: {}: {error}", dir.display());
            return None;
        }
        Some(Self { dir, compatibility: compatibility(engine), in_use: Mutex::default() })
    }

    /// The compiled component for the component with this digest.
    pub(crate) fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let refused = |error: &dyn std::fmt::Display| {
            tracing::warn!("a compiled policy is not used: {}: {error:#}", path.display());
        };
        match read_ours(&path) {
            Ok(code) => code.component(engine).inspect_err(|error| refused(error)).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                refused(&error);
                None
            }
        }
    }

    /// Keep compiled code, and let go of what was not used for longest. Failing to is no failure.
    pub(crate) fn store(&self, digest: &str, code: &Code) {
        let path = self.path(digest);
        if let Err(error) = write_whole(&path, &code.0) {
            tracing::warn!("a compiled policy is not kept: {}: {error}", path.display());
        }
        if let Err(error) = self.prune(MOST_FILES, MOST_FILE_BYTES) {
            tracing::warn!("old compiled policies stay: {}: {error}", self.dir.display());
        }
    }

    /// Say that the code of a component is in use.
    pub(crate) fn keep(&self, digest: &str) -> Kept {
        let name = Arc::from(self.name(digest));
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|name| name.strong_count() > 0);
        in_use.push(Arc::downgrade(&name));
        Kept(name)
    }

    /// Remove the least recently used files until the rest is within the limits, and those that nobody will finish.
    fn prune(&self, most_files: usize, most_bytes: u64) -> io::Result<()> {
        let in_use: Vec<Arc<str>> = {
            let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
            in_use.iter().filter_map(Weak::upgrade).collect()
        };
        let now = SystemTime::now();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            // Another host with the same cache may be quicker.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            let used = metadata.modified()?;
            match path.extension().and_then(|end| end.to_str()) {
                Some(WHOLE) => files.push((used, metadata.len(), path)),
                Some(PARTIAL) if now.duration_since(used).is_ok_and(|age| age > ABANDONED) => {
                    remove(&path)?
                }
                _ => {}
            }
        }
        files.sort_by_key(|(used, ..)| Reverse(*used));
        let is_in_use = |path: &Path| {
            in_use.iter().any(|name| path.file_name().is_some_and(|it| it == &**name))
        };
        let (used, unused): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(_, _, path)| is_in_use(path));
        let (mut count, mut bytes) =
            (used.len(), used.iter().map(|(_, length, _)| length).sum::<u64>());
        for (_, length, path) in unused {
            count += 1;
            bytes = bytes.saturating_add(length);
            if count > most_files || bytes > most_bytes {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn name(&self, digest: &str) -> String {
        format!("{digest}-{:016x}.{WHOLE}", self.compatibility)
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

/// Make `dir` a folder that only we can write to.
fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_ours(&fs::metadata(dir)?)
}

fn check_ours(metadata: &fs::Metadata) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse("others may write to it; take that away with chmod go-w");
    }
    Ok(())
}

/// The code in a file that only we can have written. It counts as used now.
fn read_ours(path: &Path) -> io::Result<Code> {
    let mut file = File::open(path)?;
    check_ours(&file.metadata()?)?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut file, &mut content)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let length = content.len().checked_sub(DIGEST).ok_or_else(damaged)?;
    let digest = content.split_off(length);
    if Sha256::digest(&content)[..] != digest[..] {
        return Err(damaged());
    }
    // On a file system that is read-only by now it is used all the same.
    drop(file.set_modified(SystemTime::now()));
    Ok(Code(content))
}

fn write_whole(path: &Path, code: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let new = path.with_extension(format!("{}-{number}.{PARTIAL}", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // Half a file on a full disk is worse than none.
        drop(fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests;
