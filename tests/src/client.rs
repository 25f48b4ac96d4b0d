//! A plain HTTP client: what it sends and gets is what is on the wire.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::PATIENCE;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// If the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }
}

/// An answer that is still coming.
#[derive(Debug)]
pub struct Stream {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// What has come so far.
    pub body: Vec<u8>,
    /// The body ended as it should.
    pub complete: bool,
}

/// Send a request, and read the answer's head.
///
/// # Panics
/// If there is no answer.
pub fn open(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Stream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is listened on");
    // Longer than any wait in a queue that a test has configured: machines are busy.
    stream.set_read_timeout(Some(PATIENCE * 5)).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server may answer, and close, before it has read a body that it does not want.
    let _refused = stream.write_all(body);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("an answer");
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
    Stream { status, headers, reader, chunked, body: Vec::new(), complete: false }
}

impl Stream {
    /// Read the next piece of the body; false at its end.
    pub fn more(&mut self) -> bool {
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

    /// Read until the body has this text; false if it ends without.
    pub fn until(&mut self, text: &str) -> bool {
        while !String::from_utf8_lossy(&self.body).contains(text) {
            if !self.more() {
                return String::from_utf8_lossy(&self.body).contains(text);
            }
        }
        true
    }

    /// Read to the end.
    pub fn finish(mut self) -> (Reply, bool) {
        while self.more() {}
        (Reply { status: self.status, headers: self.headers, body: self.body }, self.complete)
    }
}

/// Send a request, and read the whole answer.
pub fn send(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    open(port, method, path, headers, body).finish().0
}

pub fn get(port: u16, path: &str) -> Reply {
    send(port, "GET", path, &[], b"")
}

/// Post JSON.
pub fn post(port: u16, path: &str, body: &Value) -> Reply {
    send(port, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Post JSON, and read the answer as it comes.
pub fn stream(port: u16, path: &str, body: &Value) -> Stream {
    open(port, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// A chat request with one message.
pub fn chat(model: &str, more: Value) -> Value {
    let mut body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// Post JSON to somebody who may not be there; the answer's status line, if any.
pub fn try_post(port: u16, path: &str, body: &Value) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok().filter(|count| *count > 0)?;
    Some(line)
}
