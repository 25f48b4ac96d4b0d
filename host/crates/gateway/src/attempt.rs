//! One try of one lane: lease, send, look at the answer up to its first byte. Until then the request can still go to
//! another lane; from then on it is the client's.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::BodyExt;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::{
    AttemptCursor, AttemptResult, FailureClass, Plan, RequestView as _, Step, Trigger,
};
use pointsman_fleet::{EngineBody, EngineError, Lease};
use pointsman_openai::Request;
use tokio::time::Instant;

use crate::account::Accepted;
use crate::serve::{Decided, apply};
use crate::{Gateway, request_id};

/// An answer whose first byte is at hand.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) lane: String,
    pub(crate) lease: Lease,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The first piece of the body; `None` for an empty one.
    pub(crate) first: Option<Bytes>,
    /// The rest of it.
    pub(crate) rest: EngineBody,
}

impl Answer {
    /// Is it one of server-sent events?
    pub(crate) fn is_stream(&self) -> bool {
        let content_type = self.headers.get(header::CONTENT_TYPE);
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
    }
}

/// Why a try failed. Nothing has been sent to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The lane gave no slot.
    #[error("{0}")]
    Refused(AcquireError),
    /// The engine could not be reached, or broke off.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The engine answered with an error that another lane might not make.
    #[error("the engine answered {status}")]
    Status { status: StatusCode, body: Bytes, retry_after: Option<u64> },
    /// The first byte took longer than the plan allows.
    #[error("no first byte within {} ms", .0.as_millis())]
    FirstByte(Duration),
}

impl Failed {
    /// The event that this is for the plan; `None` where no other lane may help.
    pub(crate) fn trigger(&self) -> Option<Trigger> {
        match self {
            Self::Refused(refusal) => FailureClass::from(refusal).trigger,
            Self::Engine(error) => Some(error.trigger()),
            Self::Status { status, .. } if overloaded(*status) => Some(Trigger::Overloaded),
            Self::Status { .. } => Some(Trigger::ServerError),
            Self::FirstByte(_) => Some(Trigger::FirstTokenTimeout),
        }
    }

    /// Does it count against the lane? An engine that is full does its best, and one that we cut off did, too.
    fn blames_the_engine(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Engine(EngineError::Aborted | EngineError::Evicted) => false,
            Self::Status { status, .. } => *status != StatusCode::TOO_MANY_REQUESTS,
            Self::Engine(_) | Self::FirstByte(_) => true,
        }
    }

    fn is_severed(&self) -> bool {
        matches!(self, Self::Engine(error) if error.is_severed())
    }

    /// What matters of it for the way of the request.
    pub(crate) fn failing(&self) -> FailureClass {
        let safe_to_resend = match self {
            Self::Refused(refusal) => FailureClass::from(refusal).safe_to_resend,
            Self::Engine(error) => matches!(error, EngineError::Connect(_)),
            Self::Status { .. } | Self::FirstByte(_) => false,
        };
        FailureClass { trigger: self.trigger(), safe_to_resend }
    }

    /// How the try ended, for policies.
    pub(crate) fn result(&self) -> AttemptResult {
        match self {
            Self::Engine(error) => result(error),
            _ => self.trigger().map_or(AttemptResult::Other, AttemptResult::from),
        }
    }

    /// HTTP status of the engine's answer; 0 where there was none.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Status { status, .. } => status.as_u16(),
            Self::Refused(_) | Self::Engine(_) | Self::FirstByte(_) => 0,
        }
    }

    fn label(&self) -> &'static str {
        self.trigger().map_or("closing", |trigger| AttemptResult::from(trigger).label())
    }
}

/// How a try ended that ended so. What the host cut off is nobody's failure.
pub(crate) fn result(error: &EngineError) -> AttemptResult {
    match error {
        EngineError::Aborted => AttemptResult::Other,
        _ => error.trigger().into(),
    }
}

/// Try the lane at which the request is on its way, for at most `left`.
pub(crate) async fn attempt(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
    cursor: &AttemptCursor<&Plan>,
    left: Duration,
) -> Result<Answer, Failed> {
    let Decided { plan, request, .. } = decided;
    let step = cursor.step();
    let wanted = cursor.slot_request(request.tenant(), left);
    let begun = Instant::now();
    let leased = gateway.fleet.acquire(wanted).await;
    accepted.waited();
    let result = match leased {
        // Boxed, because it is some kilobytes that a request which waits need not have.
        Ok(lease) => {
            Box::pin(send(lease, plan, step, request, left.saturating_sub(begun.elapsed()))).await
        }
        Err(refusal) => Err(Failed::Refused(refusal)),
    };
    let label = result.as_ref().map_or_else(Failed::label, |_| "ok");
    gateway.metrics.attempted(decided.fleet.topology.name(step.lane), label);
    result
}

async fn send(
    mut lease: Lease,
    plan: &Plan,
    step: &Step,
    request: &Request,
    left: Duration,
) -> Result<Answer, Failed> {
    let request = apply(request, &step.edits);
    // A plan's limit is one on the first token, which only a stream shows.
    let limit =
        plan.first_token.filter(|_| request.streaming()).unwrap_or(lease.first_byte_timeout());
    let limit = limit.min(left);
    let answer = match tokio::time::timeout(limit, first_byte(&lease, &request)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failed::FirstByte(limit)),
    };
    match answer {
        Ok((head, first, rest)) => {
            lease.first_byte();
            let lane = lease.lane_name().to_owned();
            Ok(Answer { lane, lease, status: head.status, headers: head.headers, first, rest })
        }
        Err(failed) => {
            lease.finish(failed.blames_the_engine(), failed.is_severed());
            Err(failed)
        }
    }
}

async fn first_byte(
    lease: &Lease,
    request: &Request,
) -> Result<(http::response::Parts, Option<Bytes>, EngineBody), Failed> {
    let path = request.endpoint().path().unwrap_or("/");
    let body = match lease.engine_model() {
        Some(model) => request.body_with_model(model),
        None => request.body().clone(),
    };
    let answer = lease.send(path, headers_for_engine(request), body).await?;
    let (head, mut body) = answer.into_parts();
    if overloaded(head.status) || head.status.is_server_error() {
        let retry_after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let body = error_body(body).await;
        return Err(Failed::Status { status: head.status, body, retry_after });
    }
    loop {
        match body.frame().await.transpose()? {
            None => return Ok((head, None, body)),
            Some(frame) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok((head, Some(data), body)),
                _ => {}
            },
        }
    }
}

/// The engine is full, and may not be a moment later.
fn overloaded(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// What an engine says about its failure: as much of it as a client could use.
async fn error_body(body: EngineBody) -> Bytes {
    const MOST: usize = 64 * 1024;
    let collected = http_body_util::Limited::new(body, MOST).collect().await;
    collected.map(http_body_util::Collected::to_bytes).unwrap_or_default()
}

/// The client's headers as far as they concern the engine. Credentials are the router's own business, and an answer that
/// is compressed could not be watched.
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

/// Headers that concern one connection only (RFC 9110 section 7.6.1).
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
