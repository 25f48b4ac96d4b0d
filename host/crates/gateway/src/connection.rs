//! One connection of a client: how long it may be idle, and how long it may keep the host waiting.
//!
//! hyper has one time limit for heads, which includes the time between two requests, and none for
//! writing. [`ClientStream`] is the connection with these limits, as hyper or TLS sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::activity::Activity;
use crate::pace::{MIN_WRITE_RATE, Pace};

/// Time for the rest of a request's head after its first byte, and for what comes before the first
/// head: a TLS handshake, or the header of the PROXY protocol.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which an idle connection with HTTP/1 gives its buffers back.
pub(crate) const REST_AFTER: Duration = Duration::from_secs(1);
/// What a client sends first if it speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Time for a client to stop sending after the host has closed its side, in total and without any
/// data. If the host closed both sides at once, the system would reset the connection, and the
/// client could lose a response that it has not read yet. nginx has the same.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);

/// Limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Maximum time without a request.
    pub(crate) idle: Duration,
    /// Maximum time for which a client takes no bytes of a response.
    pub(crate) write: Duration,
}

/// A connection with time limits: for the head of a request, for the time between two requests,
/// and for a client that does not read its response.
#[derive(Debug)]
pub(crate) struct ClientStream<S> {
    stream: S,
    activity: Arc<Activity>,
    timeouts: Timeouts,
    /// Bytes that were read to detect the protocol.
    detected: Vec<u8>,
    /// Ends the time without a complete head. Not removed when a request begins, but set again
    /// after it: most requests end before it fires, and if it does, nothing happens.
    head: Pin<Box<Sleep>>,
    waits_for_head: bool,
    has_begun_head: bool,
    /// The connection is idle for [`REST_AFTER`], which was noted.
    rests: bool,
    /// Ends the time for which the client takes nothing.
    blocked: Pin<Box<Sleep>>,
    pace: Pace,
    /// Ends the time to wait for the client's end of the connection.
    linger: Option<Linger>,
}

/// The wait for the client's end of a connection.
#[derive(Debug)]
struct Linger {
    end: Instant,
    /// Ends the time without data, at `end` at the latest.
    timer: Pin<Box<Sleep>>,
}

impl Linger {
    fn begin() -> Self {
        let now = Instant::now();
        Self { end: now + LINGER, timer: Box::pin(sleep_until(now + LINGER_SILENCE)) }
    }

    /// Notes that the client has sent data.
    fn progress(&mut self) {
        let deadline = (Instant::now() + LINGER_SILENCE).min(self.end);
        self.timer.as_mut().reset(deadline);
    }
}

impl<S> ClientStream<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>, timeouts: Timeouts) -> Self {
        Self {
            stream,
            activity,
            timeouts,
            detected: Vec::new(),
            head: Box::pin(sleep_until(Instant::now())),
            waits_for_head: false,
            has_begun_head: false,
            rests: false,
            blocked: Box::pin(sleep_until(Instant::now())),
            pace: Pace::new(timeouts.write, MIN_WRITE_RATE),
            linger: None,
        }
    }

    /// Notes that what precedes the requests is complete, such as a TLS handshake: the time until
    /// the first request begins.
    pub(crate) fn begin_requests(&mut self) {
        (self.waits_for_head, self.has_begun_head, self.rests) = (false, false, false);
    }

    /// Returns the connection's activity.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Notes the result of a write, and fails if the client has taken nothing for too long.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(bytes)) => self.pace.progress(*bytes, Instant::now()),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let deadline = self.pace.wait(Instant::now());
                if self.blocked.deadline() != deadline {
                    self.blocked.as_mut().reset(deadline);
                }
                ready!(self.blocked.as_mut().poll(cx));
                tracing::info!(
                    event = "slow_client",
                    "closing a connection: the client does not \
                    read its response"
                );
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        result
    }
}

impl<S: AsyncRead + Unpin> ClientStream<S> {
    /// Waits for the first bytes, and returns true if they are those of HTTP/2. They are read again
    /// afterwards.
    ///
    /// # Errors
    /// If reading fails.
    pub(crate) async fn detect_http2(&mut self) -> io::Result<bool> {
        let mut first = Vec::with_capacity(PREFACE.len());
        let mut buffer = [0; PREFACE.len()];
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            match self.read(&mut buffer[first.len()..]).await? {
                0 => break,
                read => first.extend_from_slice(&buffer[first.len()..][..read]),
            }
        }
        let is_http2 = first == PREFACE;
        self.detected = first;
        if is_http2 {
            // The time until the first head begins.
            self.begin_requests();
        }
        Ok(is_http2)
    }
}

