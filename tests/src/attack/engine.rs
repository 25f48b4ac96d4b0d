//! An engine over raw TCP: what it sends is up to the test, byte by byte.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

/// A request as the engine received it.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub method: String,
    pub path: String,
    /// Headers with lower-case names; of repeated ones the last.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// Returns a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Parses the body.
    ///
    /// # Panics
    /// If the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the request with at most a megabyte of its body, so that floods fit into memory.
    fn recorded(&self) -> Self {
        let body = self.body[..self.body.len().min(MAX_RECORDED_BODY)].to_vec();
        let Self { method, path, headers, body: _ } = self;
        Self { method: method.clone(), path: path.clone(), headers: headers.clone(), body }
    }
}

/// Bytes of a body that are kept, and the number of requests.
const MAX_RECORDED_BODY: usize = 1 << 20;
const MAX_RECORDED_REQUESTS: usize = 1024;

/// What follows a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next request of the connection is read.
    KeepAlive,
    /// The connection is closed.
    Close,
}

/// Answers a request properly, as a stream if it asks for one.
///
/// # Errors
/// If the host has closed the connection.
pub fn answer(request: &ReceivedRequest, stream: &mut TcpStream) -> std::io::Result<Next> {
    if request.text().contains("\"stream\":true") {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        stream.write_all(&chunk(GOOD_STREAM.as_bytes()))?;
        stream.write_all(b"0\r\n\r\n")?;
    } else {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
        let length = GOOD_BODY.len();
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{GOOD_BODY}")?;
    }
    Ok(Next::Close)
}

/// Writes the response to a `POST`. An error ends the connection, as when the host has closed it.
type Script = dyn Fn(&ReceivedRequest, &mut TcpStream) -> std::io::Result<Next> + Send + Sync;

/// An engine that answers readiness probes properly and everything else as its script says.
///
/// It runs in the process of the test until the test ends.
#[derive(Debug, Clone)]
pub struct HostileEngine {
    pub port: u16,
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl HostileEngine {
    /// Starts an engine on a free port.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start<F>(script: F) -> Self
    where
        F: Fn(&ReceivedRequest, &mut TcpStream) -> std::io::Result<Next> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::default();
        let engine = Self { port, received };
        let (accepting, script): (_, Arc<Script>) = (engine.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (engine, script) = (accepting.clone(), Arc::clone(&script));
                thread::spawn(move || engine.serve(stream, &*script));
            }
        });
        engine
    }

    /// Starts an engine that always sends these bytes and closes the connection.
    pub fn sending(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_, stream| {
            stream.write_all(&bytes)?;
            Ok(Next::Close)
        })
    }

    /// Starts an engine that sends a stream of these bytes as one chunk, and ends it properly.
    pub fn streaming(body: impl AsRef<[u8]>) -> Self {
        let mut bytes = STREAM_HEAD.as_bytes().to_vec();
        bytes.extend(chunk(body.as_ref()));
        bytes.extend(b"0\r\n\r\n");
        Self::sending(bytes)
    }

    /// Starts an engine that sends a JSON response with this status line and these header lines.
    pub fn answering(status: &str, headers: &str, body: &str) -> Self {
        Self::sending(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: \
             {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Starts an engine that answers every request properly.
    pub fn honest() -> Self {
        Self::start(answer)
    }

    /// Returns the first thousand `POST` requests, in the order in which they were read.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn serve(&self, stream: TcpStream, script: &Script) {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            let next = if request.method == "POST" {
                let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
                if received.len() < MAX_RECORDED_REQUESTS {
                    received.push(request.recorded());
                }
                drop(received);
                script(&request, &mut writer)
            } else {
                writer.write_all(PROBE_RESPONSE.as_bytes()).map(|()| Next::KeepAlive)
            };
            if !matches!(next, Ok(Next::KeepAlive)) {
                return;
            }
        }
    }
}

const PROBE_RESPONSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
    content-length: 49\r\n\r\n{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"x\":\"yyyyy\"}]}";

/// The head of a stream with chunks.
pub const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    transfer-encoding: chunked\r\nconnection: close\r\n\r\n";

/// The events of a complete stream.
pub const GOOD_STREAM: &str = concat!(
    "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",",
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"good\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",",
    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
);

/// A complete plain response.
pub const GOOD_BODY: &str = concat!(
    "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{",
    "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"good\"},",
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}",
);

/// Returns one chunk of a chunked body.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// Returns the configuration of a lane with an engine that the test has started.
pub fn external_lane(name: &str, models: &[&str], engine: &HostileEngine, more: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = {models:?}\nslots = 16\n{more}\n[lanes.engine]\n\
         driver = \"external\"\nurl = \"http://127.0.0.1:{}/v1\"\nprobe-interval = \"1s\"\n",
        engine.port
    )
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<ReceivedRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(ReceivedRequest { method, path, headers, body })
}
