//! A scratch directory for each start of an engine, in which vLLM creates its sockets. `TMPDIR` is
//! not set to it, because kernel compilers keep caches there that make the next start faster.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Component, Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::marker::Marker;

/// The variables that are set to the directory.
pub(super) const VARIABLES: [&str; 1] = ["VLLM_RPC_BASE_PATH"];

/// Maximum length of the path in bytes. The path of a socket is limited to 108, and vLLM appends
/// 37.
const MAX_PATH: usize = 60;
/// The parent if the path of the state directory is too long, or there is none.
const FALLBACK: &str = "/tmp";
/// Maximum number of files that are removed, and maximum depth of directories.
const MAX_FILES: usize = 100_000;
const MAX_DEPTH: usize = 64;

/// Creates the scratch directory of an engine: in `parent` if the path is short enough, or in the
/// fallback directory.
pub(super) fn create(parent: Option<&Path>, marker: &Marker) -> Option<PathBuf> {
    let (own, other) = names(marker)?;
    let own =
        parent.map(|parent| parent.join(own)).filter(|path| path.as_os_str().len() <= MAX_PATH);
    for path in own.into_iter().chain([Path::new(FALLBACK).join(other)]) {
        match try_create(&path) {
            Ok(()) => return Some(path),
            Err(error) => tracing::debug!(
                path = %path.display(),
                error = %error,
                "failed to create a scratch directory for the engine"
            ),
        }
    }
    tracing::warn!("engine has no scratch directory");
    None
}

fn try_create(path: &Path) -> io::Result<()> {
    let private = || {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    };
    if let Some(parent) = path.parent() {
        private().recursive(true).create(parent)?;
    }
    private().create(path)?;
    // Some file systems do not support sockets.
    let socket = path.join("socket");
    let bound = UnixListener::bind(&socket).and_then(|_closed| fs::remove_file(&socket));
    bound.inspect_err(|_| drop(fs::remove_dir(path)))
}

/// Returns the directory that was created for an engine, if it exists.
pub(super) fn find(parent: Option<&Path>, marker: &Marker) -> Option<PathBuf> {
    let (own, other) = names(marker)?;
    let paths =
        parent.map(|parent| parent.join(own)).into_iter().chain([Path::new(FALLBACK).join(other)]);
    paths.into_iter().find(|path| path.is_dir())
}

/// Removes an engine's scratch directory without following links.
pub(super) fn remove(path: &Path, marker: &Marker) {
    let shown = path.display();
    if !is_ours(path, marker) {
        tracing::warn!(path = %shown, "not a scratch directory of the engine; keeping it");
        return;
    }
    match try_remove(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => {
            tracing::warn!(path = %shown, error = %error, "failed to remove scratch directory");
        }
    }
}

/// Returns true if the path can be the scratch directory of this engine: its name contains the
/// random part of the marker.
fn is_ours(path: &Path, marker: &Marker) -> bool {
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let Some((own, other)) = names(marker) else { return false };
    let in_state =
        path.parent().is_some_and(|parent| parent.ends_with("tmp")) && path.ends_with(own);
    plain && path.is_absolute() && (in_state || path == Path::new(FALLBACK).join(other))
}

/// Returns the name of the directory in the state directory, and in the fallback directory.
fn names(marker: &Marker) -> Option<(String, String)> {
    let nonce: String = marker.nonce.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let lane: String =
        marker.lane.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect();
    (nonce.len() >= 8).then(|| (format!("{lane}-{nonce}"), format!("pointsman-{nonce}")))
}

