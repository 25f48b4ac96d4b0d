//! A client for the admin API of a running host, over its socket or its port.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pointsman_config::Admin;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::policy::{HostAddress, HostTarget};
use crate::output::print_error;

/// Long, because the host may compile a large policy before it responds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);

/// The reason why a request to a host failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The host rejected the request.
    #[error("{message} [{code}]")]
    Rejected { code: String, message: String },
    #[error("unexpected response ({0}); is the host a different version?")]
    UnexpectedResponse(StatusCode),
    #[error("the host did not respond within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the host closed the connection: {0}")]
    ConnectionClosed(#[from] hyper::Error),
    #[error("no host is running: cannot connect to {}: {source}", path.display())]
    NotRunning { path: PathBuf, source: io::Error },
    #[error(
        "cannot connect to {}: {source}; run this command as the host's user or as root",
        path.display()
    )]
    PermissionDenied { path: PathBuf, source: io::Error },
    #[error("cannot connect to {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot connect to {address}: {source}; is `admin.listen` set on the host?")]
    Port { address: String, source: io::Error },
    #[error("invalid URL \"{0}\": expected for example http://127.0.0.1:9101")]
    InvalidUrl(Uri),
    #[error("failed to read the token from the environment variable `{name}`: {source}")]
    TokenEnv { name: String, source: std::env::VarError },
    #[error("invalid token: {0}")]
    InvalidToken(#[from] InvalidHeaderValue),
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error(
        "{}: the admin API is disabled; set `admin.socket` or `admin.listen`",
        .0.display()
    )]
    AdminDisabled(PathBuf),
}

/// A client for one host.
#[derive(Debug)]
pub(crate) struct HostClient {
    target: Target,
    timeout: Duration,
    /// Further headers of each request.
    headers: HeaderMap,
}

/// Where a host is reached.
#[derive(Debug)]
enum Target {
    Socket(PathBuf),
    Port {
        /// Host name or IP address, and port.
        address: String,
        token: String,
    },
}

impl ClientError {
    /// Returns true if no host listens where one was looked for.
    pub(crate) fn is_without_host(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::AdminDisabled(_) => true,
            Self::Port { source, .. } => source.kind() == io::ErrorKind::ConnectionRefused,
            Self::Rejected { .. }
            | Self::UnexpectedResponse(_)
            | Self::Timeout(_)
            | Self::ConnectionClosed(_)
            | Self::PermissionDenied { .. }
            | Self::Socket { .. }
            | Self::InvalidUrl(_)
            | Self::TokenEnv { .. }
            | Self::InvalidToken(_)
            | Self::Request(_) => false,
        }
    }
}

impl HostClient {
    /// Creates a client. Does not connect yet.
    ///
    /// # Errors
    /// If the configuration, the URL or the token cannot be used.
    pub(crate) fn new(HostTarget { address, token_env }: &HostTarget) -> Result<Self> {
        let target = Target::new(address, token_env.as_deref())?;
        Ok(Self { target, timeout: RESPONSE_TIMEOUT, headers: HeaderMap::new() })
    }

    /// Creates a client for the host that listens on a socket.
    pub(crate) fn on_socket(path: &Path) -> Self {
        let (target, headers) = (Target::Socket(path.to_owned()), HeaderMap::new());
        Self { target, timeout: RESPONSE_TIMEOUT, headers }
    }

    /// Sets the maximum time for a response.
    #[must_use]
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets further headers of each request.
    #[must_use]
    pub(crate) fn with_headers(self, headers: HeaderMap) -> Self {
        Self { headers, ..self }
    }

