//! Error responses to requests that are tracked.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use super::{Failure, RequestTracker};
use crate::error::RouteError;
use crate::error_response::ErrorResponse;

impl RequestTracker {
    /// Reports the end of the request, and returns its error response.
    pub(crate) fn error_response(&mut self, error: &RouteError) -> Response {
        let mut response = error.error_response();
        self.report_error(error, response.status, &response);
        for (name, value) in self.attribution.iter().flat_map(|attribution| attribution.headers()) {
            // The error may name the policies to which it is due.
            if response.headers.iter().all(|(set, _)| *set != name) {
                response = response.with(name, value);
            }
        }
        response.into_response_in(self.error_form())
    }

    /// Reports the end of the request, and returns the event for a client that has already received
    /// status 200.
    pub(crate) fn error_event(&mut self, error: &RouteError) -> Bytes {
        self.note_failed_response();
        let response = error.error_response();
        self.report_error(error, StatusCode::OK, &response);
        self.error_form().event(&response.body.with_status(response.status.as_u16()), false)
    }

    fn report_error(&mut self, error: &RouteError, status: StatusCode, response: &ErrorResponse) {
        self.metering.note_error(&self.metrics, error);
        self.guard.note_error(error);
        self.report(Some(&Failure {
            status: Some(status.as_u16()),
            code: response.body.stable_code(),
            error,
            abort_cause: None,
            is_severe: response.status.is_server_error(),
        }));
    }
}
