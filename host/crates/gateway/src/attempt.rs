//! One attempt on one lane: acquire a lease, send the request, and wait for the first byte.
//!
//! Until the first byte arrives, nothing has been sent to the client and the request can still go
//! to another lane. From then on the response belongs to the client.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::{RequestView as _, SlotRequest};
use pointsman_fleet::{EngineBody, Fleet, Lease};
use pointsman_openai::{EndpointShape, Request, StreamKind};

use crate::decision::apply;
use crate::engine_status::check_status;
use crate::failure::AttemptError;
use crate::request_tracker::RequestTracker;
use crate::{headers, request_id};

/// An engine's response, of which the first byte has arrived.
#[derive(Debug)]
pub(crate) struct EngineResponse {
    pub(crate) lane: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// How the body is structured if it is a stream.
    pub(crate) kind: StreamKind,
    /// The first chunk of the body; `None` if the body is empty.
    pub(crate) first: Option<Bytes>,
    /// The remaining body.
    pub(crate) rest: EngineBody,
}

impl EngineResponse {
    /// Returns true if the body consists of server-sent events.
    pub(crate) fn is_stream(&self) -> bool {
        let content_type = self.headers.get(header::CONTENT_TYPE);
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
    }
}

/// Makes one attempt: waits for the slot, sends the request and awaits the first byte. The tracker
/// learns of each success; a failure is for the caller to feed to it.
///
/// # Errors
/// If the lane grants no slot in time, or the engine fails before its first byte.
pub(crate) async fn attempt(
    fleet: &Fleet,
    request: &Request,
    tracker: &mut RequestTracker,
    slot_request: SlotRequest,
) -> Result<EngineResponse, AttemptError> {
    tracker.record_attempt();
    let lease = fleet.acquire(slot_request).await.map_err(AttemptError::Acquire)?;
    // Boxed, because its state takes some kilobytes that a queued request does not need yet.
    Box::pin(send(tracker, lease, request)).await
}

async fn send(
    tracker: &mut RequestTracker,
    lease: Lease,
    request: &Request,
) -> Result<EngineResponse, AttemptError> {
    let request = apply(request, tracker.flow().step_edits());
    let lane = lease.lane_name().to_owned();
    let Some((lease, timeout)) = tracker.grant(lease, request.streaming()) else {
        // Never: a request that waits accepts a slot.
        return Err(AttemptError::Acquire(AcquireError::Closing));
    };
    let received = tokio::time::timeout(timeout, first_byte(lease, &request)).await;
    let (head, first, rest) = received.unwrap_or(Err(AttemptError::FirstByteTimeout(timeout)))?;
    tracker.first_byte(head.status, &request);
    let kind = EndpointShape::for_endpoint(request.endpoint()).stream;
    Ok(EngineResponse { lane, status: head.status, headers: head.headers, kind, first, rest })
}

async fn first_byte(
    lease: &Lease,
    request: &Request,
) -> Result<(http::response::Parts, Option<Bytes>, EngineBody), AttemptError> {
    let path = request.endpoint().path().unwrap_or("/");
    let body = match lease.engine_model() {
        Some(model) => request.body_with_model(model),
        None => request.body().clone(),
    };
    let response = lease.send(path, headers_for_engine(request), body).await?;
    let (head, mut body) = check_status(lease, response).await?.into_parts();
    loop {
        match body.frame().await.transpose()? {
            None => return Ok((head, None, body)),
            Some(frame) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok((head, Some(data), body)),
                // Empty frames and trailers are not a first byte.
                _ => {}
            },
        }
    }
}

/// Returns the headers of a request to an engine.
fn headers_for_engine(request: &Request) -> HeaderMap {
    let mut headers = headers::for_engine(request.headers());
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    request_id::set(&mut headers, request.id());
    headers
}
