//! The HTTP connection to an engine.
//!
//! Dropping a response, or the future that waits for one, closes its connection. This is how an
//! engine learns that the rest of the response is not wanted, and stops generating it.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Either, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::activity::{InFlightGuard, Phase, is_data};
use crate::content_encoding::{ContentEncoding, DecodedBody, decode};
use crate::driver::{Driver, Target};
use crate::proof::{Mismatch, Proof, Reuse, is_provable, names_other, names_this, set_engine_id};
use crate::proxied_body::ProxiedBody;
use crate::request_body::RequestBody;
use crate::spec::Timeouts;
use crate::tls;

/// The time after which an idle pooled connection is closed. vLLM and llama.cpp close theirs after
/// 5 s, and a connection must not be reused after that.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum size of a response to the host's own requests; vLLM's metrics are 60 KB (captures).
const MAX_RESPONSE: usize = 4 << 20;

/// The cause of a connection error.
type Cause = Box<dyn StdError + Send + Sync>;

/// The reason why an engine sent no response, or an incomplete one.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No connection could be made.
    #[error("failed to connect to the engine: {}", root_cause(&**.0))]
    Connect(#[source] Cause),
    /// The connection broke.
    #[error("the connection to the engine broke: {}", root_cause(&**.0))]
    Broken(#[source] Cause),
    /// No data was received within the timeout.
    #[error("the engine sent no data for {} s", .0.as_secs_f32())]
    IdleTimeout(Duration),
    /// The response is that of another request.
    #[error("the engine sent the response of another request")]
    WrongResponse,
    /// The stream ended without its end marker.
    #[error("the engine ended the stream before the response was complete")]
    Unfinished,
    /// The host aborted the response because it is stopping.
    #[error("aborted: the host is stopping")]
    Aborted,
    /// The host aborted the response because the operator has cancelled the request.
    #[error("aborted: the operator has cancelled the request")]
    Cancelled,
    /// The host took the engine for hung, and aborted its responses.
    #[error("aborted: the host took the engine for hung")]
    Hung,
    /// The host aborted the response because its lane has to make room for another lane.
    #[error("aborted: the lane is being evicted and the drain timeout expired")]
    Evicted,
}

/// Returns the innermost source, which says what happened ("connection refused"); the layers above
/// only say where.
pub(crate) fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// The HTTP client of one lane, used for all generations of its engine.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Pools connections.
    pooled: Client<HttpsConnector<HttpConnector>, RequestBody>,
    /// Opens a new connection for each request.
    fresh: Client<HttpsConnector<HttpConnector>, RequestBody>,
    reuse: Reuse,
    pub(crate) timeouts: Timeouts,
}

