//! Sends small documents to other services, such as spans to a collector.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::tls::{self, TrustedRoots};
use crate::upstream::root_cause;

/// Maximum time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response in bytes, which is not looked at.
const MAX_RESPONSE: usize = 64 << 10;

/// The URL of a service, below which its paths are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl(String);

/// A text that is not the URL of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid URL: expected for example \"http://127.0.0.1:4318\"")]
pub struct ServiceUrlError;

impl ServiceUrl {
    /// Reads a URL with the scheme http or https, and without query and user name.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(text: &str) -> Result<Self, ServiceUrlError> {
        let uri: Uri = text.parse().map_err(|_| ServiceUrlError)?;
        let is_valid = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && !text.contains(['#', '@', '?']);
        is_valid.then(|| Self(text.trim_end_matches('/').to_owned())).ok_or(ServiceUrlError)
    }

    /// Returns the host, and the port if the URL has one, as in `10.0.0.2:8080`.
    pub fn authority(&self) -> &str {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    /// Returns the URL of a path, which begins with a slash and consists of ASCII letters.
    pub fn join(&self, path: &str) -> Self {
        Self(format!("{}{path}", self.0))
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The response to a document.
#[derive(Debug)]
pub struct Posted {
    /// The status.
    pub status: StatusCode,
    /// The headers and the trailers.
    pub headers: HeaderMap,
}

/// A document that could not be sent, or to which the response was not complete.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The service cannot be reached, or broke off.
    #[error("failed to send to {url}: {cause}")]
    Connection {
        /// Where it was sent.
        url: String,
        /// What happened.
        cause: String,
    },
    /// The service did not respond in time.
    #[error("failed to send to {url}: no complete response within {} s", .timeout.as_secs_f32())]
    Timeout {
        /// Where it was sent.
        url: String,
        /// How long it was waited for.
        timeout: Duration,
    },
}

/// A client that sends documents. Keeps one connection.
#[derive(Debug)]
pub struct Poster {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Poster {
    /// Creates a client that trusts the roots of the system. With `is_http2`, it speaks nothing
    /// else, also without TLS.
    pub fn new(is_http2: bool, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let roots = Some(TrustedRoots { additional: None });
        let connector = match is_http2 {
            true => tls::http2_connector(connector, roots),
            false => tls::connector(connector, roots),
        };
        let client = Client::builder(TokioExecutor::new())
            .http2_only(is_http2)
            .pool_max_idle_per_host(1)
            .build(connector);
        Self { client, timeout }
    }

    /// Sends a document.
    ///
    /// # Errors
    /// If the response is not complete within the time-out. Its status is not looked at.
    pub async fn post(
        &self,
        url: &ServiceUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Posted, PostError> {
        let sent = tokio::time::timeout(self.timeout, self.post_patiently(url, headers, body));
        let timeout = || PostError::Timeout { url: url.to_string(), timeout: self.timeout };
        sent.await.unwrap_or_else(|_| Err(timeout()))
    }

    async fn post_patiently(
        &self,
        url: &ServiceUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Posted, PostError> {
        let broken = |cause: String| PostError::Connection { url: url.to_string(), cause };
        let uri: Uri =
            url.0.parse().map_err(|error: http::uri::InvalidUri| broken(error.to_string()))?;
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, uri);
        *request.headers_mut() = headers;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| broken(root_cause(&error).to_string()))?;
        let (head, body) = response.into_parts();
        let mut headers = head.headers;
        let body = Limited::new(body, MAX_RESPONSE).collect().await;
        let body = body.map_err(|error| broken(root_cause(&*error).to_string()))?;
        headers.extend(body.trailers().cloned().unwrap_or_default());
        Ok(Posted { status: head.status, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_services_have_a_host_and_no_query() {
        for (text, expected) in [
            ("http://127.0.0.1:4318", Some("http://127.0.0.1:4318/v1/traces")),
            ("https://otel.example.org/otlp/", Some("https://otel.example.org/otlp/v1/traces")),
            ("127.0.0.1:4318", None),
            ("localhost:4317", None),
            ("ftp://127.0.0.1", None),
            ("http://", None),
            ("http://user@host", None),
            ("http://host/?a=b", None),
            ("http://host/#a", None),
            ("", None),
        ] {
            let url = ServiceUrl::parse(text).ok().map(|url| url.join("/v1/traces").to_string());
            assert_eq!(url.as_deref(), expected, "{text}");
        }
    }
}
