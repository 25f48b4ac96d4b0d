//! Listeners for clients: a TCP port or a Unix socket, and what is spoken there.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::listen::Acceptor;
use crate::protocols::Protocols;
use crate::socket::{ListenerCopy, SocketFile};
use crate::tls::Tls;

/// A listener for clients.
#[derive(Debug)]
pub struct ClientListener {
    socket: Socket,
    protocols: Protocols,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(SocketFile),
}

/// Where a listener accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<TcpListener> for ClientListener {
    fn from(listener: TcpListener) -> Self {
        Self::new(Socket::Tcp(listener))
    }
}

impl From<SocketFile> for ClientListener {
    fn from(socket: SocketFile) -> Self {
        Self::new(Socket::Unix(socket))
    }
}

impl ClientListener {
    /// HTTP/2 is on by default, as in the configuration.
    fn new(socket: Socket) -> Self {
        Self { socket, protocols: Protocols { http2: true, ..Protocols::default() } }
    }

    /// Encrypts the connections.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Arc<Tls>>) -> Self {
        self.protocols.tls = tls;
        self
    }

    /// Sets whether clients may speak HTTP/2 without TLS. With TLS, [`Tls`] says so.
    #[must_use]
    pub fn with_http2(mut self, is_enabled: bool) -> Self {
        self.protocols.http2 = is_enabled;
        self
    }

    /// Sets whether each connection begins with a header of the PROXY protocol.
    #[must_use]
    pub fn with_proxy_protocol(mut self, is_required: bool) -> Self {
        self.protocols.proxy_protocol = is_required;
        self
    }

    /// Returns where the listener accepts connections.
    ///
    /// # Errors
    /// If the system does not tell the address.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Socket::Unix(socket) => Ok(ListenAddress::Unix(socket.path().to_owned())),
        }
    }

    /// Copies the socket for the next host.
    ///
    /// # Errors
    /// If the process has too many descriptors.
    pub fn copy(&self) -> io::Result<ListenerCopy> {
        match &self.socket {
            Socket::Tcp(listener) => ListenerCopy::tcp(listener),
            Socket::Unix(socket) => socket.copy(),
        }
    }

    /// Returns the IP address, whose host names are checked; `None` for a Unix socket, which web
    /// pages cannot reach. An unknown one counts as public.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match &self.socket {
            Socket::Tcp(listener) => Some(address_of(listener)),
            Socket::Unix(_) => None,
        }
    }

    /// Returns what is spoken on the listener.
    pub(crate) fn protocols(&self) -> &Protocols {
        &self.protocols
    }
}

/// Returns the address of a listener. An unknown one counts as public.
pub(crate) fn address_of(listener: &TcpListener) -> IpAddr {
    listener.local_addr().map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip())
}

impl Acceptor for ClientListener {
    type Connection = Either<TcpStream, UnixStream>;

    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        match &self.socket {
            Socket::Tcp(listener) => Acceptor::accept(listener).await.map(Either::Left),
            Socket::Unix(socket) => socket.accept().await.map(Either::Right),
        }
    }

    fn client(connection: &Either<TcpStream, UnixStream>) -> Option<IpAddr> {
        match connection {
            Either::Left(stream) => <TcpListener as Acceptor>::client(stream),
            Either::Right(_) => None,
        }
    }
}