    /// Sends a request and returns the JSON body of the response.
    ///
    /// # Errors
    /// If the host is not reachable, does not respond in time, or rejects the request.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Value, ClientError> {
        let (status, body) = self.exchange(method, path, body).await?;
        read_response(status, &body)
    }

    /// Sends a request and returns the body of the response as text.
    ///
    /// # Errors
    /// As those of [`HostClient::call`].
    pub(crate) async fn call_text(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<String, ClientError> {
        let (status, body) = self.exchange(method, path, body).await?;
        let unexpected = || ClientError::UnexpectedResponse(status);
        if status.is_success() {
            return String::from_utf8(body).map_err(|_| unexpected());
        }
        Err(rejected(status, serde_json::from_slice(&body).map_err(|_| unexpected())?))
    }

    /// Sends a request that may take any time, and returns the JSON body of the response.
    ///
    /// # Errors
    /// As those of [`HostClient::call`].
    pub(crate) async fn call_without_timeout(
        &self,
        method: Method,
        path: &str,
    ) -> Result<Value, ClientError> {
        let (status, body) = self.target.send(method, path, String::new(), &self.headers).await?;
        read_response(status, &body)
    }

    /// Requests a text, and hands its lines over as they arrive, until `on_text` returns false.
    ///
    /// # Errors
    /// As those of [`HostClient::call`], and those of `on_text`.
    pub(crate) async fn stream(
        &self,
        path: &str,
        on_text: impl Fn(&str) -> Result<bool>,
    ) -> Result<()> {
        let mut lines = Lines::default();
        let mut on_data = |data: &[u8]| match lines.complete(data) {
            text if text.is_empty() => Ok(true),
            text => on_text(&text),
        };
        let request = self.target.request(Method::GET, path, String::new(), &self.headers)?;
        match self.target.connect().await? {
            Connection::Socket(stream) => read_stream(stream, request, &mut on_data).await,
            Connection::Port(stream) => read_stream(stream, request, &mut on_data).await,
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let response = self.target.send(method, path, body, &self.headers);
        let response = tokio::time::timeout(self.timeout, response);
        response.await.map_err(|_| ClientError::Timeout(self.timeout))?
    }
}

impl Target {
    fn new(address: &HostAddress, token_env: Option<&str>) -> Result<Self> {
        if let Some(path) = &address.socket {
            return Ok(Self::Socket(path.clone()));
        }
        if let (Some(url), Some(name)) = (&address.url, token_env) {
            let token = std::env::var(name)
                .map_err(|source| ClientError::TokenEnv { name: name.to_owned(), source })?;
            let address = authority(url).ok_or_else(|| ClientError::InvalidUrl(url.clone()))?;
            return Ok(Self::Port { address, token: token.trim().to_owned() });
        }
        // clap ensures that one of the three is given.
        let file = address.config.as_deref().unwrap_or(Path::new(""));
        let admin = Admin::find(file).inspect_err(|_| {
            print_error("hint: a host with a broken configuration is reached with --socket".into());
        })?;
        match (admin.client_socket(), admin.port.as_ref()) {
            // The socket needs no token, so it is preferred.
            (Some(path), _) => Ok(Self::Socket(path.to_owned())),
            (None, Some((address, token))) => {
                Ok(Self::Port { address: address.to_string(), token: token.reveal().to_owned() })
            }
            (None, None) => Err(ClientError::AdminDisabled(file.to_owned()).into()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        // Built first, so that an invalid token is reported even without a host.
        let request = self.request(method, path, body, headers)?;
        match self.connect().await? {
            Connection::Socket(stream) => exchange(stream, request).await,
            Connection::Port(stream) => exchange(stream, request).await,
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
        headers: &HeaderMap,
    ) -> Result<Request<String>, ClientError> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let operator = operator().and_then(|name| HeaderValue::try_from(name).ok());
        let request = operator
            .into_iter()
            .fold(request, |request, name| request.header("x-pointsman-operator", name));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        let request = match self {
            Self::Socket(_) => request,
            Self::Port { token, .. } => {
                let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
                bearer.set_sensitive(true);
                request.header(header::AUTHORIZATION, bearer)
            }
        };
        Ok(request.body(body)?)
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Connection::Socket(stream)),
                Err(source) => Err(socket_error(path.clone(), source)),
            },
            Self::Port { address, .. } => match TcpStream::connect(address).await {
                Ok(stream) => Ok(Connection::Port(stream)),
                Err(source) => Err(ClientError::Port { address: address.clone(), source }),
            },
        }
    }
}

