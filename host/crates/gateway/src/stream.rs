//! The response on its way to the client: bytes are passed on as they arrive, the lease is held
//! until the last of them, and the outcome is recorded at the end.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{StatusCode, header};
use http_body::Frame;
use pointsman_domain::request_flow::{EngineFailure, Event};
use pointsman_fleet::{EngineBody, EngineError};
use pointsman_openai::{StreamEnd, StreamWatch};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::Span;

use crate::attempt::EngineResponse;
use crate::error_response;
use crate::execute::ExecutionResult;
use crate::failure::{cause_of, engine_code, engine_failure};
use crate::headers::{self, ATTEMPTS, EngineLength, FromEngine, LANE, to_header_value};
use crate::request_tracker::{Failure, RequestTracker};
use crate::rewrite::Rewrite;
use crate::unwatched::Unwatched;

/// Returns the client's response after the execution of a decision.
pub(crate) fn into_response(done: ExecutionResult) -> Response {
    let ExecutionResult { result, decision, mut tracker } = done;
    let engine_response = match result {
        Ok(response) => response,
        Err(error) => return tracker.error_response(&error),
    };
    let mut headers = headers::for_client(&engine_response.headers);
    let mut length = None;
    if engine_response.watch.is_some() || engine_response.rewrite.is_some() {
        // An error event may have to be appended, and another name may have another length.
        length = headers.remove(header::CONTENT_LENGTH);
    }
    let lane = to_header_value(&engine_response.lane).map(|lane| (LANE, lane));
    for (name, value) in lane.into_iter().chain(decision.attribution.headers()) {
        headers.insert(name, value);
    }
    let attempts = tracker.flow().attempt_count();
    if attempts > 1 {
        headers.insert(ATTEMPTS, attempts.into());
    }
    let status = engine_response.status;
    let span = tracker.span().clone();
    let body = ResponseBody::new(engine_response, tracker);
    let mut response = Response::new(Body::new(InSpan::new(span, body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.extensions_mut().insert(FromEngine);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if let Some(length) = length {
        response.extensions_mut().insert(EngineLength(length));
    }
    response
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
///               └──abort────> ended: failed     the drain timeout of the host has expired, or the
///                                               operator has cancelled the request
///   a stream that is over (`[DONE]`, or the engine's own error event) gets no event behind it
///   dropped before the end: client gone         dropping the lease stops the engine's work
/// ```
pub(crate) struct ResponseBody {
    first: Option<Bytes>,
    rest: Option<EngineBody>,
    watch: Option<StreamWatch>,
    /// What is changed after it was observed.
    rewrite: Option<Rewrite>,
    /// The engine's body has ended, and only what was held of it is still to be passed on.
    is_last: bool,
    /// What is read of a body that is not watched, if its token usage is needed.
    unwatched: Option<Unwatched>,
    status: StatusCode,
    lane: String,
    // After `rest`: the connection to the engine is closed before its slot is released.
    tracker: Box<RequestTracker>,
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
                // hyper does not poll for the end of a body of known length, because it counts.
                if this.watch.is_none()
                    && !this.may_hold()
                    && this.rest.as_ref().is_none_or(EngineBody::is_end_stream)
                {
                    this.complete();
                }
                return Poll::Ready(Some(Ok(Frame::data(first))));
            }
            let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
            if this.is_last {
                return this.ended();
            }
            // Nothing that follows an engine's error event is passed on.
            if this.watch.as_ref().is_some_and(StreamWatch::is_muted) {
                this.end_of_data();
                continue;
            }
            match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.first = this.observe(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return this.abort(error),
                Poll::Ready(None) => this.end_of_data(),
                // Polled last, so that a body that is complete is never aborted.
                Poll::Pending => {
                    std::task::ready!(this.abort_signal.as_mut().poll(cx));
                    let is_cancelled = this.tracker.in_flight().is_cancelled();
                    return this.abort(match is_cancelled {
                        true => EngineError::Cancelled,
                        false => EngineError::Aborted,
                    });
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let rest = self.rest.as_ref().map_or(Some(0), |rest| rest.size_hint().exact());
        // A stream may grow by an error event, and the rest of a body by another name.
        if self.watch.is_some() || self.may_hold() || (self.rewrite.is_some() && rest != Some(0)) {
            return http_body::SizeHint::default();
        }
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        rest.map(|rest| http_body::SizeHint::with_exact(rest + first)).unwrap_or_default()
    }
}

impl ResponseBody {
    /// Creates the body of an engine's response.
    pub(crate) fn new(response: EngineResponse, tracker: Box<RequestTracker>) -> Self {
        let EngineResponse { lane, status, headers, watch, first, rest, rewrite } = response;
        let unwatched = (watch.is_none() && tracker.needs_usage())
            .then(|| Unwatched::new(status, &headers, tracker.metering.counted_path()));
        let abort = tracker.in_flight().abort().clone();
        let abort_signal = Box::pin(abort.cancelled_owned());
        let (first_data, first) = (first, None);
        let is_last = false;
        let mut body = Self {
            first,
            rest,
            watch,
            rewrite,
            is_last,
            unwatched,
            status,
            lane,
            tracker,
            abort_signal,
        };
        // The observer has seen it already.
        body.first = first_data.and_then(|data| body.pass_on(data));
        body
    }

    /// Returns true if something may still be passed on after the engine's body: a translation
    /// holds what it needs the rest for.
    fn may_hold(&self) -> bool {
        !self.is_last && matches!(self.rewrite, Some(Rewrite::Translation(_)))
    }

    /// Inspects a chunk and returns what of it is passed on to the client.
    fn observe(&mut self, mut data: Bytes) -> Option<Bytes> {
        if let Some(watch) = &mut self.watch {
            let before = watch.content_bytes();
            data = watch.chunk(data);
            let has_content = watch.content_bytes() > before;
            self.tracker.in_flight().set_tokens(watch.content_events());
            if let Some(rest) = self.rest.as_mut().filter(|_| has_content) {
                rest.report_data();
            }
        }
        self.pass_on(data)
    }

    /// Returns what of an observed chunk is passed on to the client.
    fn pass_on(&mut self, mut data: Bytes) -> Option<Bytes> {
        if let Some(unwatched) = &mut self.unwatched {
            unwatched.chunk(&data);
        }
        if let Some(rewrite) = &mut self.rewrite {
            data = rewrite.chunk(data);
        }
        self.tracker.add_response_bytes(data.len());
        (!data.is_empty()).then_some(data)
    }

    /// Lets what is still held of the body be passed on, and then the body end.
    fn end_of_data(&mut self) {
        self.is_last = true;
        let end = self.watch.as_mut().map_or(StreamEnd::Complete, StreamWatch::end_of_body);
        self.first = self.held(end == StreamEnd::Complete);
    }

    /// Returns what is still held of the body.
    fn held(&mut self, is_complete: bool) -> Option<Bytes> {
        let held = self.rewrite.as_mut().map(|rewrite| rewrite.finish(is_complete));
        held.filter(|held| !held.is_empty())
    }

    /// Ends the response after the engine's body has ended.
    fn ended(&mut self) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let end = self.watch.as_mut().map_or(StreamEnd::Complete, StreamWatch::end_of_body);
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
                self.fail(EngineFailure::ErrorEvent, &failure);
                Poll::Ready(None)
            }
            StreamEnd::Unfinished { .. } => self.abort(EngineError::Unfinished),
        }
    }

    /// Aborts the response: with an error event if it is a stream, else by closing the connection.
    /// A stream that is over ends as it is.
    fn abort(&mut self, error: EngineError) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let is_over = self.watch.as_ref().is_some_and(StreamWatch::is_over);
        let held = self.held(is_over).unwrap_or_default();
        // Never calls this function again: what is over is not unfinished.
        if is_over {
            self.is_last = true;
            return match held.is_empty() {
                true => self.ended(),
                false => Poll::Ready(Some(Ok(Frame::data(held)))),
            };
        }
        let code = engine_code(&error);
        let event = self.watch.as_ref().map(|watch| {
            let mid_frame = matches!(watch.end(), StreamEnd::Unfinished { mid_frame: true });
            let message = format!("lane `{}`: {error}", self.lane);
            let form = self.tracker.error_form();
            let event = form.event(&error_response::body(code, message), mid_frame);
            if held.is_empty() { event } else { [held, event].concat().into() }
        });
        let failure = Failure {
            status: None,
            // Only an event carries a code to the client.
            code: event.as_ref().map(|_| code.as_str()),
            error: &error,
            abort_cause: Some(cause_of(&error)),
            is_severe: true,
        };
        self.fail(engine_failure(&error), &failure);
        Poll::Ready(Some(event.map(Frame::data).ok_or(error)))
    }

    /// Ends the response after the engine's whole body was passed on.
    fn complete(&mut self) {
        self.end(Event::Completed);
        let failure = Failure {
            status: None,
            code: None,
            error: &format_args!("engine returned status {}", self.status.as_u16()),
            abort_cause: None,
            is_severe: !self.status.is_client_error(),
        };
        self.tracker.report(Some(&failure).filter(|_| !self.status.is_success()));
    }

    fn fail(&mut self, engine_failure: EngineFailure, failure: &Failure<'_>) {
        self.tracker.note_failed_response();
        self.end(Event::Failed(engine_failure));
        self.tracker.report(Some(failure));
    }

    /// Closes the connection to the engine, and feeds the end of the response to the flow, which
    /// releases the slot.
    fn end(&mut self, event: Event<'_>) {
        self.rest = None;
        self.note_usage();
        self.tracker.on(event);
    }

    fn note_usage(&mut self) {
        let (usage, at_least) = match (&self.watch, &self.unwatched) {
            (Some(watch), _) => (watch.usage(), watch.content_events()),
            (None, Some(unwatched)) => (unwatched.usage(), unwatched.output_tokens()),
            (None, None) => (None, 0),
        };
        match usage {
            Some(usage) => self.tracker.set_usage(usage),
            None => self.tracker.set_output_tokens(at_least),
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
