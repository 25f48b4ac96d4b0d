//! Long waits that clients survive.
//!
//! While a lane is loaded for a request, minutes may pass; clients and load balancers give up
//! after 30 to 60 s without a byte. A client that streams gets the response head early and then a
//! comment from time to time, which server-sent events ignore by definition.
//!
//! ```text
//!   waiting ──every interval──> ": keep-alive"
//!      │ the engine responds                     │ the request fails, or the host stops
//!      └──────────> the engine's own bytes       └──────────> an error event, and no [DONE]
//! ```
//!
//! The price is the status: it is 200 before the outcome of the request is known. So this begins
//! only after the first interval, and everything faster has a status of its own.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use pointsman_domain::request_flow::{EngineFailure, Event};
use pointsman_fleet::EngineError;
use pointsman_openai::{EngineErrorBody, ErrorForm, engine_error_event};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::Span;

use crate::attempt::EngineResponse;
use crate::attribution::Attribution;
use crate::error_code::ErrorCode;
use crate::error_response;
use crate::execute::ExecutionResult;
use crate::headers::make_unbuffered;
use crate::request_tracker::{Failure, RequestTracker};
use crate::stream::{InSpan, ResponseBody};

const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");

type Execution = Pin<Box<dyn Future<Output = ExecutionResult> + Send>>;

/// The body of a response to a request that is still being executed.
pub(crate) struct WaitingBody {
    state: State,
    /// True until the comment that brings the head was sent. A timer may be late by a millisecond,
    /// in which the engine can respond.
    is_first: bool,
    interval: Interval,
}

enum State {
    Waiting(Execution),
    Responding(Box<ResponseBody>),
    Ended,
}

impl WaitingBody {
    /// Creates a body that waits for `execution`, with a comment now and after each interval. The
    /// execution ends at the latest when the host aborts what is left.
    pub(crate) fn new(execution: Execution, interval: Duration) -> Self {
        let mut interval = tokio::time::interval_at(Instant::now() + interval, interval);
        // A client that reads slowly gets no burst of comments.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { state: State::Waiting(execution), is_first: true, interval }
    }

    /// Returns the response with this body.
    pub(crate) fn into_response(self, span: Span, attribution: &Attribution) -> Response {
        let mut response = Response::new(Body::new(InSpan::new(span, self)));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        make_unbuffered(headers);
        for (name, value) in attribution.headers() {
            headers.insert(name, value);
        }
        response
    }

    /// Continues with the engine's stream, or returns the event that ends this body.
    fn on_executed(&mut self, done: ExecutionResult) -> Option<Bytes> {
        let ExecutionResult { result, mut tracker, .. } = done;
        match result {
            Ok(response) if response.watch.is_some() => {
                let body = ResponseBody::new(response, tracker);
                self.state = State::Responding(Box::new(body));
                None
            }
            Ok(response) => Some(unexpected_body(response, &mut tracker)),
            Err(error) => Some(tracker.error_event(&error)),
        }
    }
}

/// Ends a request to which the engine responded without a stream, most likely because it rejected
/// the request. The client, which expects a stream, gets the engine's error as an event, with the
/// status that the response would have had.
fn unexpected_body(response: EngineResponse, tracker: &mut RequestTracker) -> Bytes {
    let (lane, status) = (&response.lane, response.status.as_u16());
    let is_client_error = response.status.is_client_error();
    let body = response.first.as_deref().unwrap_or_default();
    let own = is_client_error.then(|| engine_error_event(body, status)).flatten();
    let message = EngineErrorBody::read(body).message.filter(|_| !is_encoded(&response));
    let code = match is_client_error && message.is_some() {
        true => ErrorCode::InvalidRequest,
        false => ErrorCode::EngineError,
    };
    // The engine's message may quote the prompt, which does not belong into the log.
    let failure = Failure {
        status: Some(StatusCode::OK.as_u16()),
        code: Some(code.as_str()),
        error: &format_args!("engine returned status {status} instead of a stream"),
        abort_cause: None,
        is_severe: !is_client_error,
    };
    tracker.note_failed_response();
    tracker.on(Event::Failed(EngineFailure::NotAStream));
    tracker.report(Some(&failure));
    let form = tracker.error_form();
    own.filter(|_| form == ErrorForm::OpenAi).unwrap_or_else(|| {
        let message = match message {
            Some(message) if is_client_error => message,
            Some(message) => format!("lane `{lane}`: engine returned status {status}: {message}"),
            None => format!("lane `{lane}`: engine returned status {status} instead of a stream"),
        };
        let status = if is_client_error { status } else { code.status().as_u16() };
        form.event(&error_response::body(code, message).with_status(status), false)
    })
}

fn is_encoded(response: &EngineResponse) -> bool {
    response.headers.contains_key(header::CONTENT_ENCODING)
}

impl http_body::Body for WaitingBody {
    type Data = Bytes;
    type Error = EngineError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        let this = &mut *self;
        loop {
            let execution = match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Responding(body) => return Pin::new(&mut **body).poll_frame(cx),
                State::Waiting(execution) => execution,
            };
            let data = if let Poll::Ready(done) = execution.as_mut().poll(cx) {
                this.state = State::Ended;
                match this.on_executed(done) {
                    None => continue,
                    Some(event) => event,
                }
            } else if mem::take(&mut this.is_first) || this.interval.poll_tick(cx).is_ready() {
                COMMENT
            } else {
                return Poll::Pending;
            };
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }
}
