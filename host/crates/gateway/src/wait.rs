//! Long waits that clients survive. While a lane is loaded for a request, minutes may pass; clients and load balancers give
//! up after 30 to 60 s without a byte. A client that streams gets its answer's head early and a comment now and then, which
//! by the rules of server-sent events says nothing.
//!
//! ```text
//!   waiting ──every interval──> ": keep-alive"
//!      │ the engine answers                      │ it fails, or the host stops
//!      └──────────> the answer's own bytes       └──────────> an error event, and no [DONE]
//! ```
//!
//! The price is the status: it is 200 before it is known what becomes of the request. So this begins only after the
//! interval, and everything quicker has a status of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;
use pointsman_domain::AttemptResult;
use pointsman_fleet::EngineError;
use pointsman_openai::{EngineFailure, ErrorBody, error_event};
use tokio::time::{Interval, MissedTickBehavior};

use crate::Gateway;
use crate::attempt::Answer;
use crate::serve::CarriedOut;
use crate::stream::{AnswerBody, POLICY, REASON, visible};

const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Tells nginx not to hold back what comes (its `proxy_buffering`).
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

type Work = Pin<Box<dyn Future<Output = CarriedOut> + Send>>;

/// The body of an answer that is still waited for.
pub(crate) struct WaitingBody {
    gateway: Arc<Gateway>,
    state: State,
    every: Interval,
}

enum State {
    Waiting(Work),
    Answering(Box<AnswerBody>),
    Ended,
}

impl WaitingBody {
    /// Wait for `work`, which ends at the latest when the host does, with a comment now and after each interval.
    pub(crate) fn new(gateway: Arc<Gateway>, work: Work, interval: Duration) -> Self {
        let mut every = tokio::time::interval(interval);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { gateway, state: State::Waiting(work), every }
    }

    /// The response that begins with it.
    pub(crate) fn into_response(self, by: &str, why: Option<&str>) -> Response {
        let mut response = Response::new(Body::new(self));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        for (name, value) in [(POLICY, Some(by)), (REASON, why)] {
            if let Some(value) = value.and_then(visible) {
                headers.insert(name, value);
            }
        }
        response
    }

    /// The request was carried out: its answer follows, or the last words.
    fn carried_out(&mut self, done: CarriedOut) -> Option<Bytes> {
        let CarriedOut { result, decided, mut accepted } = done;
        match result {
            Ok(answer) if answer.is_stream() => {
                self.state =
                    State::Answering(Box::new(AnswerBody::new(&self.gateway, answer, accepted)));
                None
            }
            Ok(answer) => {
                let client_error = answer.status.is_client_error();
                accepted.failed(if client_error {
                    AttemptResult::Other
                } else {
                    AttemptResult::ServerError
                });
                Some(no_stream(answer))
            }
            Err(error) => {
                accepted.failed(error.result());
                Some(error.into_event(&decided.id))
            }
        }
    }
}

/// The engine answered, but not with a stream: most likely with an error of the client's.
fn no_stream(answer: Answer) -> Bytes {
    let said = EngineFailure::read(answer.first.as_deref().unwrap_or_default()).message;
    let status = answer.status.as_u16();
    let error = match said {
        Some(said) if answer.status.is_client_error() => ErrorBody::invalid_request(&said),
        Some(said) => {
            ErrorBody::engine_failed(&answer.lane, &format!("the engine answered {status}: {said}"))
        }
        None => ErrorBody::engine_failed(
            &answer.lane,
            &format!("the engine answered {status} and no stream"),
        ),
    };
    answer.lease.finish(answer.status.is_server_error(), false);
    error_event(&error, false)
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
            let work = match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Answering(answer) => return Pin::new(&mut **answer).poll_frame(cx),
                State::Waiting(work) => work,
            };
            let last_words = if let Poll::Ready(done) = work.as_mut().poll(cx) {
                this.state = State::Ended;
                match this.carried_out(done) {
                    None => continue,
                    Some(last_words) => last_words,
                }
            } else if this.every.poll_tick(cx).is_ready() {
                COMMENT
            } else {
                return Poll::Pending;
            };
            return Poll::Ready(Some(Ok(Frame::data(last_words))));
        }
    }
}
