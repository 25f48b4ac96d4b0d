//! Puts a folder in the place of another one.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use pointsman_files::place_folder;

/// Returns the folder that keeps the earlier version of the folder `target`: `.NAME.previous`.
pub(super) fn previous(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".previous");
    target.with_file_name(name)
}

/// Puts the folder `new` in the place of `target`, in one step if there is one already, and keeps
/// that as [`previous`]. `files` are the names of the files that may be removed with an even
/// earlier version. Both folders are in the same parent folder.
pub(super) fn exchange(new: &Path, target: &Path, files: &[PathBuf]) -> Result<()> {
    let previous = previous(target);
    let failed = || format!("failed to put the policy into {}", target.display());
    remove_version(&previous, files)?;
    if place_folder(new, target).with_context(failed)? {
        std::fs::rename(new, &previous).with_context(failed)?;
    }
    Ok(())
}

/// Removes an earlier version, unless its folder has other files: these may be the only copy of a
/// source.
fn remove_version(previous: &Path, files: &[PathBuf]) -> Result<()> {
    let failed = || format!("failed to remove {}", previous.display());
    let entries = match std::fs::read_dir(previous) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(failed)?,
    };
    for entry in entries {
        let name = entry.with_context(failed)?.file_name();
        if !files.iter().any(|file| file.as_os_str() == name) {
            let (folder, name) = (previous.display(), name.display());
            bail!("{folder} has the file `{name}`, which no host loads; move the folder away");
        }
    }
    std::fs::remove_dir_all(previous).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folder_is_exchanged_and_the_earlier_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (new, target) = (path("new"), path("p"));
        let files = [PathBuf::from("policy.toml")];
        let install = |version: &str| {
            fs::create_dir(&new).unwrap();
            fs::write(new.join("policy.toml"), version).unwrap();
            exchange(&new, &target, &files)
        };
        let read = |folder: &Path| fs::read_to_string(folder.join("policy.toml")).unwrap();
        install("1").unwrap();
        assert!(read(&target) == "1" && !previous(&target).exists());
        install("2").unwrap();
        install("3").unwrap();
        assert_eq!((read(&target), read(&path(".p.previous"))), ("3".into(), "2".into()));
        assert!(!new.exists());
        // The source of the earlier version is not removed.
        fs::write(path(".p.previous").join("policy.rs"), "").unwrap();
        install("4").unwrap_err();
        assert_eq!((read(&target), read(&path(".p.previous"))), ("3".into(), "2".into()));
    }
}