/// A connection to a host.
enum Connection {
    Socket(UnixStream),
    Port(TcpStream),
}

/// Returns the name of the user, for the host's log.
fn operator() -> Option<String> {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter();
    names.filter_map(|name| std::env::var(name).ok()).find(|name| !name.is_empty())
}

/// Cuts data into complete lines.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Returns the lines that end in the data.
    fn complete(&mut self, data: &[u8]) -> String {
        self.rest.extend_from_slice(data);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&lines).into_owned()
    }
}

/// Sends a request, and hands over the data of its response, until `on_data` returns false.
async fn read_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<String>,
    on_data: &mut dyn FnMut(&[u8]) -> Result<bool>,
) -> Result<()> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::from)?;
    let read = async move {
        let response = sender.send_request(request).await.map_err(ClientError::from)?;
        let (status, mut body) = (response.status(), response.into_body());
        if !status.is_success() {
            let body = body.collect().await.map_err(ClientError::from)?.to_bytes();
            let value = serde_json::from_slice(&body);
            let value = value.map_err(|_| ClientError::UnexpectedResponse(status))?;
            return Err(rejected(status, value).into());
        }
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(ClientError::from)?.into_data()
                && !on_data(&data)?
            {
                break;
            }
        }
        Ok(())
    };
    // As in `exchange`.
    let (read, _) = tokio::join!(read, connection);
    read
}

/// Returns the JSON body of a response.
///
/// # Errors
/// If the host has rejected the request, or its response has another form.
pub(crate) fn read_response(status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
    let value = serde_json::from_slice(body);
    let value: Value = value.map_err(|_| ClientError::UnexpectedResponse(status))?;
    if status.is_success() { Ok(value) } else { Err(rejected(status, value)) }
}

/// Returns the error in the response of a host.
fn rejected(status: StatusCode, mut value: Value) -> ClientError {
    match (value["error"]["code"].take(), value["error"]["message"].take()) {
        (Value::String(code), Value::String(message)) => ClientError::Rejected { code, message },
        _ => ClientError::UnexpectedResponse(status),
    }
}

fn socket_error(path: PathBuf, source: io::Error) -> ClientError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { path, source }
        }
        io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path, source },
        _ => ClientError::Socket { path, source },
    }
}

/// Returns host and port of a URL; `None` unless the URL is one of a host, without a path.
fn authority(url: &Uri) -> Option<String> {
    match (url.scheme_str(), url.host(), url.port_u16()) {
        (Some("http"), Some(host), port) if url.path() == "/" => {
            Some(format!("{host}:{}", port.unwrap_or(80)))
        }
        _ => None,
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<String>,
) -> Result<(StatusCode, Vec<u8>), ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, ClientError>((status, response.into_body().collect().await?.to_bytes().to_vec()))
    };
    // The connection ends when its sender is dropped. Its errors are also those of the response.
    let (response, _) = tokio::join!(exchange, connection);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_complete() {
        let mut lines = Lines::default();
        let read = ["a\nb", "c", "\n\u{e4}\n", "d"].map(|data| lines.complete(data.as_bytes()));
        assert_eq!(read, ["a\n", "", "bc\n\u{e4}\n", ""]);
    }

    #[test]
    fn urls_without_path_are_accepted() {
        for (url, expected) in [
            ("http://127.0.0.1:9101", Some("127.0.0.1:9101")),
            ("http://127.0.0.1:9101/", Some("127.0.0.1:9101")),
            ("http://[::1]:9101", Some("[::1]:9101")),
            ("http://localhost", Some("localhost:80")),
            ("https://127.0.0.1:9101", None),
            ("http://127.0.0.1:9101/v1", None),
            ("127.0.0.1:9101", None),
            ("/policies", None),
        ] {
            assert_eq!(authority(&url.parse().unwrap()).as_deref(), expected, "{url}");
        }
    }
}
