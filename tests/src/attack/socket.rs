//! Clients that send and read bytes, and stop in the middle.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A connection on which a test sends bytes.
#[derive(Debug)]
pub struct RawClient {
    stream: TcpStream,
}

/// What came back until the connection was closed.
#[derive(Debug, Clone)]
pub struct RawResponse {
    pub bytes: Vec<u8>,
    /// True if the server has closed the connection in time.
    pub closed: bool,
}

impl RawResponse {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Returns the status of the first response; `None` without one.
    pub fn status(&self) -> Option<u16> {
        self.text().strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// Returns the code of the error in the body of the first response; null without one.
    pub fn error_code(&self) -> Value {
        let text = self.text();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        body["error"]["code"].clone()
    }
}

/// Returns the head of a `POST` with a JSON body of this length.
pub fn request_head(path: &str, length: usize, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{more}\r\n"
    )
}

impl RawClient {
    /// Connects to a port of this machine.
    ///
    /// # Panics
    /// If nothing listens.
    pub fn connect(port: u16) -> Self {
        Self { stream: TcpStream::connect(("127.0.0.1", port)).unwrap() }
    }

    /// Connects, unless that takes longer than `timeout`.
    pub fn try_connect(port: u16, timeout: Duration) -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Some(Self { stream: TcpStream::connect_timeout(&address, timeout).ok()? })
    }

    /// Connects with a receive buffer of a few kilobytes, for a client that does not read.
    ///
    /// # Panics
    /// If nothing listens.
    pub fn with_small_window(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
            stream.into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        Self { stream }
    }

    /// Sends bytes; returns false if the server has closed the connection.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads until the server closes the connection, for at most `timeout`.
    ///
    /// # Panics
    /// If `timeout` is zero.
    pub fn read_to_end(&mut self, timeout: Duration) -> RawResponse {
        self.read_until(timeout, |_| false)
    }

    /// Reads one response with a `content-length`, for at most `timeout`.
    ///
    /// # Panics
    /// If `timeout` is zero.
    pub fn read_response(&mut self, timeout: Duration) -> RawResponse {
        self.read_until(timeout, is_complete)
    }

    fn read_until(&mut self, timeout: Duration, done: impl Fn(&[u8]) -> bool) -> RawResponse {
        let end = Instant::now() + timeout;
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        while !done(&bytes) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut buffer) {
                Ok(0) => return RawResponse { bytes, closed: true },
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return RawResponse { bytes, closed: true };
                }
                // The time is over.
                Err(_) => break,
            }
        }
        RawResponse { bytes, closed: false }
    }
}

fn is_complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// Asks an engine that repeats the request for a response that is longer than all buffers, and
/// reads nothing of it.
///
/// # Panics
/// If nothing listens.
pub fn client_that_does_not_read(port: u16, model: &str) -> RawClient {
    let text = "x".repeat(24 << 20);
    let messages = serde_json::json!([{ "role": "user", "content": text }]);
    let body = serde_json::json!({ "model": model, "messages": messages }).to_string();
    let mut client = RawClient::with_small_window(port);
    client.send(request_head("/v1/chat/completions", body.len(), ""));
    client.send(body);
    client
}

/// Opens connections that send nothing. Fewer are returned if the server refuses them.
pub fn idle_connections(port: u16, count: usize) -> Vec<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok();
    (0..count).map_while(connect).collect()
}
