//! Tells whether a file has changed.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device, inode, size and change time of a file; `None` if it does not exist.
pub(crate) type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Returns the stamp of a file, or of the file that a link leads to.
pub(crate) fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}