impl Upstream {
    pub(crate) fn new(timeouts: Timeouts, slots: u32, driver: &dyn Driver) -> Self {
        let client = |max_idle: usize| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(timeouts.connect));
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE_TIMEOUT)
                .pool_max_idle_per_host(max_idle)
                .build(tls::connector(connector, driver.trusted_roots()))
        };
        Self { pooled: client(slots as usize), fresh: client(0), reuse: driver.reuse(), timeouts }
    }

    /// Sends a request, and returns as soon as the response head has arrived.
    pub(crate) async fn forward(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: RequestBody,
    ) -> Result<Response<EngineBody>, EngineError> {
        let mut request = request(target, method, path, body)?;
        let key = request.headers_mut().remove(header::AUTHORIZATION);
        *request.headers_mut() = headers;
        request.headers_mut().extend(key.map(|key| (header::AUTHORIZATION, key)));
        let in_flight = InFlightGuard::new(&target.activity);
        let hung = target.activity.hung();
        let sent = pin!(self.send_proven(target, path, request));
        let (response, proof) = match hung.run_until_cancelled(sent).await {
            Some(Err(_)) if hung.is_cancelled() => return Err(EngineError::Hung),
            Some(sent) => sent?,
            None => return Err(EngineError::Hung),
        };
        let response = decoded(response.map(Either::Left)).await;
        Ok(response.map(|body| EngineBody::new(body, self.timeouts.idle, in_flight, proof)))
    }

    /// Sends a request under an id of the host's own. Returns the response with what proves that it
    /// is that of the request, if the engine can prove it.
    async fn send_proven(
        &self,
        target: &Target,
        path: &str,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<Proof>), EngineError> {
        let id = set_engine_id(request.headers_mut());
        if self.reuse != Reuse::Proven {
            return Ok((self.send(request, self.reuse == Reuse::Always).await?, None));
        }
        let pooled = target.activity.repeats_ids() && is_provable(path);
        let retry = pooled.then(|| request.clone());
        let response = self.send(request, pooled).await?;
        if names_other(response.headers(), &id) {
            target.activity.distrust_ids();
            return Err(EngineError::WrongResponse);
        }
        if response.status().is_success() {
            return Ok((response, Proof::new(path, &id, pooled, &target.activity)));
        }
        match retry {
            // The body of an error has no id. If its headers have none either, it might be that of
            // an earlier request.
            Some(mut request) if !names_this(response.headers(), &id) => {
                drop(response);
                set_engine_id(request.headers_mut());
                Ok((self.send(request, false).await?, None))
            }
            Some(_) | None => Ok((response, None)),
        }
    }

    /// Sends a request, on a pooled connection if `pooled`, and retries it once on a new connection
    /// if a pooled one was closed before any response. The engine may close an idle connection at
    /// the moment it is reused; the request was then most likely not read either.
    async fn send(
        &self,
        request: Request<RequestBody>,
        pooled: bool,
    ) -> Result<Response<Incoming>, EngineError> {
        if !pooled {
            return self.fresh.request(request).await.map_err(client_error);
        }
        let retry = request.clone();
        match self.pooled.request(request).await {
            Ok(response) => Ok(response),
            Err(error) if closed_before_response(&error) => {
                self.fresh.request(retry).await.map_err(client_error)
            }
            Err(error) => Err(client_error(error)),
        }
    }

    /// Sends a request of the host's own, and returns the status and the whole body.
    ///
    /// # Errors
    /// Returns an error if the response is not complete within `timeout`, or too large.
    pub(crate) async fn call(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        let bytes = Bytes::copy_from_slice(body.unwrap_or("").as_bytes());
        let mut request = request(target, method, path, bytes.into())?;
        if body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        let response = async {
            let pooled = self.reuse == Reuse::Always;
            let (head, body) = decoded(self.send(request, pooled).await?).await.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await;
            let body = body.map_err(EngineError::Broken)?;
            Ok((head.status, body.to_bytes()))
        };
        tokio::time::timeout(timeout, response)
            .await
            .unwrap_or(Err(EngineError::IdleTimeout(timeout)))
    }
}

pub(crate) fn request(
    target: &Target,
    method: Method,
    path: &str,
    body: RequestBody,
) -> Result<Request<RequestBody>, EngineError> {
    let scheme = if target.https { "https://" } else { "http://" };
    let (prefix, path) = target.path(path);
    let uri = Bytes::from([scheme, &target.authority, prefix, path].concat());
    let uri = Uri::from_maybe_shared(uri).map_err(|error| EngineError::Connect(error.into()))?;
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(key) = &target.key {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", key.reveal()));
        let mut bearer = bearer.map_err(|_| {
            // The source says no more than that, and must not quote the key.
            EngineError::Connect("the API key is not a valid header value".into())
        })?;
        // Keeps the key out of debug output.
        bearer.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, bearer);
    }
    request.body(body).map_err(|error| EngineError::Connect(error.into()))
}

/// Decodes the body of a response. Engines are asked for identity, but proxies in front of some
/// compress all the same. A body that the host cannot decode stays as it is, with its header.
pub(crate) async fn decoded<B: Body>(response: Response<B>) -> Response<DecodedBody<B>> {
    let (mut head, body) = response.into_parts();
    let encoding = ContentEncoding::of_message(&head.headers).unwrap_or_default();
    if encoding.is_some() {
        head.headers.remove(header::CONTENT_ENCODING);
        head.headers.remove(header::CONTENT_LENGTH);
    }
    Response::from_parts(head, decode(encoding, body).await)
}

/// Returns true if the connection was closed before any part of a response arrived.
fn closed_before_response(error: &hyper_util::client::legacy::Error) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<hyper::Error>());
    source.is_some_and(|error| {
        error.is_incomplete_message() || error.is_canceled() || error.is_closed()
    })
}

fn client_error(error: hyper_util::client::legacy::Error) -> EngineError {
    if error.is_connect() {
        EngineError::Connect(error.into())
    } else {
        EngineError::Broken(error.into())
    }
}

