//! An error response, in the form of the API that the client uses.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pointsman_access::{Limit, Refusal};
use pointsman_domain::Rejection;
use pointsman_openai::{EngineErrorBody, ErrorBody, ErrorForm};

use crate::error_code::ErrorCode;
use crate::failure::{AttemptError, whole_seconds};
use crate::headers::{self, to_header_value};

/// Upper bound of the `Retry-After` that a policy or an engine sets, in seconds.
const MAX_RETRY_AFTER: u64 = Rejection::MAX_RETRY_AFTER_S as u64;

/// An error response before it is serialised.
#[derive(Debug)]
pub(crate) struct ErrorResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: ErrorBody,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl ErrorResponse {
    pub(crate) fn new(code: ErrorCode, message: String) -> Self {
        Self { status: code.status(), body: body(code, message), headers: Vec::new() }
    }

    pub(crate) fn from_rejection(rejection: &Rejection) -> Self {
        // `allowed_status` returns 400 to 499 or 503, which are valid statuses.
        let status = StatusCode::from_u16(rejection.allowed_status());
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let (message, code) = (rejection.message.clone(), Some(rejection.code.clone()));
        let kind = kind.into();
        let body = ErrorBody { message, kind, param: None, code, host_code: None, status: None };
        Self { status, body, headers: Vec::new() }
    }

    /// Adds what the engine says of an error that it has reported.
    pub(crate) fn with_details_of(mut self, said: Option<&EngineErrorBody>) -> Self {
        if let Some(said) = said {
            self.body = self.body.with_details_of(said);
        }
        self
    }

    pub(crate) fn with_param(mut self, param: Option<String>) -> Self {
        self.body.param = param;
        self
    }

    /// Adds the field that a request cannot have for the engine of its lane.
    pub(crate) fn with_param_of(self, error: &AttemptError) -> Self {
        if let AttemptError::Untranslatable(error) = error {
            return self.with_param(error.body().param);
        }
        self
    }

    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn with_all(mut self, headers: Option<&HeaderMap>) -> Self {
        let headers = headers.into_iter().flatten();
        self.headers.extend(headers.map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    pub(crate) fn with_optional(self, name: HeaderName, value: Option<HeaderValue>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds `Retry-After` in whole seconds, rounded up so that a client never comes too early.
    pub(crate) fn with_retry_after(self, after: Option<Duration>) -> Self {
        match after {
            Some(after) => {
                let seconds = whole_seconds(after).clamp(1, MAX_RETRY_AFTER);
                self.with(header::RETRY_AFTER, seconds.into())
            }
            None => self,
        }
    }

    /// Adds when a limit ends. The time is exact, and may be that of a budget. Client libraries
    /// retry every 429 within seconds unless they are told not to.
    pub(crate) fn with_limit(self, refusal: &Refusal) -> Self {
        let after = refusal.retry_after.map(|after| whole_seconds(after).max(1).into());
        let ends_soon = match refusal.limit {
            Limit::RequestsPerMinute
            | Limit::TokensPerMinute
            | Limit::Concurrent
            | Limit::Queued => after.is_some(),
            Limit::TokenBudget(_) | Limit::RequestBudget(_) | Limit::EngineBudget(_) => false,
        };
        let never = (!ends_soon).then_some(HeaderValue::from_static("false"));
        self.with_optional(header::RETRY_AFTER, after).with_optional(headers::SHOULD_RETRY, never)
    }

    /// Returns the response in the form of the API that the client uses.
    pub(crate) fn into_response_in(self, form: ErrorForm) -> Response {
        let body = form.body(&self.body, self.status.as_u16());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(code) = self.body.stable_code().and_then(to_header_value) {
            response.headers_mut().insert(headers::CODE, code);
        }
        response.headers_mut().extend(self.headers);
        response
    }
}

/// Returns the error body for a code.
pub(crate) fn body(code: ErrorCode, message: String) -> ErrorBody {
    let (kind, code) = (code.kind().into(), Some(code.as_str().to_owned()));
    ErrorBody { message, kind, param: None, code, host_code: None, status: None }
}
