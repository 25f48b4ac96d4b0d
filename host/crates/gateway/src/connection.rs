//! One connection of a client: how long it may be idle, and how long it may keep the host waiting.
//!
//! ```text
//!             head complete            body of the response ended          last byte written
//!   idle ──────────────────────> busy ─────────────────────────> flushing ──────────────────> idle
//! ```
//!
//! hyper has one time limit for heads, which includes the time between two requests, and none for
//! writing. [`ClientStream`] is the connection as hyper sees it, with these limits.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::Drain;
use crate::idle::IdleConnections;
use crate::pace::Pace;

/// Time for the rest of a request's head after its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes per second that a client has to take on average while it keeps the host waiting. A stream
/// of 20 tokens per second has about four times as many.
const MIN_WRITE_RATE: u32 = 1 << 10;
/// Time for a client to stop sending after the host has closed its side, in total and without any
/// data. If the host closed both sides at once, the system would reset the connection, and the
/// client could lose a response that it has not read yet. nginx has the same.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const FLUSHING: u8 = 2;

/// What a connection is doing, shared by its stream and by the requests on it.
#[derive(Debug)]
pub(crate) struct Activity {
    phase: AtomicU8,
    state: Mutex<State>,
    drain: Drain,
    idle: Arc<IdleConnections>,
    evict: CancellationToken,
}

#[derive(Debug)]
enum State {
    /// Between requests, or before the head of the first one is complete; with its number among
    /// the idle connections.
    Idle(u64),
    /// With a request, for which a drain waits.
    Busy { _request: Option<TaskTrackerToken> },
}

impl Activity {
    /// Registers a new connection.
    pub(crate) fn new(drain: Drain, idle: Arc<IdleConnections>) -> Arc<Self> {
        let evict = CancellationToken::new();
        let state = Mutex::new(State::Idle(idle.insert(&evict)));
        Arc::new(Self { phase: AtomicU8::new(IDLE), state, drain, idle, evict })
    }

    /// Notes a request, until the guard is dropped with the body of its response. `None` if the
    /// connection is being closed because it was idle: the request must not begin.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<RequestGuard> {
        let mut state = self.state();
        if let State::Idle(seq) = &*state
            && !self.idle.remove(*seq)
        {
            return None;
        }
        *state = State::Busy { _request: self.drain.register() };
        self.phase.store(BUSY, Ordering::Release);
        Some(RequestGuard(Arc::clone(self)))
    }

    /// Waits until the connection has to make room for another one.
    pub(crate) async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// Notes that all bytes were written. Returns true if the connection has become idle by that.
    fn flushed(&self) -> bool {
        let becomes_idle = self.phase.load(Ordering::Acquire) == FLUSHING;
        if becomes_idle {
            *self.state() = State::Idle(self.idle.insert(&self.evict));
            self.phase.store(IDLE, Ordering::Release);
        }
        becomes_idle
    }

    fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Acquire) == IDLE
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let State::Idle(seq) = &*self.state() {
            self.idle.remove(*seq);
        }
    }
}

/// A request in progress. Dropped with the body of its response, which hyper has then copied into
/// its own buffer.
#[derive(Debug)]
pub(crate) struct RequestGuard(Arc<Activity>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.phase.store(FLUSHING, Ordering::Release);
    }
}

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
    /// Ends the time without a complete head; `None` during a request.
    head: Option<Pin<Box<Sleep>>>,
    has_begun_head: bool,
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
            head: None,
            has_begun_head: false,
            blocked: Box::pin(sleep_until(Instant::now())),
            pace: Pace::new(timeouts.write, MIN_WRITE_RATE),
            linger: None,
        }
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

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.activity.is_idle() {
            (this.head, this.has_begun_head) = (None, false);
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let idle = this.timeouts.idle;
        let head = this.head.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
        let filled = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => {
                ready!(head.as_mut().poll(cx));
                // As if the client had closed its side: hyper then closes the connection.
                Poll::Ready(Ok(()))
            }
            read @ Poll::Ready(_) => {
                if buffer.filled().len() > filled && !this.has_begun_head {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

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
