//! Converts every failure into an error body in OpenAI's form.
//!
//! This is the only place that builds error responses. Their codes, statuses and headers are
//! those of [`ErrorCode`]; only a policy that rejects a request chooses its own code and status.
//! A client that has already received status 200, because it streams and the wait was long, gets
//! the same body as an event.

mod no_lane;
mod quoted;

use std::error::Error;
use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, Method, header};
use pointsman_domain::{Endpoint, NoLaneReason, Rejection};
use pointsman_fleet::ContentEncoding;
use pointsman_openai::{BadRequest, EngineErrorBody, ErrorForm};

pub(crate) use self::no_lane::DownLane;
use self::no_lane::{blamed, explained, for_no_lane};
use self::quoted::{content_type, excerpt};
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::error_response::ErrorResponse;
use crate::failure::{AttemptError, RETRY_LOST_ENGINE};
use crate::guard_error::GuardError;
use crate::headers::{self, to_header_value};
use pointsman_access::{Refusal, TokenRefusal, Unauthorized};

/// The parameter that names an earlier response.
const PREVIOUS: &str = "previous_response_id";

/// The reason why a client gets an error response. The message is for the log; the client's
/// message may have more detail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("missing or invalid API key; send it as `Authorization: Bearer KEY`")]
    Unauthorized,
    #[error("the API key has expired")]
    KeyExpired,
    #[error("this key may not be used for model `{}`", excerpt(.model))]
    ModelNotAllowed { model: String },
    #[error("this key may not be used for {}", excerpt(.what))]
    LaneNotAllowed { what: String },
    #[error(transparent)]
    Guarded(#[from] GuardError),
    #[error("this key may not be used at {}", .0.path().unwrap_or("paths of engines"))]
    EndpointNotAllowed(Endpoint),
    #[error("this key may not be used on this address")]
    ListenerNotAllowed,
    #[error("only the key of another host may be used here; see `[[peers]]`")]
    PeerKeyRequired,
    #[error("the key of another host may only be used for requests and for /fleet")]
    PeerNotAllowed,
    #[error(transparent)]
    Token(TokenRefusal),
    #[error("expected content type `{expected}`, found {}", content_type(.given.as_deref()))]
    ContentType { expected: &'static str, given: Option<String> },
    #[error("the request body is not a valid multipart form: {0}")]
    InvalidForm(&'static str),
    #[error("failed to store the upload: {0}")]
    Spool(#[source] std::io::Error),
    #[error("the host has no space for another upload of this size at the moment")]
    SpoolFull,
    #[error("invalid `Idempotency-Key`: expected one key of 1 to 255 visible ASCII characters")]
    IdempotencyKey,
    #[error("`Idempotency-Key` was used for a request with another body; use a new key")]
    IdempotencyKeyReused,
    #[error("the request with this `Idempotency-Key` is in progress, and too long to be joined")]
    IdempotencyKeyInUse,
    #[error("the request with this `Idempotency-Key` {why}; host `{}` has it", excerpt(.host))]
    IdempotencyKeyElsewhere { host: String, why: &'static str },
    #[error(
        "unsupported content encoding `{}`: expected one of {}", excerpt(.0), ContentEncoding::NAMES
    )]
    ContentEncoding(String),
    #[error("the request body is not valid {encoding}: {cause}")]
    InvalidEncoding {
        encoding: &'static str,
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    #[error("request body exceeds {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    #[error("the host has no memory for another request body of this size at the moment")]
    BodyMemory,
    #[error("the host has too many requests in flight at the moment")]
    TooManyRequests,
    #[error("failed to read the request body: {0}")]
    IncompleteBody(#[source] Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Limited(#[from] Refusal),
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    #[error("no lane serves model `{}`; {hint}", excerpt(.model))]
    UnknownModel { model: String, hint: String },
    #[error(
        "model `{}` cannot be used at {}; {hint}",
        excerpt(.model),
        .endpoint.path().unwrap_or("this endpoint")
    )]
    EndpointNotSupported { model: String, endpoint: Endpoint, hint: String },
    #[error("the request has been here or on too many hosts, and no lane of this host serves it")]
    LoopDetected,
    #[error("no response with the id `{}`", excerpt(.id))]
    UnknownResponse { id: String },
    #[error("no earlier response with the id `{}`", excerpt(.id))]
    UnknownPreviousResponse { id: String },
    #[error("host `{}` has the response with the id `{}`", excerpt(.host), excerpt(.id))]
    ResponseElsewhere { id: String, host: String },
    #[error("host `{}` has the response, and does not respond", excerpt(.host))]
    ResponseHostUnreachable { host: String },
    #[error("no item with the id `{}`", excerpt(.id))]
    UnknownItem { id: String },
    #[error("{max} responses of this tenant are executed in the background already")]
    TooManyBackground { max: usize },
    #[error("failed to use the store: {0}")]
    Store(String),
    #[error("no lane has the name `{}`", excerpt(.0))]
    UnknownLane(String),
    #[error("lane `{0}` is not loaded; send `X-Pointsman-Load: true` to load it")]
    LaneNotLoaded(String),
    #[error(
        "this path shows or changes what all clients of an engine share: it needs a key with \
         `engine-admin = true`, or the admin API"
    )]
    EngineAdminRequired,
    #[error(
        "`{}` would stop the engine or change its memory, which the host manages; use the admin \
         API",
        excerpt(.0)
    )]
    EnginePathRefused(String),
    #[error("invalid path of an engine: expected segments without `.`, `..`, `%` and `\\`")]
    InvalidEnginePath,
    #[error("models are managed by the operator of the host, and not through this API")]
    ModelManagement,
    #[error("rejected by policy {policy}: {}", .rejection.message)]
    Rejected { policy: String, rejection: Rejection },
    #[error("no lane is available: {reason}{}{}", blamed(.filtering), explained(.lanes))]
    NoLane {
        reason: NoLaneReason,
        /// The policies whose filters excluded all lanes; empty for another reason.
        filtering: String,
        lanes: Vec<DownLane>,
        retry_in: Duration,
    },
    #[error("lane `{lane}`: {error}")]
    Attempt {
        lane: String,
        #[source]
        error: AttemptError,
    },
    #[error("the operator has cancelled the request")]
    Cancelled,
    #[error("the host is shutting down")]
    Stopping,
    #[error("`Host` does not name this host; add the name to `server.hosts` if it should")]
    HostNotAllowed,
    #[error("invalid request head: {0}")]
    InvalidHead(&'static str),
    #[error("unknown path: {} {}", excerpt(.method.as_str()), excerpt(.path))]
    UnknownPath { method: Method, path: String },
    #[error("method {} is not allowed for this path; use {allowed}", excerpt(.method.as_str()))]
    Method { method: Method, allowed: &'static str },
    #[error("unknown command `{}`: expected rollback, promote, disable or enable", excerpt(.0))]
    UnknownCommand(String),
    #[error("invalid command body: expected an empty body or {{\"version\": \"ab12cd34\"}}")]
    InvalidCommandBody,
    #[error("`{}` does not take a version: it applies to the policy", excerpt(.0))]
    VersionNotAllowed(String),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("internal error while applying the command; see the host log (request {request_id})")]
    Internal { request_id: String },
}

