//! Puts a folder in the place of another one, in one step.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Puts the folder `new` in the place of `target`: other processes see either of them as a whole.
/// If there is such a folder already, `new` is that folder afterwards, and the function returns
/// true.
///
/// # Errors
/// If the paths are on different file systems, or the file system cannot exchange folders. Nothing
/// has changed then, unless only the last step failed, which makes the change durable.
pub fn place_folder(new: &Path, target: &Path) -> io::Result<bool> {
    let existed = match renameat_with(CWD, new, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => false,
        Err(Errno::EXIST) => {
            renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE)?;
            true
        }
        Err(error) => return Err(error.into()),
    };
    File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(existed)
}
