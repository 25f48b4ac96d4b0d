//! Every failure becomes an OpenAI error body here, and nowhere else.
//!
//! | failure | status | `error.code` |
//! |---|---|---|
//! | no or wrong key | 401 | `invalid_api_key` |
//! | body not JSON, or not a request | 400 | by the wire crate |
//! | wrong content type | 415 | `unsupported_media_type` |
//! | body too large | 413 | `request_too_large` |
//! | unknown model | 404 | `model_not_found` |
//! | a policy refuses, at once or after a failed try | 4xx or 503 | the policy's |
//! | no lane able to serve, host stopping | 503 + `Retry-After` | `no_lane_available` |
//! | queue full | 429 + `Retry-After` | `queue_full` |
//! | waited too long in the queue | 503 + `Retry-After` | `queue_timeout` |
//! | engine full | 503 + `Retry-After` | `engine_overloaded` |
//! | engine failed | 502 | `engine_error` |
//! | engine too slow | 504 | `engine_timeout` |
//! | unknown path, wrong method | 404, 405 | `not_found`, `method_not_allowed` |
//! | an operator's order: no such policy, cannot be done, broke | 404, 409, 500 | `policy_not_found`, `refused`, `internal_error` |
//!
//! A client that has been told 200, because it streams and had to wait for long, gets the same body as an event.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::{AttemptResult, NoLane, Rejection};
use pointsman_fleet::EngineError;
use pointsman_openai::{BadRequest, EngineFailure, ErrorBody, error_event};

use crate::admin::AdminError;
use crate::attempt::Failed;
use crate::identity::Unauthorized;
use crate::stream;

/// When to try again after an engine was lost: about the time that a small engine takes to come back.
pub(crate) const RETRY_LOST_ENGINE: Duration = Duration::from_secs(5);

/// Why a request gets an error instead of an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no valid key")]
    Unauthorized,
    #[error("the content type is {0:?}")]
    ContentType(Option<String>),
    #[error("the body is longer than {most} bytes")]
    BodyTooLarge { most: usize },
    #[error("the body broke off: {0}")]
    BodyBroken(String),
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    #[error("no lane answers to the model `{model}`")]
    UnknownModel { model: String, available: Vec<String> },
    #[error("policy {by} refuses: {}", .rejection.message)]
    Rejected { by: String, rejection: Rejection },
    #[error("{reason}")]
    NoLane { reason: NoLane, retry_in: Duration },
    #[error("lane {lane}: {failed}")]
    Failed { lane: String, failed: Failed },
    #[error("the router is stopping")]
    Stopping,
    #[error("there is no {0}")]
    NotFound(String),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{0}")]
    BadCommand(String),
    #[error("the order failed in the middle; the log says why")]
    Broken,
    #[error("{method} is not allowed here")]
    Method { method: String, allowed: &'static str },
}

impl From<Unauthorized> for RouteError {
    fn from(Unauthorized: Unauthorized) -> Self {
        Self::Unauthorized
    }
}

impl RouteError {
    /// The answer to a client that has been told 200 already.
    pub(crate) fn into_event(self, id: &str) -> Bytes {
        tracing::warn!(request = id, "{self}");
        error_event(&self.answer().body, false)
    }

    /// The answer to the client; logged with the id of the request.
    pub(crate) fn into_response(self, id: &str) -> Response {
        let answer = self.answer();
        if answer.status.is_server_error() {
            tracing::warn!(request = id, status = answer.status.as_u16(), "{self}");
        } else {
            tracing::info!(request = id, status = answer.status.as_u16(), "{self}");
        }
        answer.into_response()
    }

    /// How the last try ended, for those who learn from it.
    pub(crate) fn result(&self) -> AttemptResult {
        match self {
            Self::Failed { failed, .. } => failed.result(),
            _ => AttemptResult::Other,
        }
    }

