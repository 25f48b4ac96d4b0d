//! What a client has yet to take of a response on an HTTP/2 stream.
//!
//! Several streams share a connection, which goes on when the client does not read one of them: the
//! flow control of HTTP/2 only stops that stream. So each stream has the limits that a connection
//! has with HTTP/1, and is reset alone.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pace::{MIN_WRITE_RATE, Pace};

tokio::task_local! {
    /// That of the stream whose task this is.
    static UNSENT: Arc<Unsent>;
}

/// The bytes of a response that were handed to hyper, and were not written.
#[derive(Debug)]
pub(crate) struct Unsent(Mutex<State>);

#[derive(Debug)]
struct State {
    bytes: usize,
    pace: Pace,
    /// The client has taken too long.
    is_expired: bool,
    /// Waits until the client has taken everything.
    body: Option<Waker>,
}

impl Unsent {
    fn new(limit: Duration) -> Arc<Self> {
        let pace = Pace::new(limit, MIN_WRITE_RATE);
        Arc::new(Self(Mutex::new(State { bytes: 0, pace, is_expired: false, body: None })))
    }

    /// Returns that of the stream whose task calls this; `None` with HTTP/1.
    pub(crate) fn of_stream() -> Option<Arc<Self>> {
        UNSENT.try_with(Arc::clone).ok()
    }

    /// Waits until the client has taken everything that was handed to hyper.
    ///
    /// # Errors
    /// If the client has taken too long.
    pub(crate) fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if state.is_expired {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if state.bytes == 0 {
            return Poll::Ready(Ok(()));
        }
        state.body = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().bytes == 0
    }

    /// Notes bytes that were handed to hyper.
    pub(crate) fn add(&self, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_add(bytes);
        if state.bytes > 0 {
            state.pace.wait(Instant::now());
        }
    }

    /// Notes bytes that were written.
    pub(crate) fn taken(&self, bytes: usize) {
        let mut state = self.state();
        let now = Instant::now();
        state.pace.progress(bytes, now);
        // Saturates never: they were added before.
        state.bytes = state.bytes.saturating_sub(bytes);
        if state.bytes > 0 {
            state.pace.wait(now);
        } else if let Some(body) = state.body.take() {
            body.wake();
        }
    }

    /// Returns when the client has waited for too long; `None` if it has taken everything.
    fn deadline(&self) -> Option<Instant> {
        let mut state = self.state();
        (state.bytes > 0).then(|| state.pace.wait(Instant::now()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the streams of an HTTP/2 connection, until the connection ends.
#[derive(Debug, Clone)]
pub(crate) struct StreamTasks {
    tasks: TaskTracker,
    ended: CancellationToken,
    write_timeout: Duration,
}

impl StreamTasks {
    /// Creates the executor of a connection. `ended` ends its streams.
    pub(crate) fn new(
        tasks: TaskTracker,
        ended: CancellationToken,
        write_timeout: Duration,
    ) -> Self {
        Self { tasks, ended, write_timeout }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        let stream = Paced {
            stream: Box::pin(stream),
            unsent: Unsent::new(self.write_timeout),
            blocked: Box::pin(sleep_until(Instant::now())),
        };
        let ended = self.ended.clone();
        self.tasks.spawn(async move { ended.run_until_cancelled(stream).await });
    }
}

/// A stream that ends when its client does not read it. Dropping it resets it.
struct Paced<F> {
    stream: Pin<Box<F>>,
    unsent: Arc<Unsent>,
    blocked: Pin<Box<Sleep>>,
}

impl<F: Future<Output = ()>> Future for Paced<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, unsent, blocked } = &mut *self;
        if UNSENT.sync_scope(Arc::clone(unsent), || stream.as_mut().poll(cx)).is_ready() {
            return Poll::Ready(());
        }
        // Bytes may be written between the end of the timer and the look at the deadline.
        while let Some(deadline) = unsent.deadline() {
            if deadline <= Instant::now() {
                unsent.state().is_expired = true;
                // The body fails now, and hyper resets the stream with an error. If hyper waits for
                // the flow control of a piece that it has, dropping the stream cancels it.
                let poll = || stream.as_mut().poll(cx).is_ready();
                let has_failed = UNSENT.sync_scope(Arc::clone(unsent), poll);
                tracing::info!(
                    event = "slow_client",
                    cancelled = !has_failed,
                    "resetting a stream: the client does not read its response"
                );
                return Poll::Ready(());
            }
            blocked.as_mut().reset(deadline);
            ready!(blocked.as_mut().poll(cx));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a stream with a body that begins with this many bytes, and never ends.
    async fn run(bytes: usize) -> (Arc<Unsent>, TaskTracker, CancellationToken) {
        let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
        let executor = StreamTasks::new(tasks.clone(), ended.clone(), 10 * SECOND);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        executor.execute(async move {
            let unsent = Unsent::of_stream().unwrap();
            unsent.add(bytes);
            sender.send(unsent).unwrap();
            std::future::pending().await
        });
        tasks.close();
        (receiver.await.unwrap(), tasks, ended)
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_is_not_read_ends() {
        let (unsent, tasks, _ended) = run(1 << 20).await;
        let begun = Instant::now();
        tokio::time::sleep(5 * SECOND).await;
        unsent.taken(1 << 19);
        tasks.wait().await;
        assert_eq!(begun.elapsed(), 15 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_waits_for_the_host_goes_on_until_its_connection_ends() {
        let (unsent, tasks, ended) = run(1 << 20).await;
        unsent.taken(1 << 20);
        assert!(unsent.is_empty());
        let waited = tokio::time::timeout(1000 * SECOND, tasks.wait()).await;
        assert!(waited.is_err());
        ended.cancel();
        tasks.wait().await;
    }
}
