//! Clients that read many streams on one thread.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Received, StreamShape};

/// The time over which the first streams are begun.
const RAMP: Duration = Duration::from_secs(2);
/// How much longer than its frames a stream may take.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Reads this number of streams at a time from a port, for at least `time`: a client whose stream
/// has ended begins the next one.
///
/// # Panics
/// If the runtime cannot be built.
pub fn measure(
    port: u16,
    model: &str,
    shape: StreamShape,
    streams: u32,
    time: Duration,
) -> Received {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = format!(
        "{{\"model\":{model:?},\"stream\":true,\
         \"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}"
    );
    let head = crate::attack::request_head("/v1/chat/completions", body.len(), "");
    let request: Arc<str> = (head + &body).into();
    runtime.block_on(async {
        let begin = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..streams {
            let (request, first) = (Arc::clone(&request), begin + RAMP * client / streams);
            clients.spawn(async move {
                sleep_until(first).await;
                let mut received = Received::default();
                loop {
                    read_stream(port, &request, shape, &mut received).await;
                    if Instant::now() >= begin + time {
                        return received;
                    }
                }
            });
        }
        let mut all = Received::default();
        while let Some(received) = clients.join_next().await {
            all.merge(received.unwrap());
        }
        all
    })
}

/// Reads one stream, and counts what is missing of it.
async fn read_stream(port: u16, request: &str, shape: StreamShape, received: &mut Received) {
    let mut next = 0;
    let limit = shape.interval * shape.frames + MAX_DELAY;
    let stream = read_frames(port, request, shape, &mut next, received);
    let result = timeout(limit, stream).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    received.lost += u64::from(shape.frames.saturating_sub(next));
    match result {
        Ok(()) => received.complete += 1,
        Err(error) => received.broken.push(error.to_string()),
    }
}

async fn read_frames(
    port: u16,
    request: &str,
    shape: StreamShape,
    next: &mut u32,
    received: &mut Received,
) -> Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(Error::other(line.trim_end().to_owned()));
    }
    while line.trim_end() != "" {
        line.clear();
        stream.read_line(&mut line).await?;
    }
    let (mut body, mut is_done) = (Vec::new(), false);
    while read_chunk(&mut stream, &mut line, &mut body).await? {
        let mut begin = 0;
        while let Some(length) = body[begin..].windows(2).position(|end| end == b"\n\n") {
            let event = String::from_utf8_lossy(&body[begin..begin + length]);
            begin += length + 2;
            match frame(&event) {
                Some((number, sent)) => {
                    count(number, next, received);
                    let now = shape.epoch.elapsed().as_micros();
                    let delay = now.saturating_sub(u128::from(sent));
                    received.delays.push(u32::try_from(delay).unwrap_or(u32::MAX));
                }
                None if event.contains("\"error\"") => {
                    return Err(Error::other(event.into_owned()));
                }
                None => is_done |= event == "data: [DONE]",
            }
        }
        body.drain(..begin);
    }
    if is_done { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Appends the next chunk to the body; returns false at the end of the body.
async fn read_chunk(
    stream: &mut BufReader<TcpStream>,
    line: &mut String,
    body: &mut Vec<u8>,
) -> Result<bool> {
    line.clear();
    stream.read_line(line).await?;
    let size = usize::from_str_radix(line.trim_end(), 16)
        .map_err(|_| Error::other(format!("chunk size {line:?}")))?;
    let begin = body.len();
    body.resize(begin + size + 2, 0);
    stream.read_exact(&mut body[begin..]).await?;
    body.truncate(begin + size);
    Ok(size > 0)
}

/// Returns the number of a frame, and when it was sent; `None` if the event is not a frame.
fn frame(event: &str) -> Option<(u32, u64)> {
    let (_, content) = event.split_once("\"content\":\"")?;
    let (number, sent) = content.split_once('"')?.0.split_once(' ')?;
    Some((number.parse().ok()?, sent.parse().ok()?))
}

/// Counts a frame. `next` is the number of the frame that is due.
fn count(number: u32, next: &mut u32, received: &mut Received) {
    if number < *next {
        received.misplaced += 1;
        return;
    }
    received.lost += u64::from(number - *next);
    received.frames += 1;
    *next = number + 1;
}