/// Returns the content encodings that the host decodes.
fn encodings() -> HeaderValue {
    HeaderValue::from_static(ContentEncoding::NAMES)
}

/// Adds the headers of a response to a request whose token is refused.
fn for_token(response: ErrorResponse, refusal: TokenRefusal) -> ErrorResponse {
    match refusal {
        TokenRefusal::Invalid | TokenRefusal::Expired => {
            let challenge = HeaderValue::from_static(r#"Bearer error="invalid_token""#);
            response.with(header::WWW_AUTHENTICATE, challenge)
        }
        TokenRefusal::NotAllowed => response,
        TokenRefusal::Unavailable => response.with_retry_after(Some(RETRY_LOST_ENGINE)),
    }
}

impl From<Unauthorized> for RouteError {
    fn from(unauthorized: Unauthorized) -> Self {
        match unauthorized {
            Unauthorized::UnknownKey => Self::Unauthorized,
            Unauthorized::ExpiredKey => Self::KeyExpired,
            Unauthorized::Token(refusal) => Self::Token(refusal),
        }
    }
}

impl RouteError {
    /// Logs the error and returns its response, for requests that do not enter the pipeline. Must
    /// be called inside a span with the request's id.
    pub(crate) fn into_untracked_response(self, form: ErrorForm) -> Response {
        let response = self.error_response();
        let (status, code) = (response.status.as_u16(), response.body.stable_code());
        // A string, so that the text format quotes it: it may contain client input.
        let error = self.to_string();
        let error = error.as_str();
        if response.status.is_server_error() {
            tracing::warn!(event = "request_failed", status, code, error, "request failed");
        } else {
            tracing::info!(event = "request_failed", status, code, error, "request failed");
        }
        response.into_response_in(form)
    }

    /// Returns the code of the error; `None` for a rejection, whose code is the policy's.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Unauthorized => ErrorCode::InvalidApiKey,
            Self::KeyExpired => ErrorCode::ApiKeyExpired,
            Self::ModelNotAllowed { .. } => ErrorCode::ModelNotAllowed,
            Self::LaneNotAllowed { .. } => ErrorCode::LaneNotAllowed,
            Self::Guarded(_) => ErrorCode::GuardRefused,
            Self::EndpointNotAllowed(_) => ErrorCode::EndpointNotAllowed,
            Self::ListenerNotAllowed => ErrorCode::ListenerNotAllowed,
            Self::PeerKeyRequired => ErrorCode::PeerKeyRequired,
            Self::PeerNotAllowed => ErrorCode::PeerNotAllowed,
            Self::Token(refusal) => ErrorCode::of_token(*refusal),
            Self::Limited(refusal) => ErrorCode::from(refusal),
            Self::ContentType { .. } => ErrorCode::UnsupportedMediaType,
            Self::InvalidForm(_) => ErrorCode::InvalidForm,
            Self::Spool(_) => ErrorCode::InsufficientStorage,
            Self::ContentEncoding(_) => ErrorCode::UnsupportedEncoding,
            Self::InvalidEncoding { .. } => ErrorCode::InvalidEncoding,
            Self::BodyTooLarge { .. } => ErrorCode::RequestTooLarge,
            Self::IncompleteBody(_) => ErrorCode::IncompleteBody,
            // Without a parameter the body as a whole could not be parsed.
            Self::BadRequest(error) => match error {
                BadRequest::Encoding(_) | BadRequest::Json(_) | BadRequest::NotAnObject => {
                    ErrorCode::InvalidJson
                }
                BadRequest::TooMany { .. } => ErrorCode::TooManyItems,
                BadRequest::TooDeep { .. } => ErrorCode::TooDeeplyNested,
                BadRequest::Missing { .. }
                | BadRequest::Invalid { .. }
                | BadRequest::Unsupported { .. } => ErrorCode::InvalidRequest,
                BadRequest::Thread => ErrorCode::ThreadUnsupportedRequest,
            },
            Self::IdempotencyKeyReused => ErrorCode::IdempotencyKeyReused,
            Self::IdempotencyKeyInUse => ErrorCode::IdempotencyKeyInUse,
            Self::IdempotencyKeyElsewhere { .. } => ErrorCode::IdempotencyKeyElsewhere,
            Self::IdempotencyKey => ErrorCode::InvalidRequest,
            Self::InvalidHead(_) | Self::InvalidCommandBody | Self::VersionNotAllowed(_) => {
                ErrorCode::InvalidRequest
            }
            Self::UnknownModel { .. } => ErrorCode::ModelNotFound,
            Self::EndpointNotSupported { .. } => ErrorCode::EndpointNotSupported,
            Self::UnknownLane(_) => ErrorCode::LaneNotFound,
            Self::LaneNotLoaded(_) => ErrorCode::LaneNotLoaded,
            Self::EngineAdminRequired => ErrorCode::EngineAdminRequired,
            Self::EnginePathRefused(_) => ErrorCode::EnginePathRefused,
            Self::InvalidEnginePath => ErrorCode::InvalidRequest,
            Self::ModelManagement => ErrorCode::NotSupported,
            Self::UnknownPreviousResponse { .. } => ErrorCode::PreviousResponseNotFound,
            Self::ResponseElsewhere { .. } => ErrorCode::ResponseElsewhere,
            Self::ResponseHostUnreachable { .. } => ErrorCode::ResponseHostUnreachable,
            Self::TooManyBackground { .. } => ErrorCode::TooManyBackground,
            Self::Store(_) => ErrorCode::StoreUnavailable,
            Self::Rejected { .. } => return None,
            Self::NoLane { .. } => ErrorCode::NoLaneAvailable,
            Self::LoopDetected => ErrorCode::LoopDetected,
            Self::Cancelled => ErrorCode::RequestCancelled,
            Self::Stopping => ErrorCode::Stopping,
            Self::BodyTimeout => ErrorCode::RequestTimeout,
            Self::BodyMemory | Self::SpoolFull | Self::TooManyRequests => ErrorCode::HostOverloaded,
            Self::HostNotAllowed => ErrorCode::HostNotAllowed,
            Self::Attempt { error, .. } => error.code(),
            Self::UnknownPath { .. }
            | Self::UnknownCommand(_)
            | Self::UnknownResponse { .. }
            | Self::UnknownItem { .. } => ErrorCode::NotFound,
            Self::Method { .. } => ErrorCode::MethodNotAllowed,
            Self::Admin(error) => error.code(),
            Self::Internal { .. } => ErrorCode::InternalError,
        })
    }

    /// Returns the response to a request that ends with this error.
    pub(crate) fn error_response(&self) -> ErrorResponse {
        let response = match self {
            Self::Rejected { rejection, .. } => ErrorResponse::from_rejection(rejection),
            _ => {
                let code = self.code().unwrap_or(ErrorCode::InternalError);
                ErrorResponse::new(code, self.client_message())
                    .with_details_of(self.engine_details())
            }
        };
        self.with_headers(response)
    }

    /// Adds the headers and the parameter that belong to the error.
    fn with_headers(&self, response: ErrorResponse) -> ErrorResponse {
        match self {
            Self::Unauthorized | Self::KeyExpired => {
                response.with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            Self::Token(refusal) => for_token(response, *refusal),
            Self::Limited(refusal) => response.with_limit(refusal),
            Self::ContentEncoding(_) => response.with(header::ACCEPT_ENCODING, encodings()),
            Self::BadRequest(error) => response.with_param(error.body().param),
            Self::UnknownModel { .. }
            | Self::EndpointNotSupported { .. }
            | Self::ModelNotAllowed { .. } => response.with_param(Some("model".to_owned())),
            Self::Method { allowed, .. } => {
                response.with(header::ALLOW, HeaderValue::from_static(allowed))
            }
            Self::Rejected { policy, rejection } => {
                let after = rejection.retry_after_s.map(u64::from).map(Duration::from_secs);
                let response = response.with_optional(headers::POLICY, to_header_value(policy));
                response.with_retry_after(after)
            }
            Self::NoLane { filtering, retry_in, .. } => for_no_lane(response, filtering, *retry_in),
            Self::UnknownPreviousResponse { .. } => response.with_param(Some(PREVIOUS.to_owned())),
            Self::Stopping
            | Self::BodyMemory
            | Self::Spool(_)
            | Self::SpoolFull
            | Self::TooManyRequests
            | Self::IdempotencyKeyInUse
            | Self::IdempotencyKeyElsewhere { .. }
            | Self::TooManyBackground { .. }
            | Self::ResponseHostUnreachable { .. }
            | Self::Store(_) => response.with_retry_after(Some(RETRY_LOST_ENGINE)),
            Self::Attempt { lane, error } => response
                .with_param_of(error)
                .with_all(error.headers())
                .with_optional(headers::LANE, to_header_value(lane))
                .with_retry_after(error.retry_in()),
            Self::ContentType { .. }
            | Self::InvalidForm(_)
            | Self::IdempotencyKey
            | Self::IdempotencyKeyReused
            | Self::InvalidEncoding { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout
            | Self::IncompleteBody(_)
            | Self::HostNotAllowed
            | Self::LaneNotAllowed { .. }
            | Self::Guarded(_)
            | Self::EndpointNotAllowed(_)
            | Self::ListenerNotAllowed
            | Self::PeerKeyRequired
            | Self::PeerNotAllowed
            | Self::LoopDetected
            | Self::InvalidHead(_)
            | Self::UnknownLane(_)
            | Self::LaneNotLoaded(_)
            | Self::EngineAdminRequired
            | Self::EnginePathRefused(_)
            | Self::InvalidEnginePath
            | Self::ModelManagement
            | Self::UnknownPath { .. }
            | Self::UnknownResponse { .. }
            | Self::ResponseElsewhere { .. }
            | Self::UnknownItem { .. }
            | Self::UnknownCommand(_)
            | Self::InvalidCommandBody
            | Self::VersionNotAllowed(_)
            | Self::Admin(_)
            | Self::Cancelled
            | Self::Internal { .. } => response,
        }
    }

    /// Returns the limit that has refused the request, if it was one.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        if let Self::Limited(refusal) = self {
            return Some(refusal);
        }
        let Self::Attempt { error: AttemptError::QueueLimit { refusal, .. }, .. } = self else {
            return None;
        };
        Some(refusal)
    }

    /// Returns what the engine says of an error that it has reported.
    fn engine_details(&self) -> Option<&EngineErrorBody> {
        let Self::Attempt { error, .. } = self else { return None };
        error.engine_details()
    }

    /// Returns the message for the client. An engine's message is only added here, because it may
    /// quote the prompt, which does not belong into the log.
    fn client_message(&self) -> String {
        let message = |error: &'_ EngineErrorBody| error.message.clone();
        match self {
            Self::Attempt { error, .. } => match error.engine_error().and_then(message) {
                Some(message) => format!("{self}: {message}"),
                None => self.to_string(),
            },
            _ => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
