//! `POST /upgrade`: replaces the host by a new process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::respond::respond;
use super::{MAX_BODY, PolicyAdmin};
use crate::error::RouteError;
use crate::response::error;

/// Maximum time until the new process is prepared, in seconds.
const MAX_TIMEOUT_S: u64 = 3600;

/// The body. An unknown field may be a misspelt `program`, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default)]
    program: Option<PathBuf>,
    #[serde(default)]
    timeout_s: Option<u64>,
}

pub(super) async fn upgrade(
    State(policies): State<Arc<dyn PolicyAdmin>>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = read(body).await;
    let request = Request::from_parts(parts, Body::empty());
    match read {
        Err(invalid) => error(request, invalid),
        Ok(Parameters { program, timeout_s }) => {
            tracing::info!(?program, "upgrade requested by an operator");
            let timeout = timeout_s.map(|seconds| Duration::from_secs(seconds.min(MAX_TIMEOUT_S)));
            respond(request, move || policies.upgrade(program, timeout)).await
        }
    }
}

async fn read(body: Body) -> Result<Parameters, RouteError> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(RouteError::IncompleteBody)?.to_bytes();
    if body.trim_ascii().is_empty() {
        return Ok(Parameters::default());
    }
    serde_json::from_slice(&body).map_err(|_| RouteError::InvalidCommandBody)
}
