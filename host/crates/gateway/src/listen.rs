//! Accepting connections, and letting them go.
//!
//! Our own loop instead of `axum::serve`, for three things that it does not offer: a limit on the time a client may take
//! for its request head, a limit on open connections, and a drain whose end is decided by the host.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

/// A client may take this long to send the head of a request, on a new connection and on one that is kept alive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Open connections; far below the usual limit of 65,536 file descriptors, two of which each request needs.
const MOST_CONNECTIONS: usize = 16_384;
/// Pause after `accept` failed, which it does again at once when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come in.
pub(crate) trait Entrance: Send + Sync {
    /// One of them.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Entrance for TcpListener {
    type Connection = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Every chunk of a stream goes out at once; with Nagle's algorithm a client's delayed ACK would hold it for 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok(stream)
    }
}

/// Serve `router` until `stop`, then let requests that are being answered finish: ends when all connections have.
/// Dropping the future cuts those that are left.
pub(crate) async fn listen(entrance: impl Entrance, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let _cut_on_drop = cut.clone().drop_guard();
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Some(Ok(permit)) = or_stop(&stop, Arc::clone(&room).acquire_owned()).await else {
            break;
        };
        match or_stop(&stop, entrance.next()).await {
            None => break,
            Some(Ok(stream)) => {
                let connection = serve_connection(stream, router.clone(), stop.clone());
                let cut = cut.clone();
                connections.spawn(async move {
                    cut.run_until_cancelled(connection).await;
                    drop(permit);
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                if or_stop(&stop, tokio::time::sleep(ACCEPT_PAUSE)).await.is_none() {
                    break;
                }
            }
        }
    }
    drop(entrance);
    connections.close();
    connections.wait().await;
}

async fn or_stop<F: Future>(stop: &CancellationToken, future: F) -> Option<F::Output> {
    stop.run_until_cancelled(future).await
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            Ok::<_, Infallible>(
                router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}),
            )
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
