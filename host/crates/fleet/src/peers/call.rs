//! Requests to another host that are not for one of its lanes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::{Peer, PeerEndpoint};
use crate::tls::{self, TrustedRoots};
use crate::upstream::root_cause;

/// Maximum time to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time of a request, until all of its response has arrived.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The client of a host. Each request has a connection of its own.
pub(super) type PeerClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// The URL or the key of a host cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URL or the key of the host is not valid in a request")]
pub(super) struct InvalidRequest;

/// Why another host has not responded to a request.
#[derive(Debug, thiserror::Error)]
pub enum PeerCallError {
    /// The URL, the path or the key cannot be sent.
    #[error("the URL or the key of the host is not valid in a request")]
    Request,
    /// The host cannot be reached, the connection broke, or the response is too large.
    #[error("{0}")]
    Connection(String),
    /// The response was not complete in time.
    #[error("the host did not respond within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl From<InvalidRequest> for PeerCallError {
    fn from(_: InvalidRequest) -> Self {
        Self::Request
    }
}

/// Returns a client for a host.
pub(super) fn client(endpoint: &PeerEndpoint) -> PeerClient {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    let roots = TrustedRoots { additional: endpoint.ca.as_deref() };
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(tls::connector(connector, Some(roots)))
}

/// Returns a request for a path of a host, with its key.
pub(super) fn request(
    endpoint: &PeerEndpoint,
    method: Method,
    path: &str,
    headers: HeaderMap,
) -> Result<Request<Empty<Bytes>>, InvalidRequest> {
    let uri: Uri = endpoint.url.join(path).to_string().parse().map_err(|_| InvalidRequest)?;
    let mut request = Request::new(Empty::new());
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
    if let Some(key) = &endpoint.key {
        let value = HeaderValue::try_from(format!("Bearer {}", key.reveal()));
        let mut value = value.map_err(|_| InvalidRequest)?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

impl Peer {
    /// Sends a request without a body to the host, with its key for this one. Redirects are not
    /// followed.
    ///
    /// # Errors
    /// If there is no complete response of at most `max` bytes within some seconds.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        max: usize,
    ) -> Result<Response<Bytes>, PeerCallError> {
        let (endpoint, client) = (&self.0.endpoint, &self.0.client);
        let request = request(endpoint, method, path, headers)?;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            PeerCallError::Connection(root_cause(error).to_string())
        };
        let respond = async {
            let response = client.request(request).await.map_err(|error| failed(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, max).collect().await;
            let body = body.map_err(|error| failed(&*error))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let response = tokio::time::timeout(CALL_TIMEOUT, respond).await;
        response.unwrap_or(Err(PeerCallError::Timeout(CALL_TIMEOUT)))
    }
}
