//! Serves a connection with HTTP/1, which has no buffers while it is idle.
//!
//! hyper keeps its buffers and the space for the state of a request as long as a connection exists,
//! 17 KiB for each. Clients with pools keep hundreds of connections that they rarely use, so an
//! idle connection is taken away from hyper, and given back to it with the next byte that arrives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Connection, Parts};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::activity::Activity;
use crate::body::GuardedBody;
use crate::connection::read_more;
use crate::http_version::http1;

/// Bytes that are read while hyper is not there. It reads the rest.
const FIRST: usize = 16;

/// Serves the requests of a connection until it ends.
///
/// # Errors
/// If the connection fails, or the client sends something else than requests.
pub(crate) async fn serve_http1<S, T>(
    stream: S,
    mut service: T,
    activity: &Activity,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    T: Service<Request<Incoming>, Response = Response<GuardedBody>> + Unpin,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let mut stream = Continued { first: Bytes::new(), stream };
    loop {
        let connection = http1().serve_connection(TokioIo::new(stream), service);
        let Some(parts) = until_idle(connection, activity).await? else { return Ok(()) };
        (stream, service) = (parts.io.into_inner(), parts.service);
        // A part of the next head may have come together with the last request. If not, what is
        // left is a reference to hyper's buffer.
        stream.first = if parts.read_buf.is_empty() { Bytes::new() } else { parts.read_buf };
        if stream.first.is_empty() && !stream.wait().await? {
            return Ok(stream.shutdown().await?);
        }
    }
}

/// Serves requests until the connection is idle for a while, and returns its parts then; `None` if
/// it has ended. All responses are written, or the connection would not be idle.
async fn until_idle<S, T>(
    connection: Connection<TokioIo<S>, T>,
    activity: &Activity,
) -> hyper::Result<Option<Parts<TokioIo<S>, T>>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    T: Service<Request<Incoming>, Response = Response<GuardedBody>> + Unpin,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    // Boxed, so that an idle connection has no space for it.
    let mut connection = Box::new(connection);
    let end = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(end) => Poll::Ready(Some(end)),
        Poll::Pending if activity.take_rest() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    match end.await {
        Some(end) => end.map(|()| None),
        None => Ok(Some(connection.into_parts())),
    }
}

/// A stream, and bytes that were read from it before.
struct Continued<S> {
    first: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> Continued<S> {
    /// Waits for the next bytes. Returns false if the client has closed its side.
    async fn wait(&mut self) -> io::Result<bool> {
        let mut first = [0; FIRST];
        let count = self.stream.read(&mut first).await?;
        self.first = Bytes::copy_from_slice(&first[..count]);
        Ok(count > 0)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Continued<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { first, stream } = &mut *self;
        if first.is_empty() {
            return Pin::new(stream).poll_read(cx, buffer);
        }
        let count = first.len().min(buffer.remaining());
        buffer.put_slice(&first[..count]);
        first.advance(count);
        read_more(stream, cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Continued<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::body::Body;
    use hyper::service::service_fn;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::connection::{ClientStream, REST_AFTER, Timeouts};
    use crate::drain::Drain;

    const TIMEOUTS: Timeouts =
        Timeouts { idle: Duration::from_secs(75), write: Duration::from_secs(30) };

    /// A stream that notes how many bytes its reader has space for.
    struct Noting<S> {
        stream: S,
        space: Arc<AtomicUsize>,
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.space.store(buffer.remaining(), Ordering::Relaxed);
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// Serves a connection, whose responses say the path, while `client` uses it. `client` also
    /// gets the space of the last read.
    async fn with_client<C: Future<Output = ()>>(
        client: impl FnOnce(DuplexStream, Arc<AtomicUsize>) -> C,
    ) {
        let (near, far) = duplex(1 << 10);
        let space = Arc::<AtomicUsize>::default();
        let activity = Activity::new(Drain::default(), Arc::default());
        let stream = ClientStream::new(far, Arc::clone(&activity), TIMEOUTS);
        let stream = Noting { stream, space: Arc::clone(&space) };
        let service = service_fn(|request: Request<Incoming>| {
            let guard = activity.begin();
            let body = Body::from(request.uri().path().to_owned());
            let response = guard.map(|guard| Response::new(GuardedBody::new(body, guard)));
            async move { Ok::<_, Infallible>(response.unwrap()) }
        });
        let serve = serve_http1(stream, service, &activity);
        let (served, ()) = tokio::join!(serve, client(near, space));
        served.unwrap();
    }

    async fn expect_path(client: &mut DuplexStream, path: &str) {
        let mut read = Vec::new();
        while !read.ends_with(path.as_bytes()) {
            assert_ne!(client.read_buf(&mut read).await.unwrap(), 0, "no response with {path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_has_no_buffer_and_goes_on() {
        with_client(|mut client, space| async move {
            for path in ["/first", "/second", "/third"] {
                let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
                client.write_all(head.as_bytes()).await.unwrap();
                expect_path(&mut client, path).await;
                tokio::time::sleep(REST_AFTER / 2).await;
                assert!(space.load(Ordering::Relaxed) >= 4 << 10, "may be used again soon");
                tokio::time::sleep(REST_AFTER).await;
                assert_eq!(space.load(Ordering::Relaxed), FIRST);
            }
            drop(client);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn head_in_parts_is_complete() {
        with_client(|mut client, _| async move {
            // The beginning of the second head comes with the first request.
            client.write_all(b"GET /first HTTP/1.1\r\n\r\nGET /sec").await.unwrap();
            expect_path(&mut client, "/first").await;
            tokio::time::sleep(3 * REST_AFTER).await;
            client.write_all(b"ond HTTP/1.1\r\n\r\n").await.unwrap();
            expect_path(&mut client, "/second").await;
            tokio::time::sleep(3 * REST_AFTER).await;
            for byte in b"GET /third HTTP/1.1\r\n\r\n" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(REST_AFTER).await;
            }
            expect_path(&mut client, "/third").await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn idle_timeout_includes_the_time_without_buffers() {
        with_client(|mut client, _| async move {
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            expect_path(&mut client, "/").await;
            let begun = tokio::time::Instant::now();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            assert_eq!(begun.elapsed(), TIMEOUTS.idle);
        })
        .await;
    }
}
