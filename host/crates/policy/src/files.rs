//! Atomic and durable writes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The ending of the names of temporary files.
const TEMPORARY: &str = ".new";

/// Writes a file so that a reader finds its old content or its new one, and never a part of either.
/// The new content survives a power failure once this returns. A new file gets the permissions
/// `mode`, without the bits of the process's umask.
///
/// # Errors
/// If the file cannot be written; then it has its old content.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // In the same folder, because a rename cannot cross file systems.
    let new = path.with_file_name(format!(".{name}.{}-{number}{TEMPORARY}", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // On a full disk it would take space for nothing. It may not exist; the error to report is
        // the first one.
        fs::remove_file(&new).ok();
    }
    written?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Returns true if the name is that of a temporary file of [`write_atomic`]. Such a file is left
/// behind only if the process is killed or the power fails during a write.
pub(crate) fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn file_is_replaced_and_no_temporary_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for content in ["one", "two"] {
            write_atomic(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // A folder that is not empty cannot be replaced by a file.
        assert!(write_atomic(dir.path(), b"three", 0o600).is_err());
        assert!(write_atomic(&dir.path().join("missing/file"), b"", 0o600).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
