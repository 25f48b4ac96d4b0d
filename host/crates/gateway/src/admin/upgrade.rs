//! `POST /upgrade`: replaces the host by a new process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::operator::{OnSocket, Operator};
use super::respond::respond;
use super::{MAX_BODY, PolicyAdmin};
use crate::admin_error::AdminError;
use crate::error::RouteError;
use crate::error_code::ErrorCode;
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
    Extension(Operator(by)): Extension<Operator>,
    Extension(OnSocket(on_socket)): Extension<OnSocket>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = read(body, on_socket).await;
    let request = Request::from_parts(parts, Body::empty());
    match read {
        Err(invalid) => error(request, invalid),
        Ok(Parameters { program, timeout_s }) => {
            tracing::info!(?program, by = &*by, "upgrade requested by an operator");
            let timeout = timeout_s.map(|seconds| Duration::from_secs(seconds.min(MAX_TIMEOUT_S)));
            respond(request, move || policies.upgrade(program, timeout)).await
        }
    }
}

async fn read(body: Body, on_socket: bool) -> Result<Parameters, RouteError> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(RouteError::IncompleteBody)?.to_bytes();
    if body.trim_ascii().is_empty() {
        return Ok(Parameters::default());
    }
    let invalid = |message: &str| AdminError::new(ErrorCode::InvalidRequest, message);
    let expected = "invalid body: expected `{}` or for example `{\"timeout_s\": 300}`";
    let parameters: Parameters = serde_json::from_slice(&body).map_err(|_| invalid(expected))?;
    // A token for the port must not be one for running programs as the host's user.
    if parameters.program.is_some() && !on_socket {
        let message =
            "`program` is not accepted on `admin.listen`; use the socket of the admin API";
        return Err(invalid(message).into());
    }
    Ok(parameters)
}
