//! Unix sockets that the host listens on: that of the admin API, which only the host's user and
//! root can open, and those for clients. Their files are removed when the host ends.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::listen::{Acceptor, limit_send_buffer};
use crate::peer::PeerUid;

/// An error in creating a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens on the socket.
    #[error("another host with this configuration is running: it listens on {}", .0.display())]
    Taken(PathBuf),
    /// The path exists and is another kind of file.
    #[error(
        "cannot create the socket of {key}: {} exists and is not a socket; \
         remove the file or set {key} to another path",
        path.display()
    )]
    NotASocket {
        /// Path of the file.
        path: PathBuf,
        /// The key of the configuration that names the path.
        key: &'static str,
    },
    /// The file system or the network stack failed.
    #[error(
        "cannot create the socket of {key} at {}: {source}; set {key} to another path",
        path.display()
    )]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// The key of the configuration that names the path.
        key: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// A listening Unix socket. Its file is removed when it is dropped, unless another host has it.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Set if another process has the file.
    is_shared: Arc<AtomicBool>,
    /// The file is that of the host before.
    is_inherited: bool,
}

/// A copy of a listening socket, for the next host.
#[derive(Debug)]
pub struct ListenerCopy {
    socket: OwnedFd,
    /// Of a Unix socket: set to leave its file.
    is_shared: Option<Arc<AtomicBool>>,
    is_inherited: bool,
}

impl ListenerCopy {
    /// Copies a TCP listener.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn tcp(listener: &TcpListener) -> io::Result<Self> {
        let socket = listener.as_fd().try_clone_to_owned()?;
        Ok(Self { socket, is_shared: None, is_inherited: false })
    }

    /// Copies the descriptor.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Returns true if another process has the file of a Unix socket.
    pub fn leaves_file(&self) -> bool {
        self.is_shared.as_ref().is_some_and(|is_shared| is_shared.load(Ordering::Relaxed))
    }

    /// Notes that the host before serves no more: the file of a Unix socket that it had is removed
    /// at the end of this host.
    pub fn take_file(&self) {
        if let Some(is_shared) = self.is_shared.as_ref().filter(|_| self.is_inherited) {
            is_shared.store(false, Ordering::Relaxed);
        }
    }

    /// Notes that another process has the socket: the file of a Unix socket is left to it.
    pub fn leave_file(&self) {
        if let Some(is_shared) = &self.is_shared {
            // Relaxed: read by the drop of the listener, which follows a cancellation.
            is_shared.store(true, Ordering::Relaxed);
        }
    }
}

impl SocketFile {
    /// Bytes of a path: the system's limit is 107, and the temporary name has six more.
    pub const MAX_PATH: usize = 101;

    /// Listens on the socket of the admin API, with access for the host's user only. Must be called
    /// within a Tokio runtime.
    ///
    /// # Errors
    /// If another host listens on the socket, or the socket cannot be created.
    pub fn bind_admin(path: &Path) -> Result<Self, SocketError> {
        Self::bind(path, 0o600, 0o700, "`admin.socket`")
    }

    /// Listens on a socket for clients, whose file gets this mode. Must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// If another process listens on the socket, or the socket cannot be created.
    pub fn bind_clients(path: &Path, mode: u32) -> Result<Self, SocketError> {
        Self::bind(path, mode, 0o755, "the listener's address")
    }

    /// Listens on `path`. A missing folder is created. The stale socket of a host that has ended is
    /// replaced.
    fn bind(
        path: &Path,
        mode: u32,
        folder_mode: u32,
        key: &'static str,
    ) -> Result<Self, SocketError> {
        let fail = |source| SocketError::Io { path: path.to_owned(), key, source };
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(folder_mode).create(folder).map_err(fail)?;
        // Serialises hosts that start at the same time; released at the end of this function.
        let folder_lock = File::open(folder).map_err(fail)?;
        if let Err(error) = folder_lock.lock() {
            // Some network file systems have no locks. Only simultaneous starts need them.
            tracing::debug!(%error, "failed to lock the folder of a socket");
        }
        match StdUnixStream::connect(path).map_err(|error| error.kind()) {
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(io::ErrorKind::NotFound) => {}
            // No process listens on the socket, so its host has ended. Other files are kept.
            Err(_) if is_socket(path) || is_link_to_socket(path) => {}
            Err(_) => return Err(SocketError::NotASocket { path: path.to_owned(), key }),
        }
        let listener = bind_private(path, mode).map_err(fail)?;
        let (path, is_shared) = (path.to_owned(), Arc::default());
        Ok(Self { listener, path, is_shared, is_inherited: false })
    }

    /// Goes on with a socket that another process listens on, to which the file is left. If that is
    /// the host before, the file gets this mode. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If it is not a listening Unix socket, or its file is gone.
    pub fn from_other_host(path: &Path, socket: OwnedFd, mode: Option<u32>) -> io::Result<Self> {
        if let Some(mode) = mode {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (path, is_shared) = (path.to_owned(), Arc::new(AtomicBool::new(true)));
        Ok(Self { listener, path, is_shared, is_inherited: mode.is_some() })
    }

    /// Copies the socket for the next host.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn copy(&self) -> io::Result<ListenerCopy> {
        let socket = self.listener.as_fd().try_clone_to_owned()?;
        let is_shared = Some(Arc::clone(&self.is_shared));
        Ok(ListenerCopy { socket, is_shared, is_inherited: self.is_inherited })
    }

