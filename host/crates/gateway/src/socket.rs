//! The socket that operators come in by: a file that only we and root can open, and that outlives no host.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::listen::Entrance;

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another host with this configuration runs: it listens at {}", .0.display())]
    Taken(PathBuf),
    /// Something else is in its place.
    #[error(
        "the admin socket {} cannot be made, because a file that is no socket has its name; remove it, or set `admin.socket`",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("the admin socket {} cannot be made: {error}; another place for it can be set as `admin.socket`", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
}

/// A socket that is listened on. Its file goes when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Longest path in bytes: the system's limit is 107, and a socket that is being made has four more.
    pub const LONGEST_PATH: usize = 103;

    /// Listen at `path`. Its folder is made if it is missing, and is then ours alone. The socket of a host that is dead is
    /// replaced.
    ///
    /// # Errors
    /// When a host listens there that lives, or the socket cannot be made. Must be called within a runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |error| SocketError::Io { path: path.to_owned(), error };
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        // One host after the other looks and takes; let go of at the end of this function.
        let turn = File::open(folder).map_err(fail)?;
        if let Err(error) = turn.lock() {
            tracing::debug!(%error, "hosts that start at the same moment may not see each other: no lock on this file system");
        }
        match StdUnixStream::connect(path).map_err(|error| error.kind()) {
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(io::ErrorKind::NotFound) => {}
            // Nobody listens there; but a file of another kind is no socket of a dead host.
            Err(_) if is_socket(path) => {}
            Err(_) => return Err(SocketError::NoSocket(path.to_owned())),
        }
        // Made under another name, so that nobody finds it before it is ours alone.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        if is_socket(&new) {
            fs::remove_file(&new).map_err(fail)?;
        }
        let listener = UnixListener::bind(&new).map_err(fail)?;
        let named = fs::set_permissions(&new, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&new, path));
        named.map_err(fail)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "cannot remove the admin socket");
        }
    }
}

impl Entrance for AdminSocket {
    type Connection = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn it_is_ours_alone_and_goes_with_us() {
        let dir = folder();
        let path = dir.path().join("state/of/host/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left lying about"
        );
        let (accepted, connected) = tokio::join!(socket.next(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_living_are_left_alone_and_the_dead_replaced() {
        let dir = folder();
        let path = dir.path().join("admin.sock");
        let living = AdminSocket::bind(&path).unwrap();
        let sentence = AdminSocket::bind(&path).unwrap_err().to_string();
        assert!(
            sentence.starts_with("another host with this configuration runs") && path.exists(),
            "{sentence}"
        );
        drop(living);
        // A host that was killed leaves its file, and at worst one under the other name.
        for left in ["admin.sock", "admin.sock.new"] {
            drop(std::os::unix::net::UnixListener::bind(dir.path().join(left)).unwrap());
        }
        let socket = AdminSocket::bind(&path).unwrap();
        let (accepted, _) = tokio::join!(socket.next(), UnixStream::connect(&path));
        accepted.unwrap();
    }

    #[tokio::test]
    async fn files_that_are_no_sockets_are_kept() {
        let dir = folder();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let below = path.join("admin.sock");
        let sentence = AdminSocket::bind(&below).unwrap_err().to_string();
        assert!(
            sentence.contains("cannot be made") && sentence.contains("`admin.socket`"),
            "{sentence}"
        );
    }
}
