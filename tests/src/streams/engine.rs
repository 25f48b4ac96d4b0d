//! An engine whose streams have a fixed rate.

use std::io;
use std::net::TcpListener;
use std::thread;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::StreamShape;
use crate::attack::STREAM_HEAD;

/// The end of a stream, as the last chunks of a body.
const STREAM_END: &str = concat!(
    "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",",
    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
);
const MODELS: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 37\r\n\
    connection: close\r\n\r\n{\"object\":\"list\",\"data\":[{\"id\":\"m\"}]}";

/// An engine that runs until the test ends.
#[derive(Debug, Clone, Copy)]
pub struct FrameEngine {
    pub port: u16,
}

impl FrameEngine {
    /// Starts an engine on a free port.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(shape: StreamShape) -> Self {
        Self::start_on(0, shape)
    }

    /// Starts an engine on a port.
    ///
    /// # Panics
    /// If the port is not free.
    pub fn start_on(port: u16, shape: StreamShape) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(accept(listener, shape)).unwrap();
        });
        Self { port }
    }
}

async fn accept(listener: TcpListener, shape: StreamShape) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let (stream, _) = connection?;
                stream.set_nodelay(true)?;
                connections.spawn(serve(stream, shape));
            }
            // A client that has gone away is not a failure of the engine: the client reports it.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request.
async fn serve(stream: TcpStream, shape: StreamShape) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    stream.read_line(&mut line).await?;
    let is_post = line.starts_with("POST ");
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if is_post {
        return send_frames(stream.into_inner(), shape).await;
    }
    stream.write_all(MODELS.as_bytes()).await
}

/// Sends a stream. Frames are due at fixed times, so a late frame delays no other one.
async fn send_frames(mut stream: TcpStream, shape: StreamShape) -> io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    let begin = Instant::now();
    for frame in 0..shape.frames {
        sleep_until(begin + shape.interval * frame).await;
        let sent = shape.epoch.elapsed().as_micros();
        let event = format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\
             \"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{frame} \
             {sent}\"}},\"finish_reason\":null}}]}}\n\n"
        );
        stream.write_all(&crate::attack::chunk(event.as_bytes())).await?;
    }
    stream.write_all(&crate::attack::chunk(STREAM_END.as_bytes())).await?;
    stream.write_all(b"0\r\n\r\n").await
}
