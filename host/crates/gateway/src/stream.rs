//! The response on its way to the client: bytes are passed on as they arrive, the lease is held
//! until the last of them, and the outcome is recorded at the end.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;
use pointsman_domain::AttemptResult;
use pointsman_fleet::{EngineBody, EngineError, Lease};
use pointsman_openai::{BodyTail, StreamEnd, StreamWatch, error_event};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::Span;

use crate::Gateway;
use crate::attempt::{self, EngineResponse, HOP_BY_HOP};
use crate::error;
use crate::error_code::ErrorCode;
use crate::request_tracker::{Failure, RequestTracker};
use crate::serve::RoutingDecision;

/// Names the lane whose engine responded.
pub(crate) const LANE: HeaderName = HeaderName::from_static("x-pointsman-lane");
/// Names the policies that decided, with their versions.
pub(crate) const POLICY: HeaderName = HeaderName::from_static("x-pointsman-policy");
/// The policies' reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
/// The number of attempts, if there was more than one.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");

/// Characters of a text that fit into a header of ours. Many proxies limit all headers to 8 KiB.
const MAX_HEADER_VALUE: usize = 512;

/// Returns the client's response for an engine's response.
pub(crate) fn into_response(
    gateway: &Gateway,
    engine_response: EngineResponse,
    decision: &RoutingDecision,
    tracker: RequestTracker,
) -> Response {
    let mut headers = engine_response.headers.clone();
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::SERVER);
    if engine_response.is_stream() {
        // An error event may have to be appended.
        headers.remove(header::CONTENT_LENGTH);
    }
    for (name, value) in [
        (LANE, Some(&engine_response.lane)),
        (POLICY, Some(&decision.policies)),
        (REASON, decision.reason.as_ref()),
    ] {
        if let Some(value) = value.and_then(|value| to_header_value(value)) {
            headers.insert(name, value);
        }
    }
    if tracker.attempts() > 1 {
        headers.insert(ATTEMPTS, tracker.attempts().into());
    }
    let status = engine_response.status;
    let span = tracker.span().clone();
    let body = ResponseBody::new(gateway, engine_response, tracker);
    let mut response = Response::new(Body::new(InSpan::new(span, body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Returns `text` as a header value. Characters other than visible ASCII become question marks,
/// and long text is truncated.
pub(crate) fn to_header_value(text: &str) -> Option<HeaderValue> {
    let visible = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().take(MAX_HEADER_VALUE).map(visible).collect();
    HeaderValue::from_str(&text).ok()
}

/// A body that is polled inside the span of its request. hyper polls bodies long after the
/// handler has returned, outside any span.
pub(crate) struct InSpan<B> {
    span: Span,
    body: B,
}

impl<B> InSpan<B> {
    pub(crate) fn new(span: Span, body: B) -> Self {
        Self { span, body }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for InSpan<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response whose first byte has arrived.
///
/// ```text
///   first ──> rest ──frame──> rest              StreamWatch inspects frames without delaying them
///               │ ├──end────> ended: complete   a stream without an end marker gets an error event
///               │ └──error──> ended: failed     a stream gets an error event, other bodies abort
///               └──abort────> ended: failed     the drain timeout of the host has expired
///   dropped before the end: client gone         dropping the lease stops the engine's work
/// ```
pub(crate) struct ResponseBody {
    first: Option<Bytes>,
    rest: Option<EngineBody>,
    watch: Option<StreamWatch>,
    /// The tail of a body that is not a stream, if its token usage is needed.
    tail: Option<BodyTail>,
    status: StatusCode,
    lane: String,
    lease: Option<Lease>,
    tracker: RequestTracker,
    abort_signal: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = EngineError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let this = &mut *self;
        loop {
            if let Some(first) = this.first.take() {
                let data = this.observe(first);
                // hyper does not poll for the end of a body of known length, because it counts.
                if this.watch.is_none() && this.rest.as_ref().is_some_and(EngineBody::is_end_stream)
                {
                    this.complete();
                }
                if let Some(data) = data {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                continue;
            }
            let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
            match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.first = Some(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return this.abort(error),
                Poll::Ready(None) => return this.ended(),
                // Polled last, so that a body that is complete is never aborted.
                Poll::Pending => {
                    std::task::ready!(this.abort_signal.as_mut().poll(cx));
                    return this.abort(EngineError::Aborted);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match (&self.watch, &self.rest) {
            (None, Some(rest)) => {
                let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
                rest.size_hint()
                    .exact()
                    .map(|rest| http_body::SizeHint::with_exact(rest + first))
                    .unwrap_or_default()
            }
            // A stream may grow by an error event.
            _ => http_body::SizeHint::default(),
        }
    }
}

impl ResponseBody {
    /// Creates the body and notes the first byte.
    pub(crate) fn new(
        gateway: &Gateway,
        response: EngineResponse,
        mut tracker: RequestTracker,
    ) -> Self {
        tracker.first_byte(response.status);
        let watch = response.is_stream().then(StreamWatch::default);
        let tail = (watch.is_none() && tracker.needs_usage()).then(BodyTail::default);
        let EngineResponse { lane, lease, status, first, rest, .. } = response;
        let abort_signal = Box::pin(gateway.abort.clone().cancelled_owned());
        Self {
            first,
            rest: Some(rest),
            watch,
            tail,
            status,
            lane,
            lease: Some(lease),
            tracker,
            abort_signal,
        }
    }

    /// Inspects a chunk and returns what of it is passed on to the client.
    fn observe(&mut self, data: Bytes) -> Option<Bytes> {
        let data = match &mut self.watch {
            Some(watch) => watch.chunk(data),
            None => data,
        };
        if let Some(tail) = &mut self.tail {
            tail.chunk(&data);
        }
        (!data.is_empty()).then_some(data)
    }

    /// Ends the response after the engine's body has ended.
    fn ended(&mut self) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let end = self.watch.as_ref().map_or(StreamEnd::Complete, StreamWatch::end);
        match end {
            StreamEnd::Complete => {
                self.complete();
                Poll::Ready(None)
            }
            // The client has received the engine's own error event, so no event is appended.
            StreamEnd::Failed => {
                let failure = Failure {
                    status: None,
                    code: None,
                    error: &"engine reported an error in the middle of the stream",
                    abort_cause: None,
                    is_severe: true,
                };
                self.fail(AttemptResult::ServerError, true, false, &failure);
                Poll::Ready(None)
            }
            StreamEnd::Unfinished { .. } => self.abort(EngineError::Unfinished),
        }
    }

    /// Aborts the response: with an error event if it is a stream, else by closing the connection.
    fn abort(&mut self, error: EngineError) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let event = self.watch.as_ref().map(|watch| {
            let mid_frame = matches!(watch.end(), StreamEnd::Unfinished { mid_frame: true });
            let message = format!("lane `{}`: {error}", self.lane);
            error_event(&error::body(ErrorCode::EngineError, message), mid_frame)
        });
        // What the host aborts is not the engine's failure.
        let blame = !matches!(error, EngineError::Aborted | EngineError::Evicted);
        let failure = Failure {
            status: None,
            // Only an event carries a code to the client.
            code: event.as_ref().map(|_| ErrorCode::EngineError.as_str()),
            error: &error,
            abort_cause: Some(attempt::cause_of(&error)),
            is_severe: true,
        };
        self.fail(attempt::result_of(&error), blame, error.is_severed(), &failure);
        Poll::Ready(Some(event.map(Frame::data).ok_or(error)))
    }

    /// Ends the response after the engine's whole body was passed on.
    fn complete(&mut self) {
        if self.status.is_success() {
            self.release(false, false);
            self.tracker.complete();
            return;
        }
        let is_client_error = self.status.is_client_error();
        let result =
            if is_client_error { AttemptResult::Other } else { AttemptResult::ServerError };
        let failure = Failure {
            status: None,
            code: None,
            error: &format_args!("engine returned status {}", self.status.as_u16()),
            abort_cause: None,
            is_severe: !is_client_error,
        };
        self.fail(result, !is_client_error, false, &failure);
    }

    fn fail(&mut self, result: AttemptResult, blame: bool, severed: bool, failure: &Failure<'_>) {
        // A failure that follows from an invalid request is not the engine's.
        self.release(blame && !self.status.is_client_error(), severed);
        self.tracker.fail(result, failure);
    }

    /// Releases the lease, and with it the slot, and notes the token usage.
    fn release(&mut self, blame: bool, severed: bool) {
        self.rest = None;
        self.note_usage();
        if let Some(lease) = self.lease.take() {
            lease.finish(blame, severed);
        }
    }

    fn note_usage(&mut self) {
        let usage = match (&self.watch, &self.tail) {
            (Some(watch), _) => watch.usage(),
            (None, tail) => tail.as_ref().and_then(BodyTail::usage),
        };
        if let Some(usage) = usage {
            self.tracker.set_usage(usage);
        }
    }
}

impl Drop for ResponseBody {
    /// Notes the usage. Many clients disconnect as soon as they have what they need, which may be
    /// the whole response.
    fn drop(&mut self) {
        self.note_usage();
    }
}