    /// Makes a link to the socket, at the path of a socket that commands look for. A link or a
    /// socket that an earlier host has left there is replaced.
    ///
    /// # Errors
    /// If another host listens there, another kind of file is there, or the link cannot be made.
    pub fn link_from(&self, link: &Path) -> Result<(), SocketError> {
        let key = "`admin.socket`";
        let fail = |source| SocketError::Io { path: link.to_owned(), key, source };
        if fs::read_link(link).is_ok_and(|target| target == self.path) {
            return Ok(());
        }
        match StdUnixStream::connect(link).map_err(|error| error.kind()) {
            Ok(_) => return Err(SocketError::Taken(link.to_owned())),
            Err(io::ErrorKind::NotFound) => {}
            Err(_) if is_socket(link) || is_link_to_socket(link) => {}
            Err(_) => return Err(SocketError::NotASocket { path: link.to_owned(), key }),
        }
        let mut new = link.as_os_str().to_owned();
        new.push(".link");
        let new = PathBuf::from(new);
        // What a host left that was killed here.
        if fs::symlink_metadata(&new).is_ok_and(|meta| meta.is_symlink()) {
            fs::remove_file(&new).map_err(fail)?;
        }
        symlink(&self.path, &new).map_err(fail)?;
        fs::rename(&new, link).map_err(fail)
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Binds the socket in a new folder that only the host's user can enter, and moves it to `path`
/// when its mode is set: whatever umask and the mode of the folder are, no other user can connect
/// in between.
fn bind_private(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let mut private = path.as_os_str().to_owned();
    private.push(".new");
    let private = PathBuf::from(private);
    let socket = private.join("s");
    // What a host left that was killed here, or the socket that an earlier version left.
    if is_socket(&private) {
        fs::remove_file(&private)?;
    }
    if is_socket(&socket) {
        fs::remove_file(&socket)?;
    }
    if fs::symlink_metadata(&private).is_ok_and(|meta| meta.is_dir()) {
        fs::remove_dir(&private)?;
    }
    DirBuilder::new().mode(0o700).create(&private)?;
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, Permissions::from_mode(mode))?;
    fs::rename(&socket, path)?;
    fs::remove_dir(&private)?;
    Ok(listener)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// Returns true for a symbolic link to a socket: that of a host whose socket is elsewhere.
fn is_link_to_socket(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| is_socket(&target))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_shared.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "failed to remove a socket");
        }
    }
}

impl Acceptor for SocketFile {
    type Connection = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        limit_send_buffer(SockRef::from(&stream));
        Ok(stream)
    }

    fn client(_connection: &UnixStream) -> Option<IpAddr> {
        None
    }

    fn peer(connection: &UnixStream) -> Option<PeerUid> {
        PeerUid::from_stream(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn socket_is_private_and_removed_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/of/host/admin.sock");
        let socket = SocketFile::bind_admin(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "the temporary file is gone"
        );
        let (accepted, connected) = tokio::join!(socket.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn socket_for_clients_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let socket = SocketFile::bind_clients(&path, 0o660).unwrap();
        assert_eq!(mode(&path), 0o660);
        let taken = SocketFile::bind_clients(&path, 0o660);
        assert!(matches!(taken, Err(SocketError::Taken(_))));
        assert!(path.exists());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn link_leads_to_the_socket_and_replaces_those_of_ended_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("run/admin.sock"), dir.path().join("admin.sock"));
        let socket = SocketFile::bind_admin(&path).unwrap();
        // The socket of an earlier host that was killed; then the link of this one.
        drop(std::os::unix::net::UnixListener::bind(&link).unwrap());
        for _ in 0..2 {
            socket.link_from(&link).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), path);
        }
        // A host with another socket, while this one lives, and after it.
        assert!(matches!(SocketFile::bind_admin(&link), Err(SocketError::Taken(_))));
        let other = SocketFile::bind_admin(&dir.path().join("other.sock")).unwrap();
        assert!(matches!(other.link_from(&link), Err(SocketError::Taken(_))));
        drop(socket);
        other.link_from(&link).unwrap();
        let (accepted, connected) = tokio::join!(other.accept(), UnixStream::connect(&link));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(other);
        // A host that was killed leaves its socket behind the link.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("other.sock")).unwrap());
        let socket = SocketFile::bind_admin(&link).unwrap();
        assert!(is_socket(&link));
        drop(socket);
        fs::write(&link, "").unwrap();
        let socket = SocketFile::bind_admin(&path).unwrap();
        let error = socket.link_from(&link);
        assert!(matches!(error, Err(SocketError::NotASocket { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn bind_rejects_live_sockets_and_replaces_stale_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let live = SocketFile::bind_admin(&path).unwrap();
        let error = SocketFile::bind_admin(&path).unwrap_err();
        assert!(matches!(&error, SocketError::Taken(taken) if *taken == path), "{error}");
        assert!(path.exists());
        drop(live);
        // A host that was killed leaves its file, and at worst one under the temporary name.
        for left in ["admin.sock", "admin.sock.new"] {
            drop(std::os::unix::net::UnixListener::bind(dir.path().join(left)).unwrap());
        }
        let socket = SocketFile::bind_admin(&path).unwrap();
        drop(socket);
        fs::create_dir(dir.path().join("admin.sock.new")).unwrap();
        let left = dir.path().join("admin.sock.new/s");
        drop(std::os::unix::net::UnixListener::bind(left).unwrap());
        let socket = SocketFile::bind_admin(&path).unwrap();
        let (accepted, _) = tokio::join!(socket.accept(), UnixStream::connect(&path));
        accepted.unwrap();
    }

    #[tokio::test]
    async fn bind_keeps_files_that_are_not_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(SocketFile::bind_admin(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let below = path.join("admin.sock");
        let error = SocketFile::bind_admin(&below).unwrap_err();
        assert!(matches!(&error, SocketError::Io { path, .. } if *path == below), "{error}");
        assert!(error.to_string().contains("`admin.socket`"), "{error}");
    }
}
