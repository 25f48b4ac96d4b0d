//! What precedes the requests of a connection: the header of the PROXY protocol, a TLS handshake,
//! and the choice between HTTP/1 and HTTP/2. All of it happens in the task of the connection, so
//! that a client that is slow or sends invalid data holds up no other one.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::connection::{ClientStream, HEAD_TIMEOUT};
use crate::proxy_protocol::{self, ProxyError};
use crate::tls::{ALPN_HTTP2, Tls};

/// What is spoken on a listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Protocols {
    /// Each connection begins with a header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) http2: bool,
}

/// The version of HTTP that the client has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// Why a connection was closed before its first request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedConnection {
    #[error("no complete handshake within {} s", HEAD_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

impl RefusedConnection {
    /// Returns the value of the label `reason`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Proxy(_) => "proxy-protocol",
            Self::Tls(_) => "tls",
            Self::Io(_) => "io",
        }
    }
}

/// The stream of requests, which may be encrypted.
type EstablishedStream<S> = Either<ClientStream<S>, Box<TlsStream<ClientStream<S>>>>;

/// A connection on which requests follow.
pub(crate) struct Established<S> {
    pub(crate) stream: EstablishedStream<S>,
    pub(crate) version: HttpVersion,
    /// The address of the client.
    pub(crate) client: Option<IpAddr>,
}

impl Protocols {
    /// Returns the stream of requests of a connection from `client`, unless a proxy names another
    /// one.
    ///
    /// # Errors
    /// If the client sends something else than is spoken on the listener.
    pub(crate) async fn establish<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: ClientStream<S>,
        mut client: Option<IpAddr>,
    ) -> Result<Established<S>, RefusedConnection> {
        if self.proxy_protocol {
            let named = within(HEAD_TIMEOUT, proxy_protocol::read(&mut stream)).await??;
            tracing::debug!(client = ?named, "connection through a proxy");
            client = named.map(|named| named.ip().to_canonical()).or(client);
            stream.begin_requests();
        }
        let activity = Arc::clone(stream.activity());
        let (stream, is_http2) = match &self.tls {
            Some(tls) => {
                let stream = Box::pin(handshake(tls, stream)).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
                (Either::Right(Box::new(stream)), is_http2)
            }
            None => {
                let is_http2 = self.http2 && stream.detect_http2().await?;
                (Either::Left(stream), is_http2)
            }
        };
        if is_http2 {
            activity.set_http2();
        }
        let version = if is_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
        Ok(Established { stream, version, client })
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls,
    stream: ClientStream<S>,
) -> Result<TlsStream<ClientStream<S>>, RefusedConnection> {
    let accept = TlsAcceptor::from(tls.current()).accept(stream);
    let mut stream = within(HEAD_TIMEOUT, accept).await?.map_err(RefusedConnection::Tls)?;
    stream.get_mut().0.begin_requests();
    Ok(stream)
}

async fn within<T>(limit: Duration, step: impl Future<Output = T>) -> Result<T, RefusedConnection> {
    tokio::time::timeout(limit, step).await.map_err(|_| RefusedConnection::Timeout)
}
