//! One question to a host, over its socket or its port.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::{Method, Request, Uri, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::policy::At;
use crate::config::Admin;

/// A host may compile a large policy before it answers.
const LONGEST: Duration = Duration::from_secs(300);

/// Where a host lets operators in.
#[derive(Debug)]
pub(super) enum Host {
    Socket {
        path: PathBuf,
        /// Whose host it is, for a sentence that says that there is none.
        of: &'static str,
    },
    Port {
        /// Name or number, and port.
        address: String,
        token: String,
    },
}

impl Host {
    /// The host that is meant.
    pub(super) fn find(at: &At, token_env: Option<&str>) -> Result<Self> {
        if let Some(path) = &at.socket {
            return Ok(Self::Socket { path: path.clone(), of: "there" });
        }
        if let (Some(url), Some(name)) = (&at.url, token_env) {
            let token = std::env::var(name)
                .map_err(|_| anyhow!("the environment variable `{name}` is not set to a text"))?;
            return Ok(Self::Port { address: address(url)?, token: token.trim().to_owned() });
        }
        let file = at.config.as_deref().unwrap_or(Path::new(""));
        let Admin { socket, port } = Admin::find(file)?;
        match (socket, port) {
            (Some(path), _) => Ok(Self::Socket { path, of: "for this configuration" }),
            (None, Some((address, token))) => {
                Ok(Self::Port { address: address.to_string(), token: token.0 })
            }
            (None, None) => bail!(
                "{}: a host with this configuration lets no operators in; set `admin.socket` or `admin.listen`",
                file.display()
            ),
        }
    }

    /// Ask it.
    ///
    /// # Errors
    /// When it is not there, and with its own sentence when it refuses.
    pub(super) async fn ask(&self, method: Method, path: &str, body: String) -> Result<Value> {
        let answer = tokio::time::timeout(LONGEST, self.exchange(method, path, body)).await;
        let (status, body) = answer
            .map_err(|_| anyhow!("the host has not answered for {} s", LONGEST.as_secs()))??;
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        match answer {
            Some(answer) if status.is_success() => Ok(answer),
            Some(answer) if answer["error"]["message"].is_string() => {
                bail!("{}", answer["error"]["message"].as_str().unwrap_or_default())
            }
            _ => bail!("{status} and no sentence: this is no host of the same version"),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(http::StatusCode, Vec<u8>)> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        match self {
            Self::Socket { path, of } => {
                let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        anyhow!("no host is running {of} (looked for {})", path.display())
                    }
                    io::ErrorKind::PermissionDenied => anyhow!(
                        "{} is not open to this user; run this as the user whose host it is, or as root",
                        path.display()
                    ),
                    _ => anyhow!("{} cannot be used: {error}", path.display()),
                })?;
                exchange(stream, request.body(body)?).await
            }
            Self::Port { address, token } => {
                let stream = TcpStream::connect(address).await.with_context(|| {
                    format!("no host is listening at {address} (`admin.listen`)")
                })?;
                let bearer = format!("Bearer {token}");
                let request = request.header(header::AUTHORIZATION, bearer).body(body);
                exchange(
                    stream,
                    request.context("the token has characters that no header may carry")?,
                )
                .await
            }
        }
    }
}

/// Host and port of a URL.
fn address(url: &Uri) -> Result<String> {
    match (url.scheme_str(), url.host(), url.port_u16()) {
        (Some("http"), Some(host), port) if url.path() == "/" => {
            Ok(format!("{host}:{}", port.unwrap_or(80)))
        }
        _ => bail!("--url: \"{url}\" is none of a host; write for example http://127.0.0.1:9101"),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<String>,
) -> Result<(http::StatusCode, Vec<u8>)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes().to_vec()))
    };
    // The connection ends by itself when its sender is gone; what goes wrong with it the answer says, too.
    let (answer, _) = tokio::join!(answer, connection);
    answer.context("the host broke off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_hosts() {
        for (url, found) in [
            ("http://127.0.0.1:9101", Some("127.0.0.1:9101")),
            ("http://127.0.0.1:9101/", Some("127.0.0.1:9101")),
            ("http://[::1]:9101", Some("[::1]:9101")),
            ("http://localhost", Some("localhost:80")),
            ("https://127.0.0.1:9101", None),
            ("http://127.0.0.1:9101/v1", None),
            ("127.0.0.1:9101", None),
            ("/policies", None),
        ] {
            assert_eq!(address(&url.parse().unwrap()).ok().as_deref(), found, "{url}");
        }
    }
}
