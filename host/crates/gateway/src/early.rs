//! Answers clients on a listener before the gateway exists, with the same protocols.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::client_listener::ClientListener;
use crate::connection::{ClientStream, Timeouts};
use crate::drain::Drain;
use crate::http_version::{http1, http2};
use crate::listen::Acceptor as _;
use crate::protocols::{Established, HttpVersion, Protocols};
use crate::unsent::StreamTasks;

/// Time for a client to send the head of its request, and to take its response.
const TIMEOUTS: Timeouts = Timeouts { idle: Duration::from_secs(5), write: Duration::from_secs(5) };
/// Time for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that was accepted before the gateway exists.
#[derive(Debug)]
pub struct EarlyConnection {
    stream: Either<TcpStream, UnixStream>,
    protocols: Protocols,
}

impl ClientListener {
    /// Accepts a connection to answer before the gateway exists.
    ///
    /// # Errors
    /// If no connection can be accepted.
    pub async fn accept_early(&self) -> io::Result<EarlyConnection> {
        let stream = self.accept().await?;
        Ok(EarlyConnection { stream, protocols: self.protocols().clone() })
    }
}

impl EarlyConnection {
    /// Responds to the first request, given its head, and closes the connection: the client's next
    /// request finds a gateway. Ends after a limited time.
    pub async fn respond(self, respond: impl Fn(&Parts) -> Response<Full<Bytes>>) {
        if tokio::time::timeout(CONNECTION_TIMEOUT, self.serve(respond)).await.is_err() {
            tracing::debug!("closing a connection: it has taken too long");
        }
    }

    async fn serve(self, respond: impl Fn(&Parts) -> Response<Full<Bytes>>) {
        let activity = Activity::new(Drain::default(), Arc::default());
        let stream = ClientStream::new(self.stream, Arc::clone(&activity), TIMEOUTS);
        let established = self.protocols.establish(stream, None).await;
        let Established { stream, version, .. } = match established {
            Ok(established) => established,
            Err(error) => {
                tracing::debug!(%error, "closing a connection before its first request");
                return;
            }
        };
        let service = {
            let activity = Arc::clone(&activity);
            service_fn(move |request: http::Request<Incoming>| {
                // Dropped with the response: what is left to write is small.
                let _request = activity.begin();
                let response = respond(&request.into_parts().0);
                async move { Ok::<_, Infallible>(response) }
            })
        };
        let stream = TokioIo::new(stream);
        let result = match version {
            HttpVersion::Http1 => http1().keep_alive(false).serve_connection(stream, service).await,
            HttpVersion::Http2 => {
                let ended = CancellationToken::new();
                let _ended_on_drop = ended.clone().drop_guard();
                let tasks = StreamTasks::new(TaskTracker::new(), ended, TIMEOUTS.write);
                let mut connection = pin!(http2(tasks).serve_connection(stream, service));
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = activity.used() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended with an error");
        }
    }
}
