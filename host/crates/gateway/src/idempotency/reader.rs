//! The response of an execution, as one client reads it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use pointsman_openai::ErrorForm;

use super::buffer::Next;
use super::execution::Execution;
use crate::error::RouteError;

/// The header of a response that was not made for this request.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A reader of a response, from its beginning.
pub(super) struct Reader {
    execution: Arc<Execution>,
    number: u64,
    /// Bytes that are left, if the length is known.
    left: Option<u64>,
}

/// The response cannot be completed.
#[derive(Debug, thiserror::Error)]
#[error("the response of the original request was aborted")]
pub(super) struct Aborted;

impl Reader {
    /// `number` is the one that the execution has given to the reader.
    pub(super) fn new(execution: Arc<Execution>, number: u64) -> Self {
        Self { execution, number, left: None }
    }

    /// Returns the response, once it has begun.
    pub(super) async fn response(mut self, is_replay: bool) -> Response {
        let head = poll_fn(|cx| self.execution.poll_head(self.number, cx)).await;
        let Some(head) = head else {
            // The execution has panicked: all other ends that a reader sees have a response.
            let request_id = String::new();
            return RouteError::Internal { request_id }.into_untracked_response(ErrorForm::OpenAi);
        };
        self.left = head.length;
        let mut response = Response::new(Body::new(self));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if let Some(length) = head.engine_length {
            response.extensions_mut().insert(length);
        }
        if is_replay {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        Poll::Ready(match ready!(self.execution.poll_next(self.number, cx)) {
            Next::Data(data) => {
                // Saturates if the engine sends more than it has announced.
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Next::Complete => None,
            Next::Broken => Some(Err(Aborted)),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.execution.leave(self.number);
    }
}
