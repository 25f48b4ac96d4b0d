//! Fetches small documents of other services, such as the key set of an issuer of tokens.
//!
//! Redirects are not followed, and plain http is only for this machine: what is fetched is trusted
//! because of the certificate of the server that was asked.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::tls::{self, TrustedRoots};
use crate::upstream::root_cause;

/// Maximum time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The URL of a document: https, or http on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchUrl(Uri);

/// A URL that is not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchUrlError {
    /// It is not a whole URL, or has a user name or a fragment.
    #[error("invalid URL: expected for example \"https://login.example.org/realms/main\"")]
    Invalid,
    /// Others could change the document.
    #[error("expected an https URL; http is accepted for loopback addresses only")]
    Insecure,
}

impl FetchUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// If it is not valid, or not secure.
    pub fn parse(text: &str) -> Result<Self, FetchUrlError> {
        let uri: Uri = text.parse().map_err(|_| FetchUrlError::Invalid)?;
        let has_surplus = text.contains(['#', '@']);
        let host = uri.host().filter(|host| !host.is_empty() && !has_surplus);
        let host = host.ok_or(FetchUrlError::Invalid)?;
        match uri.scheme_str() {
            Some("https") => Ok(Self(uri)),
            Some("http") if is_loopback(host) => Ok(Self(uri)),
            Some("http") => Err(FetchUrlError::Insecure),
            Some(_) | None => Err(FetchUrlError::Invalid),
        }
    }
}

impl fmt::Display for FetchUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A document that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server cannot be reached, or broke off.
    #[error("failed to fetch {url}: {cause}")]
    Connection {
        /// What was fetched.
        url: String,
        /// What happened.
        cause: String,
    },
    /// The server did not respond in time.
    #[error("failed to fetch {url}: no complete response within {} s", .timeout.as_secs())]
    Timeout {
        /// What was fetched.
        url: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The server refused. Redirects are not followed.
    #[error("failed to fetch {url}: the server returned {status}")]
    Status {
        /// What was fetched.
        url: String,
        /// The status of the response.
        status: StatusCode,
    },
    /// The document is too large.
    #[error("failed to fetch {url}: the response exceeds {max} bytes")]
    TooLarge {
        /// What was fetched.
        url: String,
        /// The maximum size.
        max: usize,
    },
}

/// A client that fetches documents.
#[derive(Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    timeout: Duration,
}

impl Fetcher {
    /// Creates a client that trusts the roots of the system, and those in `ca` as PEM.
    pub fn new(ca: Option<&[u8]>, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let roots = TrustedRoots { additional: ca };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(tls::connector(connector, Some(roots)));
        Self { client, timeout }
    }

    /// Fetches a document of at most `max` bytes.
    ///
    /// # Errors
    /// If the document is not complete within the time-out, or the status is not 200.
    pub async fn get(&self, url: &FetchUrl, max: usize) -> Result<Bytes, FetchError> {
        let fetched = tokio::time::timeout(self.timeout, self.get_patiently(url, max)).await;
        let timeout = || FetchError::Timeout { url: url.to_string(), timeout: self.timeout };
        fetched.unwrap_or_else(|_| Err(timeout()))
    }

    async fn get_patiently(&self, url: &FetchUrl, max: usize) -> Result<Bytes, FetchError> {
        let broken = |cause: String| FetchError::Connection { url: url.to_string(), cause };
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = url.0.clone();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json);
        let response = self.client.request(request).await;
        let response = response.map_err(|error| broken(root_cause(&error).to_string()))?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(FetchError::Status { url: url.to_string(), status: head.status });
        }
        match Limited::new(body, max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(FetchError::TooLarge { url: url.to_string(), max })
            }
            Err(error) => Err(broken(root_cause(&*error).to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_secure() {
        use FetchUrlError::{Insecure, Invalid};
        for (text, expected) in [
            ("https://login.example.org/realms/main", None),
            ("https://login.example.org:8443", None),
            ("http://127.0.0.1:8080/x?y=z", None),
            ("http://[::1]:8080/x", None),
            ("http://localhost/x", None),
            ("http://login.example.org/x", Some(Insecure)),
            ("http://127.0.0.1.example.org/x", Some(Insecure)),
            ("http://localhost.example.org/x", Some(Insecure)),
            ("ftp://127.0.0.1/x", Some(Invalid)),
            ("https://user@example.org/x", Some(Invalid)),
            ("https://example.org/x#y", Some(Invalid)),
            ("https:///x", Some(Invalid)),
            ("example.org/x", Some(Invalid)),
            ("/x", Some(Invalid)),
            ("", Some(Invalid)),
        ] {
            assert_eq!(FetchUrl::parse(text).err(), expected, "{text}");
        }
    }
}
