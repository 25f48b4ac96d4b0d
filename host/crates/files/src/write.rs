//! Atomic and durable writes.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The ending of the names of temporary files.
const TEMPORARY: &str = ".pointsman-tmp";

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step} {}: {source}", path.display())]
pub struct WriteError {
    /// What failed.
    pub step: WriteStep,
    /// The file, or the folder that contains it.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// A step of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStep {
    /// Creating the temporary file in the folder.
    Create,
    /// Writing the content to the temporary file and syncing it to the disk.
    Write,
    /// Giving the temporary file its final name.
    Rename,
    /// Syncing the folder to the disk. The file has its new content, but may lose it in a power
    /// failure.
    SyncFolder,
}

impl std::fmt::Display for WriteStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Create => "create a temporary file in",
            Self::Write => "write",
            Self::Rename => "replace",
            Self::SyncFolder => "sync",
        })
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Writes a file so that a reader finds its old content or its new one, and never a part of either.
/// The new content survives a power failure once this returns. A new file gets the permissions
/// `mode`, without the bits of the process's umask, as in `open(2)`; so does a replaced one.
///
/// Blocks until the disk has the content, which may take some 100 ms on a busy disk. A symbolic
/// link at `path` is replaced, and not followed.
///
/// # Errors
/// If a step fails. Unless that is [`WriteStep::SyncFolder`], the file has its old content.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let folder = folder_of(path);
    let fail = |step, path: &Path| {
        let path = path.to_owned();
        move |source| WriteError { step, path, source }
    };
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push("-");
    // In the same folder, because a rename cannot cross file systems. It is removed on errors.
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(TEMPORARY)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(fail(WriteStep::Create, folder))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(fail(WriteStep::Write, path))?;
    file.persist(path).map_err(|error| fail(WriteStep::Rename, path)(error.error))?;
    sync_folder(folder).map_err(fail(WriteStep::SyncFolder, folder))
}

/// Returns true if the name is that of a temporary file of [`write_atomic`]. Such a file is left
/// behind only if the process is killed or the power fails during a write.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Syncs the entries of a folder to the disk, if the file system can do that.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = match File::open(folder) {
        // A folder may be writable and not readable. It cannot be synced then; the file has been
        // written.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened?,
    };
    match opened.sync_all() {
        // File systems that cannot sync folders, such as some network file systems.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn content_and_mode_are_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"first, and longer", 0o644).unwrap();
        write_atomic(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["state.json"]);
    }

    #[test]
    fn failed_writes_keep_the_old_file_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing/file");
        let error = write_atomic(&missing, b"x", 0o600).unwrap_err();
        assert_eq!((error.step, error.source.kind()), (WriteStep::Create, io::ErrorKind::NotFound));
        assert_eq!(error.path, dir.path().join("missing"));
        // A folder with files cannot be replaced by a file.
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "old").unwrap();
        let error = write_atomic(&folder, b"x", 0o600).unwrap_err();
        assert_eq!((error.step, &error.path), (WriteStep::Rename, &folder));
        assert_eq!(names(dir.path()), ["folder"]);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn links_are_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomic(&link, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }

    #[test]
    fn temporary_files_are_recognised() {
        assert!(is_temporary(Path::new("a/.state.json-Ab12Cd.pointsman-tmp")));
        assert!(!is_temporary(Path::new("a/state.json")));
        assert!(!is_temporary(Path::new("/")));
        assert_eq!(folder_of(Path::new("file")), Path::new("."));
        assert_eq!(folder_of(Path::new("/a/file")), Path::new("/a"));
    }
}
