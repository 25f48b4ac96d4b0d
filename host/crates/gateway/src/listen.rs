//! Accepts and drains connections.
//!
//! A loop of our own instead of `axum::serve`, for what it does not have: limits of time and number
//! for connections, a check of the host name, and a drain during which requests are still answered.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Version, header};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::connection::{Activity, ClientStream, RequestGuard, Timeouts};
use crate::drain::Drain;
use crate::hosts::AllowedHosts;
use crate::idle::IdleConnections;
use crate::metrics::GatewayMetrics;
use crate::response;

/// Pause after a failed `accept`, which fails again immediately while descriptors are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Interval at which a new connection looks for an idle one to take the place of, while all are
/// busy.
const EVICT_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum size of the head of a request; nginx has the same.
const MAX_HEAD: usize = 32 << 10;
/// Maximum size of hyper's buffers of a connection, one for reading and one for writing.
const BUFFER: usize = 64 << 10;
/// Size of the system's buffer for a connection's unsent bytes; Linux takes twice as much. It only
/// tells that the client reads when a third of it has become free, which a slow client has to get
/// done within the write timeout. Without a limit it grows to megabytes.
const SEND_BUFFER: usize = 64 << 10;
/// Announces the idle timeout, so that clients do not send a request when it is about to expire.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A source of connections.
pub(crate) trait Acceptor: Send + Sync {
    /// A connection.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Accepts the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
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
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(%error, "failed to set SO_SNDBUF");
        }
        Ok(stream)
    }
}

/// The limits of a listener.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Maximum number of open connections.
    pub(crate) connections: usize,
    pub(crate) timeouts: Timeouts,
    /// Host names of the listener; `None` for a Unix socket.
    pub(crate) hosts: Option<AllowedHosts>,
}

/// What the connections of a listener share.
struct Listener {
    router: Router,
    limits: Limits,
    /// The value of the header `Keep-Alive`.
    keep_alive: Option<HeaderValue>,
    drain: Drain,
    idle: Arc<IdleConnections>,
    metrics: Arc<GatewayMetrics>,
}

/// Returns the address of a listener. An unknown one counts as public.
pub(crate) fn address_of(listener: &TcpListener) -> IpAddr {
    listener.local_addr().map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip())
}

/// Serves `router` until the drain is closed, and then closes all connections. Dropping the future
/// closes them, too.
pub(crate) async fn listen(
    acceptor: impl Acceptor,
    router: Router,
    limits: Limits,
    drain: Drain,
    metrics: Arc<GatewayMetrics>,
) {
    let connections = TaskTracker::new();
    let close = drain.closing().child_token();
    let _close_on_drop = close.clone().drop_guard();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let seconds = limits.timeouts.idle.as_secs();
    let keep_alive = HeaderValue::from_str(&format!("timeout={seconds}")).ok();
    let idle = Arc::<IdleConnections>::default();
    let listener =
        Arc::new(Listener { router, limits, keep_alive, drain, idle: Arc::clone(&idle), metrics });
    let accept = async {
        loop {
            match acceptor.accept().await {
                Ok(stream) => {
                    let permit = make_room(&permits, &idle).await;
                    let connection = serve_connection(stream, Arc::clone(&listener));
                    let close = close.clone();
                    connections.spawn(async move {
                        close.run_until_cancelled(connection).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    idle.evict_longest();
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    };
    close.run_until_cancelled(accept).await;
    // New connections are refused from here on.
    drop(acceptor);
    connections.close();
    connections.wait().await;
}

/// Waits for the place of a connection. The longest idle connection makes room if none is free.
async fn make_room(
    permits: &Arc<Semaphore>,
    idle: &IdleConnections,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return Some(permit);
    }
    loop {
        idle.evict_longest();
        let acquired = Arc::clone(permits).acquire_owned();
        if let Ok(permit) = tokio::time::timeout(EVICT_INTERVAL, acquired).await {
            // The semaphore is never closed.
            return permit.ok();
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    listener: Arc<Listener>,
) {
    let _open = listener.metrics.open_connection();
    let activity = Activity::new(listener.drain.clone(), Arc::clone(&listener.idle));
    let stream = ClientStream::new(stream, Arc::clone(&activity), listener.limits.timeouts);
    // A connection that is accepted after the cut only ends when the listener closes.
    let cutting = listener.drain.cutting();
    let cut = match cutting.is_cancelled() {
        true => CancellationToken::new(),
        false => cutting.clone(),
    };
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request: Request<Incoming>| {
            let (listener, request_guard) = (Arc::clone(&listener), activity.begin());
            async move {
                match request_guard {
                    Some(guard) => Ok::<_, Infallible>(serve(&listener, request, guard).await),
                    // The connection is about to be closed, see below.
                    None => std::future::pending().await,
                }
            }
        })
    };
    let connection = http1::Builder::new()
        // `ClientStream` has a time limit that does not include the time between two requests.
        .header_read_timeout(None::<Duration>)
        .max_header_size(MAX_HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        result = connection => if let Err(error) = result {
            tracing::debug!(%error, "connection ended with an error");
        },
        () = activity.evicted() => tracing::debug!("closing an idle connection to make room"),
        () = cut.cancelled() => {}
    }
}

/// Serves a request if its host name is one of the listener's.
async fn serve(
    listener: &Listener,
    request: Request<Incoming>,
    guard: RequestGuard,
) -> Response<GuardedBody> {
    let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
    let request = request.map(|body| Body::new(RequestBody { body, unread: Arc::clone(&unread) }));
    // Only then a client does not expect to keep the connection.
    let is_last =
        request.version() < Version::HTTP_11 || request.headers().contains_key(header::CONNECTION);
    let checked = match &listener.limits.hosts {
        Some(hosts) => hosts.check(request.version(), request.uri(), request.headers()),
        None => Ok(()),
    };
    let mut response = match checked {
        Ok(()) => {
            let mut router = listener.router.clone();
            router.call(request).await.unwrap_or_else(|never| match never {})
        }
        Err(error) => {
            let mut response = response::error(request, error);
            response.headers_mut().insert(header::CONNECTION, CLOSE);
            response
        }
    };
    // hyper closes the connection then, unless the rest has arrived by chance.
    let leaves_body_unread = unread.load(Ordering::Relaxed);
    let headers = response.headers_mut();
    if listener.drain.stopping().is_cancelled() || leaves_body_unread {
        headers.insert(header::CONNECTION, CLOSE);
    } else if let Some(keep_alive) = &listener.keep_alive
        && !is_last
        && !headers.contains_key(header::CONNECTION)
    {
        headers.insert(KEEP_ALIVE, keep_alive.clone());
    }
    response.map(|body| GuardedBody { body, _guard: guard })
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// The body of a request, which notes when all of it was read.
struct RequestBody {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            // Relaxed: the flag guards no other memory.
            self.unread.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response, with which the request ends.
struct GuardedBody {
    body: Body,
    _guard: RequestGuard,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
