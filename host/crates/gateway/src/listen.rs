//! Accepts and drains connections.
//!
//! A loop of our own instead of `axum::serve`, for three features that it does not have: a timeout
//! for the request head, a limit on open connections, and a drain whose end the host decides.

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

/// Time for a client to send the head of a request, on a new connection and on an idle one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Open connections; far below the usual limit of 65,536 file descriptors, of which each request
/// needs two.
const MAX_CONNECTIONS: usize = 16_384;
/// Pause after a failed `accept`, which fails again immediately while descriptors are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

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
        Ok(stream)
    }
}

/// Serves `router` until `stop` is cancelled, then drains: returns when all connections are closed.
/// Dropping the future aborts the connections that are left.
pub(crate) async fn listen(acceptor: impl Acceptor, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let _abort_on_drop = abort.clone().drop_guard();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Some(Ok(permit)) = or_stop(&stop, Arc::clone(&permits).acquire_owned()).await else {
            break;
        };
        match or_stop(&stop, acceptor.accept()).await {
            None => break,
            Some(Ok(stream)) => {
                let connection = serve_connection(stream, router.clone(), stop.clone());
                let abort = abort.clone();
                connections.spawn(async move {
                    abort.run_until_cancelled(connection).await;
                    drop(permit);
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "failed to accept a connection");
                if or_stop(&stop, tokio::time::sleep(ACCEPT_RETRY_DELAY)).await.is_none() {
                    break;
                }
            }
        }
    }
    // New connections are refused from here on.
    drop(acceptor);
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
        tracing::debug!(%error, "connection ended with an error");
    }
}
