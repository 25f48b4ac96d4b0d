//! The lock of a state directory, and its id.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pointsman_files::{FolderError, create_private, open_private_with, read_private, write_atomic};
use rustix::fs::FlockOperation;

use super::StateDirError;
use crate::process::proc;

/// The maximum time to wait for the lock: children of an earlier host hold it until their exec.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size in bytes of the files with a process id or the id of the directory.
const MAX_WORD: u64 = 128;
/// The interval between attempts to take the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The paths in a state directory, with its lock.
#[derive(Debug)]
pub(super) struct LockedPaths {
    /// The absolute path of the directory.
    pub(super) dir: PathBuf,
    pub(super) engines: PathBuf,
    /// The parent of the engines' scratch directories.
    pub(super) scratch: PathBuf,
    lock: File,
}

impl LockedPaths {
    /// Releases the lock. Closing the file is not enough while a child before its exec has it open
    /// too. If this fails, the lock is released when that child has called exec.
    pub(super) fn unlock(&self) {
        rustix::fs::flock(&self.lock, FlockOperation::Unlock).ok();
    }

    /// Takes the lock again.
    pub(super) fn lock_again(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive)?)
    }
}

/// The reason why a state directory cannot be locked.
pub(super) enum LockError {
    InUse(Option<u32>),
    Folder(FolderError),
    Io(io::Error),
}

impl From<FolderError> for LockError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Io { .. } | FolderError::NotAFolder(_) => Self::Io(error.into()),
            FolderError::ForeignLink { .. }
            | FolderError::ForeignOwner { .. }
            | FolderError::Writable { .. } => Self::Folder(error),
        }
    }
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LockError {
    pub(super) fn at(self, dir: &Path) -> StateDirError {
        let dir = dir.to_owned();
        match self {
            Self::InUse(pid) => StateDirError::InUse { dir, pid },
            Self::Folder(error) => StateDirError::Unsafe(error),
            Self::Io(source) => StateDirError::Io { dir, source },
        }
    }
}

/// Locks a state directory, and returns its id and its paths. The lock is held until they are
/// dropped.
pub(super) fn lock(dir: &Path) -> Result<(String, LockedPaths), LockError> {
    let engines = dir.join("engines");
    create_private(dir)?;
    create_private(&engines)?;
    let lock_file = dir.join("lock");
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut lock = open_private_with(&lock_file, &mut options).map_err(io::Error::from)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(LockError::Io(error.into()));
        }
        if Instant::now() >= deadline {
            let mut text = String::new();
            // If this fails, the error message does not name the other host.
            drop(Read::by_ref(&mut lock).take(MAX_WORD).read_to_string(&mut text));
            return Err(LockError::InUse(text.trim().parse().ok()));
        }
        proc::pause(LOCK_RETRY_INTERVAL);
    }
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    if let Err(error) = written {
        // The lock itself is held; only the process id is missing in the other host's message.
        tracing::warn!(
            file = %lock_file.display(),
            error = %error,
            "failed to write the process id to the lock file"
        );
    }
    // Absolute, because engines may have another working directory.
    let dir = fs::canonicalize(dir)?;
    let scratch = dir.join("tmp");
    Ok((read_or_create_id(&dir)?, LockedPaths { dir, engines, scratch, lock }))
}

/// Returns the id of a directory: a random word stored in it, and its inode number, so that a copy
/// of the directory has another id.
fn read_or_create_id(dir: &Path) -> io::Result<String> {
    let meta = fs::metadata(dir)?;
    let path = dir.join("id");
    let is_word = |word: &str| {
        (8..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let known = read_private(&path, MAX_WORD).ok().and_then(|word| String::from_utf8(word).ok());
    if let Some(word) = known.as_deref().map(str::trim)
        && is_word(word)
    {
        return Ok(format!("{word}-{:x}", meta.ino()));
    }
    let word: String = proc::nonce().chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    match write_atomic(&path, format!("{word}\n").as_bytes(), 0o600) {
        Ok(()) => Ok(format!("{word}-{:x}", meta.ino())),
        Err(error) => {
            tracing::warn!(
                file = %path.display(),
                error = %error,
                "failed to write the id of the state directory"
            );
            // Derived from the file system, so that the next host computes the same id.
            Ok(format!("dev{:x}-{:x}", meta.dev(), meta.ino()))
        }
    }
}
