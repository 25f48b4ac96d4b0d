//! `pointsman health`: the health check of containers and scripts, which have no other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::uri::{InvalidUri, Scheme};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pointsman_config::{Address, Config};
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
    #[error("the first listener speaks TLS or the PROXY protocol; name the URL of another one")]
    Protocol,
    #[error("no response within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Asks a host, and prints its response if it is healthy.
///
/// # Errors
/// If the host cannot be reached, does not respond in time, or reports another status than 2xx.
pub(crate) fn health(options: &Health) -> Result<()> {
    let target = match &options.config {
        Some(file) => Target::from_config(&Config::load_without_secrets(file, &[])?)?,
        None => Target::from_text(&options.url)?,
    };
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
    Socket { file: PathBuf, path: String },
    Port { authority: String, path: String },
}

impl Target {
    fn from_text(text: &str) -> Result<Self, HealthError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Socket { file: path.into(), path: DEFAULT_PATH.to_owned() });
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

    /// Returns the first listener of a configuration.
    fn from_config(config: &Config) -> Result<Self, HealthError> {
        let listener = config.server.listeners.first();
        let listener = listener.filter(|listener| listener.tls.is_none());
        let listener = listener.filter(|listener| !listener.proxy_protocol);
        let listener = listener.ok_or(HealthError::Protocol)?;
        let path = format!("{}{DEFAULT_PATH}", listener.path_prefix);
        Ok(match &listener.address {
            Address::Unix { path: file, .. } => Self::Socket { file: file.clone(), path },
            Address::Tcp(address) => {
                let mut address = *address;
                // All addresses of this machine.
                if address.ip().is_unspecified() {
                    address.set_ip(match address.ip() {
                        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    });
                }
                Self::Port { authority: address.to_string(), path }
            }
        })
    }

    async fn ask(&self) -> Result<(StatusCode, Vec<u8>)> {
        match self {
            Self::Socket { file, path } => {
                let stream = UnixStream::connect(file).await;
                let stream =
                    stream.with_context(|| format!("cannot connect to {}", file.display()))?;
                exchange(stream, "localhost", path).await
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

    fn port(authority: &str, path: &str) -> Target {
        Target::Port { authority: authority.to_owned(), path: path.to_owned() }
    }

    fn socket(file: &str, path: &str) -> Target {
        Target::Socket { file: file.into(), path: path.to_owned() }
    }

    #[test]
    fn first_listener_of_a_configuration_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        let lane = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
                    \"http://127.0.0.1:1\"\n";
        let target = |server: &str| {
            std::fs::write(&file, format!("[server]\n{server}\n{lane}")).unwrap();
            Target::from_config(&Config::load(&file).unwrap())
        };
        for (server, expected) in [
            ("", port("127.0.0.1:8000", "/health")),
            ("listen = \"0.0.0.0:81\"", port("127.0.0.1:81", "/health")),
            ("listen = \"[::]:81\"\npath-prefix = \"/llm\"", port("[::1]:81", "/llm/health")),
            ("listen = \"unix:/run/a.sock\"", socket("/run/a.sock", "/health")),
        ] {
            assert_eq!(target(server).unwrap(), expected, "{server}");
        }
        let tls = target("tls = { certificate = \"a.pem\", key = \"a.pem\" }");
        assert!(matches!(tls, Err(HealthError::Protocol)), "{tls:?}");
    }

    #[test]
    fn url_has_defaults_for_port_and_path() {
        for (text, expected) in [
            ("http://127.0.0.1:8000", port("127.0.0.1:8000", "/health")),
            ("http://127.0.0.1:8000/", port("127.0.0.1:8000", "/health")),
            ("http://[::1]:1/llm/readyz", port("[::1]:1", "/llm/readyz")),
            ("http://router/health?lane=a", port("router:80", "/health?lane=a")),
            ("unix:/run/api.sock", socket("/run/api.sock", "/health")),
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
