//! Folders that only the host may write to.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A folder cannot be trusted with files of the host.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder cannot be created or read.
    #[error("failed to open the folder {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path does not lead to a folder.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// Another user created the symbolic link, and could lead it to another folder at any time.
    #[error("{} is a symbolic link of another user (id {owner})", path.display())]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// The user who owns the link.
        owner: u32,
    },
    /// Another user owns the folder.
    #[error(
        "{} is owned by another user (id {owner}); use a folder below it, which the host creates \
         itself, or run chown",
        path.display()
    )]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// The user who owns the folder.
        owner: u32,
    },
    /// Other users may write to the folder.
    #[error(
        "{} is writable by other users; use a folder below it, which the host creates itself, or \
         run chmod go-w (a Kubernetes volume with fsGroup also needs fsGroupChangePolicy: \
         OnRootMismatch)",
        path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// The permissions of the folder.
        mode: u32,
    },
}

impl FolderError {
    /// Returns true if there is no such folder.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<FolderError> for io::Error {
    fn from(error: FolderError) -> Self {
        let kind = match &error {
            FolderError::Io { source, .. } => source.kind(),
            FolderError::NotAFolder(_) => io::ErrorKind::NotADirectory,
            FolderError::ForeignLink { .. }
            | FolderError::ForeignOwner { .. }
            | FolderError::Writable { .. } => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

/// Creates a folder that only this user can enter, with its parents, if it does not exist. Then
/// checks it as [`check_private`] does.
///
/// # Errors
/// If the folder cannot be created, or must not be used.
pub fn create_private(path: &Path) -> Result<(), FolderError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(FolderError::NotAFolder(path.to_owned()))
        }
        Err(source) => Err(FolderError::Io { path: path.to_owned(), source }),
        Ok(()) => check_private(path),
    }
}

/// Checks that a folder belongs to this user, and that other users cannot write to it. The path may
/// be a symbolic link of this user or of root: service managers lead `/var/lib/NAME` to a private
/// folder. Parents are not checked.
///
/// # Errors
/// If the path must not be used.
pub fn check_private(path: &Path) -> Result<(), FolderError> {
    let own = rustix::process::geteuid().as_raw();
    let fail = |source| FolderError::Io { path: path.to_owned(), source };
    let link = fs::symlink_metadata(path).map_err(fail)?;
    if link.is_symlink() && link.uid() != own && link.uid() != 0 {
        return Err(FolderError::ForeignLink { path: path.to_owned(), owner: link.uid() });
    }
    let folder = fs::metadata(path).map_err(fail)?;
    if !folder.is_dir() {
        return Err(FolderError::NotAFolder(path.to_owned()));
    }
    if folder.uid() != own {
        return Err(FolderError::ForeignOwner { path: path.to_owned(), owner: folder.uid() });
    }
    let mode = folder.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(FolderError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Checks that this user can create files in a folder. File systems that are mounted read-only are
/// not writable for root either.
///
/// # Errors
/// If the folder is not writable.
pub fn check_writable(path: &Path) -> Result<(), FolderError> {
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(path, access)
        .map_err(|error| FolderError::Io { path: path.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    #[test]
    fn folders_are_created_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private(&path).unwrap();
        create_private(&path).unwrap();
        for created in [&path, &dir.path().join("a")] {
            assert_eq!(fs::metadata(created).unwrap().mode() & 0o777, 0o700);
        }
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        create_private(&link).unwrap();
    }

    #[test]
    fn other_paths_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(create_private(&file), Err(FolderError::NotAFolder(_))));
        assert!(matches!(check_private(&file), Err(FolderError::NotAFolder(_))));
        let missing = check_private(&dir.path().join("missing")).unwrap_err();
        assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn folders_that_others_can_write_to_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o770, 0o702, 0o1777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = create_private(dir.path()).unwrap_err();
            assert!(matches!(error, FolderError::Writable { mode: found, .. } if found == mode));
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        check_private(dir.path()).unwrap();
    }

    #[test]
    fn missing_folders_are_not_writable() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(dir.path()).unwrap();
        assert!(check_writable(&dir.path().join("missing")).unwrap_err().is_not_found());
    }

    /// Only root can give files away; as another user, the folder of root is tested alone.
    #[test]
    fn folders_and_links_of_others_are_rejected() {
        const OTHER: u32 = 12_345;
        let dir = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() {
            let error = check_private(Path::new("/usr")).unwrap_err();
            assert!(matches!(error, FolderError::ForeignOwner { owner: 0, .. }), "{error}");
            return;
        }
        let (folder, link) = (dir.path().join("folder"), dir.path().join("link"));
        create_private(&folder).unwrap();
        symlink(&folder, &link).unwrap();
        lchown(&link, Some(OTHER), None).unwrap();
        let error = check_private(&link).unwrap_err();
        assert!(matches!(error, FolderError::ForeignLink { owner: OTHER, .. }), "{error}");
        lchown(&folder, Some(OTHER), None).unwrap();
        let error = check_private(&folder).unwrap_err();
        assert!(matches!(error, FolderError::ForeignOwner { owner: OTHER, .. }), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
    }
}
