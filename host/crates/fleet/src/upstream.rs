//! The connection to an engine.
//!
//! Dropping an answer, or the wait for one, closes its connection: that is how an engine learns that nobody wants the
//! rest, and stops working on it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pointsman_domain::Trigger;
use tokio::time::{Instant, Sleep};

use crate::driver::Target;
use crate::spec::Timeouts;

/// vLLM and llama.cpp close a connection that was idle for 5 s; ours must not be used after that.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// Why an engine gave no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No connection.
    #[error("no connection to the engine: {0}")]
    Connect(String),
    /// The connection broke.
    #[error("the connection to the engine broke: {0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("the engine sent nothing for {} s", .0.as_secs_f32())]
    IdleTimeout(Duration),
    /// The stream stopped without its end.
    #[error("the engine ended the stream in the middle")]
    Unfinished,
    /// We ended it, because the host stops.
    #[error("the router is stopping")]
    Cut,
}

impl EngineError {
    /// The event that this is for a request that has not been answered yet.
    pub fn trigger(&self) -> Trigger {
        match self {
            Self::Connect(_) => Trigger::ConnectError,
            Self::Broken(_) | Self::IdleTimeout(_) | Self::Unfinished | Self::Cut => Trigger::ServerError,
        }
    }
}

/// The client for one lane's engine, over all its lives.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    pub(crate) timeouts: Timeouts,
}

impl Upstream {
    pub(crate) fn new(timeouts: Timeouts, slots: u32) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeouts.connect));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(slots as usize)
            .build(connector);
        Self { client, timeouts }
    }

    /// Send a request; the answer's head, as soon as it is there.
    pub(crate) async fn post(
        &self,
        target: &Target,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<EngineBody>, EngineError> {
        let mut request = request(target, Method::POST, path, body)?;
        let key = request.headers_mut().remove(header::AUTHORIZATION);
        *request.headers_mut() = headers;
        request.headers_mut().extend(key.map(|key| (header::AUTHORIZATION, key)));
        let answer = self.client.request(request).await.map_err(failed)?;
        Ok(answer.map(|body| EngineBody::new(body, self.timeouts.idle)))
    }

    /// Status of a `GET`, within `limit`.
    pub(crate) async fn probe(
        &self,
        target: &Target,
        path: &str,
        limit: Duration,
    ) -> Result<StatusCode, EngineError> {
        let request = request(target, Method::GET, path, Bytes::new())?;
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(answer) => answer.map(|answer| answer.status()).map_err(failed),
            Err(_) => Err(EngineError::IdleTimeout(limit)),
        }
    }
}

fn request(
    target: &Target,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, EngineError> {
    let uri = format!("http://{}{}{path}", target.authority, target.base_path);
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(key) = &target.key {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", key.reveal()));
        let mut bearer =
            bearer.map_err(|_| EngineError::Connect("the key may not stand in a header".into()))?;
        bearer.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, bearer);
    }
    request.body(Full::new(body)).map_err(|error| EngineError::Connect(error.to_string()))
}

fn failed(error: hyper_util::client::legacy::Error) -> EngineError {
    // The innermost cause says what happened ("connection refused"); the layers above it only say where.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_connect() {
        EngineError::Connect(cause.to_string())
    } else {
        EngineError::Broken(cause.to_string())
    }
}

/// The body of an engine's answer.
#[derive(Debug)]
pub struct EngineBody {
    incoming: Incoming,
    idle: Duration,
    last: Instant,
    // Moved on only when it fires, and not for each of thousands of frames.
    alarm: Pin<Box<Sleep>>,
}

impl EngineBody {
    fn new(incoming: Incoming, idle: Duration) -> Self {
        Self { incoming, idle, last: Instant::now(), alarm: Box::pin(tokio::time::sleep(idle)) }
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = EngineError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) {
            this.last = Instant::now();
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| EngineError::Broken(error.to_string()))),
            );
        }
        loop {
            ready!(this.alarm.as_mut().poll(cx));
            let due = this.last + this.idle;
            if Instant::now() >= due {
                return Poll::Ready(Some(Err(EngineError::IdleTimeout(this.idle))));
            }
            this.alarm.as_mut().reset(due);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
