//! Bounded reads of regular files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// A file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("failed to read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path leads to a folder, pipe, socket or device.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// The file has more than `max` bytes.
    #[error("{} has more than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The maximum size in bytes.
        max: u64,
    },
    /// Another user owns the file, or other users may write to it.
    #[error("{} is owned or writable by another user", .0.display())]
    Foreign(PathBuf),
    /// The file was to be text, and is not UTF-8.
    #[error("{} is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
}

impl ReadError {
    /// Returns true if there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Io { source, .. } => source.kind(),
            ReadError::NotRegular(_) => io::ErrorKind::InvalidInput,
            ReadError::Foreign(_) => io::ErrorKind::PermissionDenied,
            ReadError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            ReadError::NotUtf8(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Opens a regular file for reading. Links are followed. Never blocks: a pipe without a writer is
/// an error at once.
///
/// # Errors
/// If the file cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> Result<File, ReadError> {
    open(path, OpenOptions::new().read(true), OFlags::empty())
}

/// Opens a file that only this user can have written: it belongs to this user, other users cannot
/// write to it, and the path does not end with a link. Parents are not checked; see
/// [`check_private`](crate::check_private). Never blocks.
///
/// # Errors
/// If the file cannot be opened, is not a regular file, or another user can have written it.
pub fn open_private(path: &Path) -> Result<File, ReadError> {
    open_private_with(path, OpenOptions::new().read(true))
}

/// Opens a file as [`open_private`] does, with these options. A new file gets the mode 0600.
///
/// # Errors
/// As [`open_private`].
pub fn open_private_with(path: &Path, options: &mut OpenOptions) -> Result<File, ReadError> {
    let file = open(path, options.mode(0o600), OFlags::NOFOLLOW)?;
    let metadata =
        file.metadata().map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    if is_own && metadata.mode() & 0o022 == 0 {
        Ok(file)
    } else {
        Err(ReadError::Foreign(path.to_owned()))
    }
}

/// Reads a file of at most `max` bytes that only this user can have written.
///
/// # Errors
/// As [`open_private`], and if the file is larger.
pub fn read_private(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    read(path, open_private(path)?, max)
}

/// Reads a file of at most `max` bytes that only this user or root can have written. Links are
/// followed: mounted secrets are links of root.
///
/// # Errors
/// If the file cannot be read, is not a regular file, is larger, or another user can have written
/// it.
pub fn read_trusted(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    let file = open_regular(path)?;
    let metadata =
        file.metadata().map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    let is_trusted = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if !is_trusted || metadata.mode() & 0o022 != 0 {
        return Err(ReadError::Foreign(path.to_owned()));
    }
    read(path, file, max)
}

/// Opens a regular file without blocking.
fn open(path: &Path, options: &mut OpenOptions, flags: OFlags) -> Result<File, ReadError> {
    let fail = |source: io::Error| ReadError::Io { path: path.to_owned(), source };
    let not_regular = || ReadError::NotRegular(path.to_owned());
    // Without NONBLOCK, opening a pipe waits for a writer. Regular files ignore the flag.
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        // Sockets cannot be opened, nor devices without a driver; a link is not followed, and a
        // folder not opened for writing.
        Err(error) if is_about_kind(&error) => return Err(not_regular()),
        Err(error) => return Err(fail(error)),
    };
    // Of the opened file, because the path may lead to another one meanwhile.
    if file.metadata().map_err(fail)?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// Returns true if the error says that the path does not lead to a regular file.
fn is_about_kind(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let kinds = [Errno::NXIO, Errno::LOOP, Errno::ISDIR];
    kinds.iter().any(|kind| error.raw_os_error() == Some(kind.raw_os_error()))
}

/// Reads a regular file of at most `max` bytes.
///
/// # Errors
/// If the file cannot be read, is not a regular file, or is larger.
pub fn read_regular(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    read(path, open_regular(path)?, max)
}

fn read(path: &Path, file: File, max: u64) -> Result<Vec<u8>, ReadError> {
    let fail = |source| ReadError::Io { path: path.to_owned(), source };
    let too_large = || ReadError::TooLarge { path: path.to_owned(), max };
    let size = file.metadata().map_err(fail)?.len();
    if size > max {
        return Err(too_large());
    }
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // The file may grow meanwhile, and files of the kernel have no size. One byte more than the
    // maximum shows that there is more.
    file.take(max.saturating_add(1)).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > max { Err(too_large()) } else { Ok(content) }
}

/// Reads a regular file of at most `max` bytes of UTF-8.
///
/// # Errors
/// As [`read_regular`], and if the content is not UTF-8.
pub fn read_regular_text(path: &Path, max: u64) -> Result<String, ReadError> {
    let content = read_regular(path, max)?;
    String::from_utf8(content).map_err(|_| ReadError::NotUtf8(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_read_up_to_the_maximum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_regular(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_regular(&path, 4), Err(ReadError::TooLarge { max: 4, .. })));
        assert_eq!(read_regular_text(&path, u64::MAX).unwrap(), "12345");
        fs::write(&path, b"\xff").unwrap();
        assert!(matches!(read_regular_text(&path, 9), Err(ReadError::NotUtf8(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_regular(&link, 1).unwrap(), b"\xff");
        // The size of a file of the kernel is 0.
        assert!(!read_regular(Path::new("/proc/self/stat"), 4096).unwrap().is_empty());
        assert!(matches!(
            read_regular(Path::new("/proc/self/stat"), 3),
            Err(ReadError::TooLarge { .. })
        ));
    }

    #[test]
    fn missing_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_regular(&dir.path().join("missing"), 1).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
        let error = read_regular(dir.path(), 1).unwrap_err();
        assert!(!error.is_not_found());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn private_files_are_those_that_only_this_user_can_have_written() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        let mut options = OpenOptions::new();
        open_private_with(&path, options.append(true).create(true)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "1").unwrap();
        assert_eq!(read_private(&path, 1).unwrap(), b"1");
        symlink(&path, &link).unwrap();
        for options in [OpenOptions::new().read(true), OpenOptions::new().append(true).create(true)]
        {
            let error = open_private_with(&link, options).unwrap_err();
            assert!(matches!(error, ReadError::NotRegular(_)), "{error}");
            let error = open_private_with(dir.path(), options).unwrap_err();
            assert!(matches!(error, ReadError::NotRegular(_)), "{error}");
        }
        for mode in [0o620, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read_private(&path, 1), Err(ReadError::Foreign(_))));
        }
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            assert!(matches!(read_private(&path, 1), Err(ReadError::Foreign(_))));
        }
    }

    #[test]
    fn pipes_sockets_devices_and_folders_are_rejected_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&pipe, &socket, Path::new("/dev/zero"), dir.path()] {
            let error = read_regular(path, 1).unwrap_err();
            assert!(matches!(&error, ReadError::NotRegular(found) if found == path), "{error}");
        }
    }
}
