//! One attempt on one lane: acquire a lease, send the request, and wait for the first byte.
//!
//! Until the first byte arrives, nothing has been sent to the client and the request can still go
//! to another lane. From then on the response belongs to the client.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::BodyExt;
use pointsman_domain::dispatch::{AcquireError, FlowId};
use pointsman_domain::{
    AttemptCursor, AttemptResult, FailureClass, Plan, RequestView as _, Step, Trigger,
};
use pointsman_fleet::{EngineBody, EngineError, Lease};
use pointsman_openai::{EngineErrorBody, Request};
use tokio::time::Instant;

use crate::error::RETRY_LOST_ENGINE;
use crate::error_code::ErrorCode;
use crate::request_tracker::RequestTracker;
use crate::serve::{RoutingDecision, apply};
use crate::{Gateway, request_id};

/// Bytes of an engine's error body that are read for its message. Longer bodies have none.
const MAX_ERROR_BODY: usize = 64 << 10;

/// An engine's response, of which the first byte has arrived.
#[derive(Debug)]
pub(crate) struct EngineResponse {
    pub(crate) lane: String,
    pub(crate) lease: Lease,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
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

/// The reason why an attempt failed. Nothing has been sent to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The lane granted no slot.
    #[error(transparent)]
    Acquire(AcquireError),
    /// The engine could not be reached, or its response was interrupted.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine returned an error that another lane might not return.
    #[error("engine returned status {}", .status.as_u16())]
    Status {
        status: StatusCode,
        /// The engine's own message. Not part of the error's message, because it may quote the
        /// prompt.
        message: Option<String>,
        /// `Retry-After` of the engine, in seconds.
        retry_after: Option<u64>,
    },
    /// The first byte did not arrive within the plan's or the lane's timeout.
    #[error("engine sent no first byte within {} ms", .0.as_millis())]
    FirstByteTimeout(Duration),
}

impl AttemptError {
    /// Returns the trigger for the plan's fallback; `None` if no other lane may help.
    pub(crate) fn trigger(&self) -> Option<Trigger> {
        match self {
            Self::Acquire(error) => FailureClass::from(error).trigger,
            Self::Engine(error) => Some(error.trigger()),
            Self::Status { status, .. } if is_overloaded(*status) => Some(Trigger::Overloaded),
            Self::Status { .. } => Some(Trigger::ServerError),
            Self::FirstByteTimeout(_) => Some(Trigger::FirstTokenTimeout),
        }
    }

    /// Returns true if the failure counts against the lane. An engine that is overloaded works as
    /// intended, and so does one whose response the host aborted.
    fn blames_engine(&self) -> bool {
        match self {
            Self::Acquire(_) | Self::Engine(EngineError::Aborted | EngineError::Evicted) => false,
            Self::Status { status, .. } => *status != StatusCode::TOO_MANY_REQUESTS,
            Self::Engine(_) | Self::FirstByteTimeout(_) => true,
        }
    }

    fn is_severed(&self) -> bool {
        matches!(self, Self::Engine(error) if error.is_severed())
    }

    /// Returns what the attempt cursor needs to know about the failure.
    pub(crate) fn class(&self) -> FailureClass {
        let safe_to_resend = match self {
            Self::Acquire(error) => FailureClass::from(error).safe_to_resend,
            Self::Engine(error) => matches!(error, EngineError::Connect { .. }),
            Self::Status { .. } | Self::FirstByteTimeout(_) => false,
        };
        FailureClass { trigger: self.trigger(), safe_to_resend }
    }

    /// Returns the result of the attempt, for policies and records.
    pub(crate) fn result(&self) -> AttemptResult {
        match self {
            Self::Engine(error) => result_of(error),
            _ => self.trigger().map_or(AttemptResult::Other, AttemptResult::from),
        }
    }

    /// Returns the HTTP status of the engine's response; 0 if there was none.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Status { status, .. } => status.as_u16(),
            Self::Acquire(_) | Self::Engine(_) | Self::FirstByteTimeout(_) => 0,
        }
    }

    /// Returns the code for the client, if this was the last attempt.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Acquire(error) => match error {
                AcquireError::QueueFull { .. } => ErrorCode::QueueFull,
                AcquireError::TimedOut { .. } | AcquireError::DeadlineTooEarly { .. } => {
                    ErrorCode::QueueTimeout
                }
                AcquireError::UnknownLane
                | AcquireError::NotServing { .. }
                | AcquireError::NotLoaded
                | AcquireError::LoadFailed { .. }
                | AcquireError::CircuitOpen { .. }
                | AcquireError::Closing => ErrorCode::NoLaneAvailable,
            },
            Self::Engine(error) => match error {
                EngineError::Evicted => ErrorCode::NoLaneAvailable,
                EngineError::IdleTimeout { .. } => ErrorCode::EngineTimeout,
                EngineError::Connect { .. }
                | EngineError::Broken { .. }
                | EngineError::Unfinished
                | EngineError::Aborted => ErrorCode::EngineError,
            },
            Self::Status { status, .. } if is_overloaded(*status) => ErrorCode::EngineOverloaded,
            Self::Status { .. } => ErrorCode::EngineError,
            Self::FirstByteTimeout(_) => ErrorCode::EngineTimeout,
        }
    }

    /// Returns when the client should retry; `None` if its code has no `Retry-After`.
    pub(crate) fn retry_in(&self) -> Option<Duration> {
        let estimate = match self {
            Self::Acquire(error) => match error {
                AcquireError::QueueFull { retry_in, .. }
                | AcquireError::TimedOut { retry_in, .. }
                | AcquireError::DeadlineTooEarly { estimate: retry_in }
                | AcquireError::NotServing { retry_in, .. }
                | AcquireError::LoadFailed { retry_in, .. }
                | AcquireError::CircuitOpen { retry_in } => Some(*retry_in),
                AcquireError::UnknownLane | AcquireError::NotLoaded | AcquireError::Closing => None,
            },
            Self::Status { retry_after, .. } => retry_after.map(Duration::from_secs),
            Self::Engine(_) | Self::FirstByteTimeout(_) => None,
        };
        self.code().has_retry_after().then(|| estimate.unwrap_or(RETRY_LOST_ENGINE))
    }

    fn label(&self) -> &'static str {
        self.trigger().map_or("closing", |trigger| AttemptResult::from(trigger).label())
    }
}

