//! `pointsman health`: the health check of containers and scripts, which have no other client.

use std::time::Duration;

use anyhow::{Context as _, Result};
use http::uri::{InvalidUri, Scheme};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pointsman_report::table::clean;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::health::Health;
use crate::output;

/// Maximum size of a response in bytes. Those of the host are shorter.
const MAX_BODY: usize = 64 * 1024;
/// What is asked if the URL has no path.
const DEFAULT_PATH: &str = "/health";

/// The reason why a host is not healthy, or cannot be asked.
#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("unhealthy: {status} {body}")]
    Unhealthy { status: StatusCode, body: String },
    #[error("invalid URL: {0}")]
    Syntax(#[from] InvalidUri),
    #[error("invalid URL \"{0}\": expected http://ADDRESS:PORT/PATH or unix:PATH")]
    Url(Uri),
    #[error("no response within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Asks a host, and prints its response if it is healthy.
///
/// # Errors
/// If the host cannot be reached, does not respond in time, or reports another status than 2xx.
pub(crate) fn health(options: &Health) -> Result<()> {
    let target = Target::from_text(&options.url)?;
    let timeout = Duration::from_secs(options.timeout);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let asked = runtime.block_on(async { tokio::time::timeout(timeout, target.ask()).await });
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();
    let (status, body) = asked.map_err(|_| HealthError::Timeout(timeout))??;
    let body = clean(&String::from_utf8_lossy(&body)).trim().to_owned();
    if !status.is_success() {
        return Err(HealthError::Unhealthy { status, body }.into());
    }
    output::print(&format!("{} {body}\n", status.as_u16()))
}

/// Where a host is asked, and for what.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Socket(String),
    Port { authority: String, path: String },
}

impl Target {
    fn from_text(text: &str) -> Result<Self, HealthError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Socket(path.to_owned()));
        }
        let url: Uri = text.parse()?;
        let authority = url.authority().filter(|_| url.scheme() == Some(&Scheme::HTTP));
        let Some(authority) = authority else { return Err(HealthError::Url(url)) };
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        let path = match url.path_and_query().map(|path| path.as_str()) {
            None | Some("/") => DEFAULT_PATH.to_owned(),
            Some(path) => path.to_owned(),
        };
        Ok(Self::Port { authority, path })
    }

    async fn ask(&self) -> Result<(StatusCode, Vec<u8>)> {
        match self {
            Self::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.with_context(|| format!("cannot connect to {path}"))?;
                exchange(stream, "localhost", DEFAULT_PATH).await
            }
            Self::Port { authority, path } => {
                let stream = TcpStream::connect(authority).await;
                let stream = stream.with_context(|| format!("cannot connect to {authority}"))?;
                exchange(stream, authority, path).await
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    authority: &str,
    path: &str,
) -> Result<(StatusCode, Vec<u8>)> {
    let request = Request::builder().uri(path).header(header::HOST, authority);
    let request = request.header(header::CONNECTION, "close").body(String::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let read = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("failed to read")?;
        anyhow::Ok((status, body.to_bytes().to_vec()))
    };
    // The error of a connection is that of its request, too.
    let (read, _) = tokio::join!(read, connection);
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_defaults_for_port_and_path() {
        let port = |authority: &str, path: &str| Target::Port {
            authority: authority.to_owned(),
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("http://127.0.0.1:8000", port("127.0.0.1:8000", "/health")),
            ("http://127.0.0.1:8000/", port("127.0.0.1:8000", "/health")),
            ("http://[::1]:1/llm/readyz", port("[::1]:1", "/llm/readyz")),
            ("http://router/health?lane=a", port("router:80", "/health?lane=a")),
            ("unix:/run/api.sock", Target::Socket("/run/api.sock".to_owned())),
        ] {
            assert_eq!(Target::from_text(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn other_schemes_are_invalid() {
        for text in ["https://127.0.0.1:8000", "127.0.0.1:8000", "/health", ""] {
            assert!(Target::from_text(text).is_err(), "{text}");
        }
    }
}
