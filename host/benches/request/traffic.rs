//! A client and an engine that cost little, and that wait for each other.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Size of the prompt in bytes, as that of the load generator.
const PROMPT_BYTES: usize = 800;

const ANSWER: &str = concat!(
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"fake\",",
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":",
    "\"Hello there, how can I help you today?\"},\"finish_reason\":\"stop\"}],",
    "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}",
);
const EVENT: &str = concat!(
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,",
    "\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},",
    "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
);
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    transfer-encoding: chunked\r\n\r\n";

/// Reads a message with a body of a known length. The buffer has nothing else afterwards.
async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    let mut total = None;
    while total.is_none_or(|total| buffer.len() < total) {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if total.is_none() {
            total = head_length(buffer).map(|head| head + content_length(&buffer[..head]));
        }
    }
    Ok(())
}

fn head_length(message: &[u8]) -> Option<usize> {
    message.windows(4).position(|part| part == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the length of the body; 0 if the head has none.
fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"\r\ncontent-length: ";
    let at = head.windows(NAME.len()).position(|part| part.eq_ignore_ascii_case(NAME));
    let digits = at.map_or(&[][..], |at| &head[at + NAME.len()..]);
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |value, digit| value * 10 + usize::from(digit - b'0'))
}

/// An engine that answers with constants. A chunk of a stream is sent when the client asks for it.
pub(crate) struct Engine {
    listener: TcpListener,
    pace: Arc<Semaphore>,
}

impl Engine {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, pace: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Returns what has a permit for each chunk that is to be sent.
    pub(crate) fn pace(&self) -> Arc<Semaphore> {
        Arc::clone(&self.pace)
    }

    /// Serves forever.
    pub(crate) async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            connections.spawn(answer(stream, self.pace()));
        }
    }
}

/// Answers the requests of a connection.
async fn answer(mut stream: TcpStream, pace: Arc<Semaphore>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    let whole = format!("{head}{}\r\n\r\n{ANSWER}", ANSWER.len());
    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    loop {
        read_message(&mut stream, &mut buffer).await?;
        if !buffer.ends_with(b"\"stream\":true}") {
            stream.write_all(whole.as_bytes()).await?;
            continue;
        }
        stream.write_all(STREAM_HEAD.as_bytes()).await?;
        while let Ok(permit) = pace.acquire().await {
            permit.forget();
            stream.write_all(chunk.as_bytes()).await?;
        }
    }
}

/// A client with one connection.
pub(crate) struct Client {
    stream: TcpStream,
    request: String,
    buffer: Vec<u8>,
    /// The head of the first response.
    head: String,
    /// Permits for the chunks of the engine; `None` if the client sends requests.
    pace: Option<Arc<Semaphore>>,
}

impl Client {
    /// Connects to a port, and reads the first response, or the first chunk of a stream.
    pub(crate) async fn connect(port: u16, is_stream: bool, pace: Arc<Semaphore>) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let prompt = "word ".repeat(PROMPT_BYTES / 5);
        let body = format!(
            "{{\"model\":\"a\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}],\
             \"stream\":{is_stream}}}"
        );
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (buffer, pace) = (Vec::with_capacity(64 << 10), is_stream.then_some(pace));
        let mut client = Self { stream, request, buffer, head: String::new(), pace };
        client.begin().await;
        client
    }

    async fn begin(&mut self) {
        match &self.pace {
            None => self.exchange().await,
            Some(pace) => {
                // The host only begins a response when it has an event.
                pace.add_permits(1);
                self.stream.write_all(self.request.as_bytes()).await.unwrap();
                self.read_chunk().await;
            }
        }
        let head = head_length(&self.buffer).unwrap();
        self.head = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        assert!(self.head.starts_with("HTTP/1.1 200 "), "{}", self.head);
    }

    /// Returns the head of the first response.
    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// Sends this number of requests, one at a time, or reads this number of chunks.
    pub(crate) async fn work(&mut self, number: u32) {
        for _ in 0..number {
            match &self.pace {
                None => self.exchange().await,
                Some(pace) => {
                    pace.add_permits(1);
                    self.buffer.clear();
                    self.read_chunk().await;
                }
            }
        }
    }

    async fn exchange(&mut self) {
        self.stream.write_all(self.request.as_bytes()).await.unwrap();
        read_message(&mut self.stream, &mut self.buffer).await.unwrap();
        assert!(self.buffer.starts_with(b"HTTP/1.1 200 "));
    }

    /// Reads up to the end of a chunk that ends with an event.
    async fn read_chunk(&mut self) {
        while !self.buffer.ends_with(b"\n\n\r\n") {
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0);
        }
    }
}
