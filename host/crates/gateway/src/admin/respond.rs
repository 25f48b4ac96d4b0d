//! Responses of the admin API, by work that may block.

use axum::extract::Request;
use axum::response::Response;
use serde_json::Value;
use tracing::Span;

use crate::admin_error::AdminError;
use crate::error::RouteError;
use crate::request_id;
use crate::response::{self, error};

/// Runs `work` on a blocking thread, inside the span of the request, and returns its result.
pub(super) async fn respond(
    request: Request,
    work: impl FnOnce() -> Result<Value, AdminError> + Send + 'static,
) -> Response {
    respond_with(request, move || work().map(|value| response::json(value.to_string()))).await
}

/// Does the same as [`respond`] with work that makes the response.
pub(super) async fn respond_with(
    request: Request,
    work: impl FnOnce() -> Result<Response, AdminError> + Send + 'static,
) -> Response {
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => error(request, refused.into()),
        // The work has panicked, and the panic hook has printed where.
        Err(panic) => {
            tracing::error!(error = %panic, "operator command panicked");
            let request_id = request_id::get(request.headers()).to_owned();
            error(request, RouteError::Internal { request_id })
        }
    }
}
