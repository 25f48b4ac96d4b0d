//! hyper's settings for HTTP/1 and HTTP/2.

use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;

use crate::unsent::StreamTasks;

/// Maximum size of the head of a request; nginx has the same.
const MAX_HEAD: u32 = 32 << 10;
/// Maximum size of hyper's buffers of a connection, one for reading and one for writing. With
/// HTTP/2, the second one is per stream.
const BUFFER: usize = 64 << 10;
/// Requests at a time on an HTTP/2 connection; nginx has the same.
const MAX_STREAMS: u32 = 128;
/// Bytes of request bodies that a client may send before the host reads them, for one request and
/// for all on a connection. HTTP/1 has `BUFFER` and what the system buffers.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Streams that a client has reset before the host accepted them, after which the connection is
/// closed; and streams that the host has reset.
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 128;
/// Interval of pings, and the time for the response: only pings notice that a client is gone while
/// its requests wait.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the settings for HTTP/1.
pub(crate) fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // `ClientStream` has a time limit that does not include the time between two requests.
        .header_read_timeout(None::<Duration>)
        .max_header_size(MAX_HEAD as usize)
        .max_buf_size(BUFFER);
    builder
}

/// Returns the settings for HTTP/2.
pub(crate) fn http2(tasks: StreamTasks) -> http2::Builder<StreamTasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