fn try_remove(path: &Path) -> rustix::io::Result<()> {
    let folder = rustix::fs::openat(CWD, path, flags(), Mode::empty())?;
    if rustix::fs::fstat(&folder)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::PERM);
    }
    let mut left = MAX_FILES;
    empty(&folder, &mut left, MAX_DEPTH)?;
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// Removes the contents of a directory: at most `left` files, and at most `depth` levels of
/// directories.
fn empty(folder: &OwnedFd, left: &mut usize, depth: usize) -> rustix::io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    // All names are read first, because on some file systems removing entries disturbs the listing.
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            *left = left.checked_sub(1).ok_or(Errno::OVERFLOW)?;
            names.push(name);
        }
    }
    for name in &names {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                empty(&within(folder, name)?, left, depth)?;
                rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a directory in a directory; fails if the entry is a link or on another file system.
fn within(folder: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(folder, name, flags(), Mode::empty(), stay) {
        // A sandbox without this call (Linux has it since 5.6).
        Err(Errno::NOSYS | Errno::PERM) => {
            let inner = rustix::fs::openat(folder, name, flags(), Mode::empty())?;
            let same = rustix::fs::fstat(&inner)?.st_dev == rustix::fs::fstat(folder)?.st_dev;
            if same { Ok(inner) } else { Err(Errno::XDEV) }
        }
        opened => opened,
    }
}

fn flags() -> OFlags {
    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn marker(lane: &str, nonce: &str) -> Marker {
        Marker { state_dir: "h".into(), lane: lane.into(), nonce: nonce.into() }
    }

    #[test]
    fn directory_is_private_and_short() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let parent = dir.path().join("tmp");
        let here = create(Some(&parent), &marker("../a b", "0123-4567-89ab-cdef")).unwrap();
        assert_eq!(here, parent.join("___a_b-0123456789ab"));
        for folder in [&here, &parent] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(here.read_dir().unwrap().count(), 0);

        let far = marker(&"x".repeat(60), &super::super::proc::nonce());
        let there = create(Some(&parent), &far).unwrap();
        assert!(there.to_str().unwrap().starts_with("/tmp/pointsman-"), "{there:?}");
        assert_eq!(create(Some(&parent), &far), None, "it exists already");
        remove(&there, &far);
        assert!(!there.exists());
    }

    #[test]
    fn only_the_directory_of_the_engine_is_removed() {
        let marker = marker("a", "0123456789abcdef");
        for path in ["/x/tmp/a-0123456789ab", "/tmp/a-0123456789ab", "/tmp/pointsman-0123456789ab"]
        {
            assert!(is_ours(Path::new(path), &marker), "{path}");
        }
        let others = [
            "/",
            "/tmp",
            "/x/tmp",
            "/tmp/pointsman-",
            "/tmp/pointsman-0123456789ac",
            "/x/a-0123456789ab",
            "/x/tmp/pointsman-0123456789ab",
            "/x/tmp/b-0123456789ab",
            "/x/../tmp/a-0123456789ab",
            "tmp/a-0123456789ab",
            "/x/tmp/a-0123456789ab/..",
            "",
        ];
        for path in others {
            assert!(!is_ours(Path::new(path), &marker), "{path}");
        }
        assert!(!is_ours(Path::new("/tmp/pointsman-"), &Marker { nonce: "-".into(), ..marker }));
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/file"), "").unwrap();
        symlink(&outside, folder.join("a/link")).unwrap();
        symlink(outside.join("file"), folder.join("link")).unwrap();
        drop(UnixListener::bind(folder.join("socket")).unwrap());
        try_remove(&folder).unwrap();
        assert!(!folder.exists() && outside.join("file").exists());

        symlink(&outside, &folder).unwrap();
        assert!(try_remove(&folder).is_err());
        assert!(folder.is_symlink() && outside.join("file").exists());
    }

    #[test]
    fn removal_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| rustix::fs::openat(CWD, path, flags(), Mode::empty()).unwrap();
        fs::create_dir_all(dir.path().join("1/2/3")).unwrap();
        assert_eq!(empty(&open(dir.path()), &mut 10, 3), Err(Errno::NAMETOOLONG));
        assert_eq!(empty(&open(dir.path()), &mut 2, 10), Err(Errno::OVERFLOW));
        assert!(dir.path().join("1/2/3").exists());
        assert_eq!(empty(&open(dir.path()), &mut 3, 4), Ok(()));
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