/// Returns the result of an attempt that ended with this error. An abort by the host is not a
/// failure of the engine.
pub(crate) fn result_of(error: &EngineError) -> AttemptResult {
    match error {
        EngineError::Aborted => AttemptResult::Other,
        _ => error.trigger().into(),
    }
}

/// Returns the name of the error's variant, for the log.
pub(crate) fn cause_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Connect { .. } => "connect",
        EngineError::Broken { .. } => "broken",
        EngineError::IdleTimeout { .. } => "idle_timeout",
        EngineError::Unfinished => "unfinished",
        EngineError::Aborted => "aborted",
        EngineError::Evicted => "evicted",
    }
}

/// Attempts the cursor's current lane, for at most `left`.
///
/// # Errors
/// If the lane grants no slot in time, or the engine fails before its first byte.
pub(crate) async fn attempt(
    gateway: &Gateway,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    cursor: &AttemptCursor,
    left: Duration,
) -> Result<EngineResponse, AttemptError> {
    let RoutingDecision { plan, request, .. } = decision;
    let step = cursor.step();
    let tenant = FlowId::from_name(request.tenant().unwrap_or(""));
    let slot_request = cursor.slot_request(tenant, left);
    let started = Instant::now();
    let acquired = gateway.fleet.acquire(slot_request).await;
    tracker.end_wait();
    let result = match acquired {
        // Boxed, because its state takes some kilobytes that a queued request does not need yet.
        Ok(lease) => {
            // Saturating, because the wait may have taken longer than the deadline.
            let left = left.saturating_sub(started.elapsed());
            Box::pin(send(lease, plan, step, request, left)).await
        }
        Err(error) => Err(AttemptError::Acquire(error)),
    };
    let label = result.as_ref().map_or_else(AttemptError::label, |_| "ok");
    gateway.metrics.attempted(decision.fleet.topology.name(step.lane), label);
    result
}

async fn send(
    mut lease: Lease,
    plan: &Plan,
    step: &Step,
    request: &Request,
    left: Duration,
) -> Result<EngineResponse, AttemptError> {
    let request = apply(request, &step.edits);
    // The plan limits the time to the first token, which can only be observed in a stream.
    let timeout =
        plan.first_token.filter(|_| request.streaming()).unwrap_or(lease.first_byte_timeout());
    let timeout = timeout.min(left);
    let received = match tokio::time::timeout(timeout, first_byte(&lease, &request)).await {
        Ok(received) => received,
        Err(_) => Err(AttemptError::FirstByteTimeout(timeout)),
    };
    match received {
        Ok((head, first, rest)) => {
            lease.first_byte();
            let lane = lease.lane_name().to_owned();
            let (status, headers) = (head.status, head.headers);
            Ok(EngineResponse { lane, lease, status, headers, first, rest })
        }
        Err(error) => {
            lease.finish(error.blames_engine(), error.is_severed());
            Err(error)
        }
    }
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
    let (head, mut body) = response.into_parts();
    if is_overloaded(head.status) || head.status.is_server_error() {
        let retry_after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let message = EngineErrorBody::read(&error_body(body).await).message;
        return Err(AttemptError::Status { status: head.status, message, retry_after });
    }
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

/// Returns true if the status means that the engine may accept the request a moment later.
fn is_overloaded(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Reads an engine's error body; empty if it is too long or cannot be read.
async fn error_body(body: EngineBody) -> Bytes {
    let collected = http_body_util::Limited::new(body, MAX_ERROR_BODY).collect().await;
    // The status alone describes the failure; a missing message is not worth another error.
    collected.map(http_body_util::Collected::to_bytes).unwrap_or_default()
}

/// Returns the client's headers without those that concern its connection to the host.
/// Credentials were removed when the request was parsed, and a compressed response could not be
/// inspected.
fn headers_for_engine(request: &Request) -> HeaderMap {
    let mut headers = request.headers().clone();
    for name in HOP_BY_HOP.iter().chain(&[
        header::HOST,
        header::CONTENT_LENGTH,
        header::ACCEPT_ENCODING,
        header::EXPECT,
    ]) {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    request_id::set(&mut headers, request.id());
    headers
}

/// Headers that concern a single connection (RFC 9110 section 7.6.1).
pub(crate) const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
