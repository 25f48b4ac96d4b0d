//! The connection to an engine.
//!
//! Dropping an answer, or the wait for one, closes its connection: that is how an engine learns that nobody wants the
//! rest, and stops working on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use pointsman_domain::Trigger;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::driver::{Driver, Target};
use crate::spec::Timeouts;
use crate::tls;

/// vLLM and llama.cpp close a connection that was idle for 5 s; ours must not be used after that.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);
/// Longest reply to a question of our own; vLLM's metrics are 60 KB (captures).
const LONGEST_REPLY: usize = 4 << 20;

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
    Aborted,
    /// We ended it, because its lane has been draining for too long.
    #[error(
        "the lane is exchanged for another one, and the answer took longer than the router waits for that"
    )]
    Evicted,
}

impl EngineError {
    /// Has the connection gone, and the engine perhaps with it?
    pub fn is_severed(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Broken(_))
    }

    /// The event that this is for a request that has not been answered yet.
    pub fn trigger(&self) -> Trigger {
        match self {
            Self::Connect(_) => Trigger::ConnectError,
            Self::Evicted => Trigger::EngineRestart,
            Self::Broken(_) | Self::IdleTimeout(_) | Self::Unfinished | Self::Aborted => {
                Trigger::ServerError
            }
        }
    }
}

/// What passes between us and an engine, for the judgement whether it is alive.
#[derive(Debug)]
pub(crate) struct Activity {
    since: Instant,
    /// Requests that have not been answered to the end.
    requests: AtomicU32,
    /// When the last request was sent, or the last byte came, in milliseconds since `since`.
    moved: AtomicU64,
}

impl Activity {
    /// Something moved.
    pub(crate) fn moves(&self, now: Instant) {
        let elapsed = u64::try_from(now.duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    /// Requests under way, and for how long nothing has moved.
    pub(crate) fn now(&self) -> (u32, Duration) {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        (self.requests.load(Ordering::Relaxed), self.since.elapsed().saturating_sub(moved))
    }
}

/// One request that has not been answered to the end.
#[derive(Debug)]
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::Relaxed);
        activity.moves(Instant::now());
        Self(Arc::clone(activity))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The client for one lane's engine, over all its lives.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Uses connections again.
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Does not.
    fresh: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    reuses: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) activity: Arc<Activity>,
}

impl Upstream {
    pub(crate) fn new(timeouts: Timeouts, slots: u32, driver: &dyn Driver) -> Self {
        let client = |idle: usize| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(timeouts.connect));
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_CONNECTION)
                .pool_max_idle_per_host(idle)
                .build(tls::connector(connector, driver.trust()))
        };
        let activity = Activity {
            since: Instant::now(),
            requests: AtomicU32::new(0),
            moved: AtomicU64::new(0),
        };
        Self {
            client: client(slots as usize),
            fresh: client(0),
            reuses: driver.reuses_connections(),
            timeouts,
            activity: Arc::new(activity),
        }
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
        let under_way = UnderWay::new(&self.activity);
        let answer = self.send(request).await?;
        Ok(answer.map(|body| EngineBody::new(body, self.timeouts.idle, under_way)))
    }

    /// A connection that was kept for another request may be closed by the engine at the moment in which it is used. Then
    /// nothing was answered, and probably nothing read: it is tried once more on a new one.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, EngineError> {
        if !self.reuses {
            return self.fresh.request(request).await.map_err(|error| failed(&error));
        }
        let again = request.clone();
        match self.client.request(request).await {
            Ok(answer) => Ok(answer),
            Err(error) if closed_unanswered(&error) => {
                self.fresh.request(again).await.map_err(|error| failed(&error))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Ask the engine something for ourselves: status and body, within `limit`.
    pub(crate) async fn call(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        let mut request =
            request(target, method, path, Bytes::copy_from_slice(body.unwrap_or("").as_bytes()))?;
        if body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        let answer = async {
            let (head, body) = self.send(request).await?.into_parts();
            let body = Limited::new(body, LONGEST_REPLY).collect().await;
            let body = body.map_err(|error| EngineError::Broken(error.to_string()))?;
            Ok((head.status, body.to_bytes()))
        };
        tokio::time::timeout(limit, answer).await.unwrap_or(Err(EngineError::IdleTimeout(limit)))
    }
}

fn request(
    target: &Target,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, EngineError> {
    let scheme = if target.https { "https" } else { "http" };
    let uri = format!("{scheme}://{}{}{path}", target.authority, target.base_path);
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

fn closed_unanswered(error: &hyper_util::client::legacy::Error) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<hyper::Error>());
    source.is_some_and(|error| {
        error.is_incomplete_message() || error.is_canceled() || error.is_closed()
    })
}

fn failed(error: &hyper_util::client::legacy::Error) -> EngineError {
    // The innermost cause says what happened ("connection refused"); the layers above it only say where.
    let mut cause: &dyn std::error::Error = error;
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
    under_way: UnderWay,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl EngineBody {
    fn new(incoming: Incoming, idle: Duration, under_way: UnderWay) -> Self {
        let last = Instant::now();
        under_way.0.moves(last);
        Self {
            incoming,
            idle,
            last,
            alarm: Box::pin(tokio::time::sleep(idle)),
            under_way,
            cut: None,
        }
    }

    /// End it with [`EngineError::Evicted`] when `cut` is cancelled.
    pub(crate) fn cut_by(mut self, cut: &CancellationToken) -> Self {
        self.cut = Some(Box::pin(cut.clone().cancelled_owned()));
        self
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
            this.under_way.0.moves(this.last);
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| EngineError::Broken(error.to_string()))),
            );
        }
        if this.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Err(EngineError::Evicted)));
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
