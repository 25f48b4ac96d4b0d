//! A plain HTTP/1.1 client without any conversion: tests see what is on the wire.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::WAIT_TIMEOUT;

/// A complete response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON.
    ///
    /// # Panics
    /// If the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Returns the `code` of an error response; null if the body has none.
    ///
    /// # Panics
    /// If the body is not JSON.
    pub fn error_code(&self) -> Value {
        self.json()["error"]["code"].clone()
    }
}

/// A response whose body is read chunk by chunk.
#[derive(Debug)]
pub struct ResponseStream {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// The part of the body that was received so far.
    pub body: Vec<u8>,
    /// True once the body has ended as HTTP requires.
    pub complete: bool,
}

/// Sends a request and reads the head of the response.
///
/// # Panics
/// If no response arrives.
pub fn open(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> ResponseStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a listener on the port");
    // Longer than the longest queue wait that any test configures.
    stream.set_read_timeout(Some(WAIT_TIMEOUT * 5)).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         connection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server may respond and close before it has read a body that it rejects.
    stream.write_all(body).ok();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a response");
    let status =
        line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ").or_else(|| line.trim_end().split_once(':')) {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    ResponseStream { status, headers, reader, chunked, body: Vec::new(), complete: false }
}

impl ResponseStream {
    /// Reads the next chunk of the body; returns false at the end of the body.
    pub fn read_chunk(&mut self) -> bool {
        if !self.chunked {
            let read = self.reader.read_to_end(&mut self.body);
            self.complete = read.is_ok();
            return false;
        }
        let mut size = String::new();
        if self.reader.read_line(&mut size).unwrap_or(0) == 0 {
            return false;
        }
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { return false };
        let mut chunk = vec![0; size + 2];
        if self.reader.read_exact(&mut chunk).is_err() {
            return false;
        }
        self.body.extend_from_slice(&chunk[..size]);
        self.complete = size == 0;
        size > 0
    }

    /// Reads until the body contains this text; returns false if the body ends without it.
    pub fn read_until(&mut self, text: &str) -> bool {
        while !String::from_utf8_lossy(&self.body).contains(text) {
            if !self.read_chunk() {
                return String::from_utf8_lossy(&self.body).contains(text);
            }
        }
        true
    }

    /// Reads to the end of the body; also returns whether the body was complete.
    pub fn finish(mut self) -> (Response, bool) {
        while self.read_chunk() {}
        (Response { status: self.status, headers: self.headers, body: self.body }, self.complete)
    }
}

/// Sends a request and reads the whole response.
pub fn send(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    open(port, method, path, headers, body).finish().0
}

pub fn get(port: u16, path: &str) -> Response {
    send(port, "GET", path, &[], b"")
}

/// Sends a request over a Unix socket, and reads the whole response, whose length is known.
///
/// # Errors
/// If no response arrives.
pub fn get_unix(socket: &Path, path: &str) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let end = response.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(invalid)?;
    let head = String::from_utf8_lossy(&response[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Ok(Response {
        status: status.ok_or_else(invalid)?,
        headers: lines.filter_map(header).collect(),
        body: response.split_off(end + 4),
    })
}

/// Sends a JSON body and reads the whole response.
pub fn post(port: u16, path: &str, body: &Value) -> Response {
    send(port, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Sends a JSON body and returns the response before its body has ended.
pub fn stream(port: u16, path: &str, body: &Value) -> ResponseStream {
    open(port, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Returns the body of a chat request with one message, and with the fields of `more`.
pub fn chat(model: &str, more: Value) -> Value {
    let mut body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// Sends a JSON body to a server that may be gone; returns the status line if there is a response.
pub fn try_post(port: u16, path: &str, body: &Value) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).ok()?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok().filter(|count| *count > 0)?;
    Some(line)
}