/// The body of an engine's response.
#[derive(Debug)]
pub struct EngineBody {
    incoming: DecodedBody<Either<Incoming, ProxiedBody>>,
    idle_timeout: Duration,
    /// When data arrived last, or the client took it; comments of a stream do not count.
    last_data: Instant,
    /// When a frame without data was passed on that the client has not taken yet.
    passed_on: Option<Instant>,
    // Reset only when it fires, because a response can have thousands of frames.
    idle_timer: Pin<Box<Sleep>>,
    in_flight: InFlightGuard,
    /// Until it is known that the response is that of the request.
    proof: Option<Proof>,
    abort: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    hung: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Data counts only when the reader reports it.
    reader_reports: bool,
}

impl EngineBody {
    pub(crate) fn new(
        incoming: DecodedBody<Either<Incoming, ProxiedBody>>,
        idle_timeout: Duration,
        in_flight: InFlightGuard,
        proof: Option<Proof>,
    ) -> Self {
        let hung = Box::pin(in_flight.activity().hung().clone().cancelled_owned());
        Self {
            incoming,
            idle_timeout,
            last_data: Instant::now(),
            passed_on: None,
            idle_timer: Box::pin(tokio::time::sleep(idle_timeout)),
            in_flight,
            proof,
            abort: None,
            hung,
            reader_reports: false,
        }
    }

    /// Makes data count only if the reader reports it with [`EngineBody::report_data`]: the reader
    /// of an event stream knows which bytes are events, wherever they are split. Until the first
    /// report the idle timeout does not apply: the time to the first byte is the caller's to limit.
    pub fn require_reports(&mut self) {
        self.reader_reports = true;
    }

    /// Records that data of the response has arrived.
    pub fn report_data(&mut self) {
        self.last_data = Instant::now();
        self.passed_on = None;
        self.in_flight.received();
    }

    /// Notes what has arrived, and returns what of it is passed on: an empty frame while it is not
    /// known whether the response is that of the request.
    fn received(
        &mut self,
        frame: Option<Result<Frame<Bytes>, Cause>>,
    ) -> Option<Result<Frame<Bytes>, EngineError>> {
        let wrong = |_: Mismatch| EngineError::WrongResponse;
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Some(Ok(trailers)),
            },
            Some(Err(error)) => {
                let hung = self.in_flight.activity().hung().is_cancelled();
                let broken = || EngineError::Broken(error);
                return Some(Err(if hung { EngineError::Hung } else { broken() }));
            }
            None => match self.proof.take()?.end() {
                Ok(held) if held.is_empty() => return None,
                Ok(held) => held,
                Err(mismatch) => return Some(Err(wrong(mismatch))),
            },
        };
        if !self.reader_reports && is_data(&data) {
            self.report_data();
        } else if self.in_flight.passed_on() {
            self.passed_on = Some(Instant::now());
        }
        let Some(proof) = &mut self.proof else { return Some(Ok(Frame::data(data))) };
        let checked = proof.chunk(data).map_err(wrong).map(|(data, is_over)| {
            if is_over {
                self.proof = None;
            }
            Frame::data(data)
        });
        Some(checked)
    }

    /// Ends the body with [`EngineError::Evicted`] when `abort` is cancelled.
    pub(crate) fn abort_on(mut self, abort: &CancellationToken) -> Self {
        self.abort = Some(Box::pin(abort.clone().cancelled_owned()));
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
        // Data that has arrived is delivered before an abort or a timeout is reported.
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) {
            return Poll::Ready(this.received(frame));
        }
        if this.in_flight.wants_data() {
            // The client may have taken its time.
            let now = Instant::now();
            this.last_data = match this.passed_on.take() {
                Some(passed_on) => this.last_data + now.duration_since(passed_on),
                None => now,
            };
        }
        if this.hung.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(EngineError::Hung)));
        }
        if this.abort.as_mut().is_some_and(|abort| abort.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Err(EngineError::Evicted)));
        }
        loop {
            ready!(this.idle_timer.as_mut().poll(cx));
            let now = Instant::now();
            if this.in_flight.phase() == Phase::FirstData {
                // Until then, the timeout of the first byte applies.
                this.last_data = now;
            }
            let deadline = this.last_data + this.idle_timeout;
            if now >= deadline {
                return Poll::Ready(Some(Err(EngineError::IdleTimeout(this.idle_timeout))));
            }
            // Data has arrived since the timer was set.
            this.idle_timer.as_mut().reset(deadline);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.proof.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
