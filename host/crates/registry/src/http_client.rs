//! Requests to one host, with limits on size and time.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pointsman_fleet::https_connector;

use crate::error::RegistryError;

/// Maximum time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a response is for, and how large it may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) what: &'static str,
    /// Maximum size of the body in bytes.
    pub(crate) max: usize,
    pub(crate) timeout: Duration,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// Returns a header, if it is a text.
    pub(crate) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A client without redirects and credentials.
#[derive(Debug)]
pub(crate) struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpClient {
    /// Creates a client that trusts the roots of the system, and those in `ca` as PEM.
    pub(crate) fn new(ca: Option<&[u8]>) -> Self {
        let connector = https_connector(ca, CONNECT_TIMEOUT);
        let mut client = Client::builder(TokioExecutor::new());
        Self(client.pool_max_idle_per_host(1).build(connector))
    }

    /// Sends a request and reads the response.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        expected: Expected,
    ) -> Result<Reply, RegistryError> {
        let Expected { what, max, timeout } = expected;
        let authority = request.uri().authority();
        let host = authority.map(ToString::to_string).unwrap_or_default();
        let sent = tokio::time::timeout(timeout, self.send_and_read(request, what, max, &host));
        sent.await.unwrap_or_else(|_| Err(RegistryError::Timeout { host: host.clone(), timeout }))
    }

    async fn send_and_read(
        &self,
        request: Request<Full<Bytes>>,
        what: &'static str,
        max: usize,
        host: &str,
    ) -> Result<Reply, RegistryError> {
        let too_large = || RegistryError::TooLarge { what, max };
        let is_head = request.method() == http::Method::HEAD;
        let unreachable =
            |cause: String| RegistryError::Unreachable { host: host.to_owned(), cause };
        let response = self.0.request(request).await;
        let response = response.map_err(|error| unreachable(root_cause(&error)))?;
        let (head, body) = response.into_parts();
        if is_head {
            return Ok(Reply { status: head.status, headers: head.headers, body: Bytes::new() });
        }
        // Before anything of it is read.
        if body.size_hint().lower() > max as u64 {
            return Err(too_large());
        }
        let body = match Limited::new(body, max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(error) => return Err(unreachable(root_cause(&*error))),
        };
        Ok(Reply { status: head.status, headers: head.headers, body })
    }
}

/// Returns the message of the first cause: what the libraries add says nothing to an operator.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
