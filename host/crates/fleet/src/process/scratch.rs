//! A folder of its own for each start of an engine: vLLM leaves sockets there. `TMPDIR` is not led there, because compilers of
//! kernels keep below it what the next start is glad to find.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Component, Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::marker::Marker;

/// The variable that leads vLLM to it.
pub(super) const VARIABLES: [&str; 1] = ["VLLM_RPC_BASE_PATH"];

/// Longest path in bytes. The path of a socket has 108 at most, and vLLM adds 37 to this.
const LONGEST: usize = 60;
/// Where it is when the state directory is too deep down, or there is none.
const FALLBACK: &str = "/tmp";
/// How many files are removed at most, and how many folders in folders.
const MOST: usize = 100_000;
const DEEPEST: usize = 64;

/// Make the folder of an engine: in `parent`, a folder for nothing else, or where everybody's are.
pub(super) fn make(parent: Option<&Path>, marker: &Marker) -> Option<PathBuf> {
    let lane = &marker.lane;
    let (own, other) = names(marker)?;
    let own =
        parent.map(|parent| parent.join(own)).filter(|path| path.as_os_str().len() <= LONGEST);
    for path in own.into_iter().chain([Path::new(FALLBACK).join(other)]) {
        match try_make(&path) {
            Ok(()) => return Some(path),
            Err(error) => tracing::debug!(lane, "no temporary folder {}: {error}", path.display()),
        }
    }
    tracing::warn!(lane, "the engine has no temporary folder of its own");
    None
}

fn try_make(path: &Path) -> io::Result<()> {
    let private = || {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    };
    if let Some(parent) = path.parent() {
        private().recursive(true).create(parent)?;
    }
    private().create(path)?;
    // Not every file system has sockets.
    let socket = path.join("socket");
    let bound = UnixListener::bind(&socket).and_then(|_closed| fs::remove_file(&socket));
    bound.inspect_err(|_| drop(fs::remove_dir(path)))
}

/// The folder that was made for an engine, if it is there.
pub(super) fn find(parent: Option<&Path>, marker: &Marker) -> Option<PathBuf> {
    let (own, other) = names(marker)?;
    let paths =
        parent.map(|parent| parent.join(own)).into_iter().chain([Path::new(FALLBACK).join(other)]);
    paths.into_iter().find(|path| path.is_dir())
}

/// Remove an engine's folder, and nothing that links in it lead to.
pub(super) fn remove(path: &Path, marker: &Marker) {
    let lane = &marker.lane;
    let shown = path.display();
    if !is_ours(path, marker) {
        tracing::warn!(lane, "{shown} is not the temporary folder of an engine and is kept");
        return;
    }
    match try_remove(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => {
            tracing::warn!(lane, "the engine's temporary folder {shown} cannot be removed: {error}")
        }
    }
}

/// Whether a path can be that of this engine's folder: its name has the random part of the marker.
fn is_ours(path: &Path, marker: &Marker) -> bool {
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let Some((own, other)) = names(marker) else { return false };
    let in_state =
        path.parent().is_some_and(|parent| parent.ends_with("tmp")) && path.ends_with(own);
    plain && path.is_absolute() && (in_state || path == Path::new(FALLBACK).join(other))
}

/// What the folder is called in the state directory, and elsewhere.
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
    let mut left = MOST;
    empty(&folder, &mut left, DEEPEST)?;
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// Remove all that is in a folder: at most `left` files, in at most `depth` folders in each other.
fn empty(folder: &OwnedFd, left: &mut usize, depth: usize) -> rustix::io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    // All names first, because not every file system can tell them while they go.
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

/// A folder in a folder, which is neither a link nor another file system.
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
        Marker { home: "h".into(), lane: lane.into(), nonce: nonce.into() }
    }

    #[test]
    fn a_folder_is_private_and_short() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let parent = dir.path().join("tmp");
        let here = make(Some(&parent), &marker("../a b", "0123-4567-89ab-cdef")).unwrap();
        assert_eq!(here, parent.join("___a_b-0123456789ab"));
        for folder in [&here, &parent] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(here.read_dir().unwrap().count(), 0);

        let far = marker(&"x".repeat(60), &super::super::proc::nonce());
        let there = make(Some(&parent), &far).unwrap();
        assert!(there.to_str().unwrap().starts_with("/tmp/pointsman-"), "{there:?}");
        assert_eq!(make(Some(&parent), &far), None, "there is one already");
        remove(&there, &far);
        assert!(!there.exists());
    }

    #[test]
    fn nothing_but_an_engines_folder_is_removed() {
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
    fn removing_has_bounds() {
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