/// Adds what can be read at once to bytes that a buffer has already.
pub(crate) fn read_more(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    match Pin::new(stream).poll_read(cx, buffer) {
        Poll::Pending => Poll::Ready(Ok(())),
        read @ Poll::Ready(_) => read,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.detected.is_empty() {
            let count = this.detected.len().min(buffer.remaining());
            buffer.put_slice(&this.detected[..count]);
            this.detected.drain(..count);
            // Together with what follows: hyper would double its buffer to read the rest.
            return read_more(&mut this.stream, cx, buffer);
        }
        this.activity.register(cx.waker());
        if !this.activity.is_idle() {
            this.begin_requests();
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let idle = this.timeouts.idle;
        let rests = !this.activity.is_http2() && idle > REST_AFTER;
        let head = &mut this.head;
        if !this.waits_for_head {
            this.waits_for_head = true;
            let first = if rests { REST_AFTER } else { idle };
            head.as_mut().reset(Instant::now() + first);
        }
        let filled = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => {
                ready!(head.as_mut().poll(cx));
                if rests && !this.rests && !this.has_begun_head {
                    this.rests = true;
                    this.activity.rest();
                    let end = head.deadline() + (idle - REST_AFTER);
                    head.as_mut().reset(end);
                    ready!(head.as_mut().poll(cx));
                }
                if this.activity.is_http2() && this.activity.expire() {
                    // The client is told first, so that it does not send a request just now.
                    head.as_mut().reset(Instant::now() + LINGER_SILENCE);
                    ready!(head.as_mut().poll(cx));
                }
                // As if the client had closed its side: hyper then closes the connection.
                Poll::Ready(Ok(()))
            }
            read @ Poll::Ready(_) => {
                // With HTTP/2, anything but a head may arrive, and does not prolong the time.
                let is_head = buffer.filled().len() > filled && !this.activity.is_http2();
                if is_head && !this.has_begun_head {
                    this.has_begun_head = true;
                    head.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
                }
                read
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, data);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when its own buffer is empty.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.activity.flushed() {
            // hyper waits for the next request since before the response ended. It has to look
            // again, which begins the time for that request.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        /// Bytes that are read and discarded at a time.
        const DISCARD: usize = 16 << 10;
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(Linger::begin);
        let mut discarded = [0; DISCARD];
        loop {
            // First, so that a client that never stops sending does not keep the connection.
            if linger.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.progress(),
                // The client has closed its side, or reset the connection.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;
    use crate::drain::Drain;
    use crate::idle::IdleConnections;

    const TIMEOUTS: Timeouts =
        Timeouts { idle: Duration::from_secs(75), write: Duration::from_secs(30) };

    fn connection<S>(stream: S) -> (ClientStream<S>, Arc<Activity>) {
        let activity = Activity::new(Drain::default(), Arc::default());
        (ClientStream::new(stream, Arc::clone(&activity), TIMEOUTS), activity)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_and_slow_head_end_in_time() {
        let (mut client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        let begun = Instant::now();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "as if the client had closed");
        assert_eq!(begun.elapsed().as_secs(), 75);
        client.write_all(b"GET").await.unwrap();
        let begun = Instant::now();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 3);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(begun.elapsed(), HEAD_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn http2_is_detected_by_the_first_bytes() {
        for (sent, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nSM", false),
            (b"PRI", false),
            (b"POST / HTTP/1.1\r\n", false),
            (b"", false),
        ] {
            let (mut client, server) = duplex(64);
            let (mut stream, _activity) = connection(server);
            let send = async {
                for byte in sent {
                    client.write_all(&[*byte]).await.unwrap();
                }
                drop(client);
            };
            let (detected, ()) = tokio::join!(stream.detect_http2(), send);
            assert_eq!(detected.unwrap(), expected);
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_http2_connection_is_told_before_it_ends() {
        let (mut client, server) = duplex(64);
        let (mut stream, activity) = connection(server);
        activity.set_http2();
        let begun = Instant::now();
        let ping = async {
            tokio::time::sleep(Duration::from_secs(70)).await;
            client.write_all(b"ping").await.unwrap();
            activity.retired().await;
            begun.elapsed().as_secs()
        };
        let read = async {
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 4);
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
            begun.elapsed().as_secs()
        };
        assert_eq!(tokio::join!(ping, read), (75, 80));
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_limit_for_reading_during_a_request() {
        let (_client, server) = duplex(64);
        let (mut stream, activity) = connection(server);
        let _request = activity.begin().unwrap();
        let mut buffer = [0; 8];
        let read = stream.read(&mut buffer);
        assert!(tokio::time::timeout(Duration::from_secs(1000), read).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_does_not_read_is_cut() {
        let (_client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        let begun = Instant::now();
        let error = stream.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), TIMEOUTS.write);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_is_not_cut_while_it_keeps_the_minimum_rate() {
        let (mut client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        let read = async {
            let mut buffer = [0; 1 << 10];
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.read_exact(&mut buffer).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 100 << 10]), read);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn phases_follow_request_and_flush() {
        let drain = Drain::default();
        let idle = Arc::<IdleConnections>::default();
        let activity = Activity::new(drain.clone(), Arc::clone(&idle));
        let (_client, server) = duplex(64);
        let mut stream = ClientStream::new(server, Arc::clone(&activity), TIMEOUTS);
        let request = activity.begin().unwrap();
        assert!(!idle.evict_longest(), "a busy connection is not closed");
        drain.begin();
        stream.flush().await.unwrap();
        assert!(!activity.is_idle(), "the response has not ended");
        drop(request);
        let drained = tokio::time::timeout(Duration::from_secs(1), drain.drained());
        assert!(drained.await.is_err(), "the response has not been written");
        stream.flush().await.unwrap();
        drain.drained().await;
        assert!(idle.evict_longest());
        activity.evicted().await;
        assert!(activity.begin().is_none(), "no request begins on a connection that is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_the_client_to_stop_sending() {
        let (mut client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        let begun = Instant::now();
        client.write_all(&[0; 64]).await.unwrap();
        let leave = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(client);
        };
        let (closed, ()) = tokio::join!(stream.shutdown(), leave);
        closed.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 1);
        let (_client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        stream.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(1) + LINGER_SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_does_not_wait_for_an_endless_client() {
        let (mut client, server) = duplex(64);
        let (mut stream, _activity) = connection(server);
        let begun = Instant::now();
        let send = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(&[0; 8]).await.unwrap();
            }
        };
        tokio::select! {
            closed = stream.shutdown() => closed.unwrap(),
            () = send => {}
        }
        assert_eq!(begun.elapsed(), LINGER);
    }
}
