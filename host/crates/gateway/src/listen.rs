//! Accepts connections, within the limits of their number, until the drain is closed.
//!
//! A loop of our own instead of `axum::serve`, for what it does not have: limits of time and number
//! for connections, a check of the host name, and a drain during which requests are still answered.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::drain::Drain;
use crate::http_connection::{Listener, serve_connection};
use crate::idle::ConnectionPool;
use crate::metrics::GatewayMetrics;
use crate::peer::PeerUid;
use crate::protocols::Protocols;
use crate::served::ServedSlot;

/// Pause after a failed `accept`, which fails again immediately while descriptors are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Size of the system's buffer for a connection's unsent bytes; Linux takes twice as much. It only
/// tells that the client reads when a third of it has become free, which a slow client has to get
/// done within the write timeout. Without a limit it grows to megabytes.
const SEND_BUFFER: usize = 64 << 10;

/// A source of connections.
pub(crate) trait Acceptor: Send + Sync {
    /// A connection.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Accepts the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;

    /// Returns the address of the client of a connection; `None` without one, or if the client has
    /// gone.
    fn client(connection: &Self::Connection) -> Option<IpAddr>;

    /// Returns the user at the other end of a connection, if that is known.
    fn peer(_connection: &Self::Connection) -> Option<PeerUid> {
        None
    }
}

impl Acceptor for TcpListener {
    type Connection = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Chunks of a stream are sent immediately; with Nagle's algorithm a client's delayed ACK
        // would hold them back for 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        limit_send_buffer(SockRef::from(&stream));
        Ok(stream)
    }

    fn client(connection: &TcpStream) -> Option<IpAddr> {
        // IPv4 clients of a listener for both versions are shown as such.
        connection.peer_addr().ok().map(|address| address.ip().to_canonical())
    }
}

fn client_of<A: Acceptor>(_acceptor: &A, connection: &A::Connection) -> Option<IpAddr> {
    A::client(connection)
}

/// Limits the system's buffer for a connection's unsent bytes.
pub(crate) fn limit_send_buffer(socket: SockRef<'_>) {
    if let Err(error) = socket.set_send_buffer_size(SEND_BUFFER) {
        tracing::debug!(%error, "failed to set SO_SNDBUF");
    }
}

/// What does not change while a listener listens.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    /// The places of connections.
    pub(crate) pool: Arc<ConnectionPool>,
    pub(crate) protocols: Protocols,
    pub(crate) drain: Drain,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

/// Serves what `served` has until the drain is closed, and then closes all connections. If the
/// drain retires, ends with the last connection. Dropping the future closes them, too.
pub(crate) async fn listen<A: Acceptor>(acceptor: A, served: ServedSlot, fixed: Fixed) {
    let Fixed { pool, protocols, drain, metrics } = fixed;
    let retiring = drain.retiring().clone();
    let tasks = TaskTracker::new();
    let close = drain.closing().child_token();
    let _close_on_drop = close.clone().drop_guard();
    let listener = Arc::new(Listener {
        served,
        protocols,
        drain,
        idle: Arc::clone(pool.idle()),
        requests: Arc::clone(pool.requests()),
        metrics,
        tasks: tasks.clone(),
    });
    let accept = async {
        loop {
            match acceptor.accept().await {
                Ok(stream) => {
                    let permit = pool.make_room().await;
                    let peer = (client_of(&acceptor, &stream), A::peer(&stream));
                    let (listener, close) = (Arc::clone(&listener), close.clone());
                    tasks.spawn(async move {
                        let connection = pin!(serve_connection(stream, peer, listener));
                        close.run_until_cancelled(connection).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    pool.idle().evict_longest();
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = close.cancelled() => {}
        () = retiring.cancelled() => {}
    }
    // New connections are refused from here on, unless another host listens.
    drop(acceptor);
    tasks.close();
    tasks.wait().await;
}