    fn answer(&self) -> ErrorAnswer {
        match self {
            Self::Unauthorized => ErrorAnswer::new(401, ErrorBody::unauthorized())
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Self::ContentType(given) => {
                ErrorAnswer::new(415, ErrorBody::unsupported_media_type(given.as_deref()))
            }
            Self::BodyTooLarge { most } => ErrorAnswer::new(413, ErrorBody::body_too_large(*most)),
            Self::BodyBroken(why) => {
                let message = format!("the request body could not be read: {why}");
                ErrorAnswer::new(400, ErrorBody::invalid_request(&message))
            }
            Self::BadRequest(bad) => ErrorAnswer::new(bad.status(), bad.body()),
            Self::UnknownModel { model, available } => {
                let available: Vec<&str> = available.iter().map(String::as_str).collect();
                ErrorAnswer::new(404, ErrorBody::model_not_found(model, &available))
            }
            Self::Rejected { by, rejection } => {
                let answer =
                    ErrorAnswer::new(rejection.allowed_status(), ErrorBody::rejected(rejection));
                let answer = answer.retry_after(
                    rejection.retry_after_s.map(|seconds| Duration::from_secs(seconds.into())),
                );
                match stream::visible(by) {
                    Some(by) => answer.with(stream::POLICY, by),
                    None => answer,
                }
            }
            Self::NoLane { reason, retry_in } => no_lane(&reason.to_string(), *retry_in),
            Self::Stopping => no_lane(&self.to_string(), RETRY_LOST_ENGINE),
            Self::Failed { lane, failed } => failure(lane, failed),
            Self::NotFound(what) => ErrorAnswer::new(404, ErrorBody::not_found(what)),
            Self::Admin(why @ AdminError::NoSuchPolicy(..)) => {
                ErrorAnswer::new(404, ErrorBody::of_operator("policy_not_found", &why.to_string()))
            }
            Self::Admin(AdminError::Refused(why)) => {
                ErrorAnswer::new(409, ErrorBody::of_operator("refused", why))
            }
            Self::BadCommand(why) => ErrorAnswer::new(400, ErrorBody::invalid_request(why)),
            Self::Broken => ErrorAnswer::new(500, ErrorBody::internal(&self.to_string())),
            Self::Method { method, allowed } => {
                ErrorAnswer::new(405, ErrorBody::method_not_allowed(method, allowed))
                    .with(header::ALLOW, HeaderValue::from_static(allowed))
            }
        }
    }
}

/// All steps of a plan have failed; this was the last.
fn failure(lane: &str, failed: &Failed) -> ErrorAnswer {
    let answer = match failed {
        Failed::Refused(AcquireError::QueueFull { retry_in, .. }) => {
            ErrorAnswer::new(429, ErrorBody::queue_full(lane, &failed.to_string()))
                .retry_after(Some(*retry_in))
        }
        Failed::Refused(
            AcquireError::TimedOut { retry_in, .. } | AcquireError::TooLate { estimate: retry_in },
        ) => ErrorAnswer::new(503, ErrorBody::queue_timeout(lane, &failed.to_string()))
            .retry_after(Some(*retry_in)),
        Failed::Refused(refusal) => {
            let retry_in = match refusal {
                AcquireError::NotServing { retry_in, .. }
                | AcquireError::LoadFailed { retry_in, .. }
                | AcquireError::Faulty { retry_in } => *retry_in,
                _ => RETRY_LOST_ENGINE,
            };
            no_lane(&format!("lane `{lane}`: {failed}"), retry_in)
        }
        Failed::Engine(EngineError::Evicted) => {
            no_lane(&format!("lane `{lane}`: {failed}"), RETRY_LOST_ENGINE)
        }
        Failed::FirstByte(_) | Failed::Engine(EngineError::IdleTimeout(_)) => {
            ErrorAnswer::new(504, ErrorBody::engine_timeout(lane, &failed.to_string()))
        }
        Failed::Engine(_) => {
            ErrorAnswer::new(502, ErrorBody::engine_failed(lane, &failed.to_string()))
        }
        Failed::Status { status, body, retry_after } => {
            engine_status(lane, *status, body, *retry_after)
        }
    };
    match stream::visible(lane) {
        Some(lane) => answer.with(stream::LANE, lane),
        None => answer,
    }
}

fn no_lane(reason: &str, retry_in: Duration) -> ErrorAnswer {
    ErrorAnswer::new(503, ErrorBody::no_lane(reason)).retry_after(Some(retry_in))
}

/// An engine's 5xx or 429. Its words are kept; the status says that it was not the router that failed.
fn engine_status(
    lane: &str,
    status: StatusCode,
    body: &Bytes,
    retry_after: Option<u64>,
) -> ErrorAnswer {
    let said = EngineFailure::read(body).message;
    let message = match said {
        Some(said) => format!("the engine answered {}: {said}", status.as_u16()),
        None => format!("the engine answered {}", status.as_u16()),
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let retry_after = retry_after.map_or(RETRY_LOST_ENGINE, Duration::from_secs);
            ErrorAnswer::new(503, ErrorBody::engine_overloaded(lane, &message))
                .retry_after(Some(retry_after))
        }
        _ => ErrorAnswer::new(502, ErrorBody::engine_failed(lane, &message)),
    }
}

#[derive(Debug)]
struct ErrorAnswer {
    status: StatusCode,
    body: ErrorBody,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ErrorAnswer {
    fn new(status: u16, body: ErrorBody) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, body, headers: Vec::new() }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// `Retry-After`, in whole seconds and at least one.
    fn retry_after(self, after: Option<Duration>) -> Self {
        match after {
            Some(after) => {
                let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
                self.with(header::RETRY_AFTER, seconds.clamp(1, 3600).into())
            }
            None => self,
        }
    }

    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body.to_json()));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }
}
