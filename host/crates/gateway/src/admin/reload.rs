//! `POST /reload`: reloads changed files, or tells what a reload would change.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::respond::respond;
use super::{MAX_CONFIG, PolicyAdmin};
use crate::admin_error::AdminError;
use crate::error::RouteError;
use crate::error_code::ErrorCode;
use crate::response::error;

/// The parameters. An unknown one may be a misspelt `dry-run`, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Parameters {
    #[serde(default)]
    dry_run: bool,
    /// The body is a configuration that takes the place of the file.
    #[serde(default)]
    check: bool,
}

pub(super) async fn reload(
    State(policies): State<Arc<dyn PolicyAdmin>>,
    request: Request,
) -> Response {
    let parameters = match Query::<Parameters>::try_from_uri(request.uri()) {
        Ok(Query(parameters)) => parameters,
        Err(rejected) => {
            let invalid = AdminError::new(ErrorCode::InvalidRequest, rejected.body_text());
            return error(request, invalid.into());
        }
    };
    let (parts, body) = request.into_parts();
    let text = match parameters.check {
        true => read_text(body).await.map(Some),
        false => Ok(None),
    };
    let request = Request::from_parts(parts, Body::empty());
    match text {
        Err(invalid) => error(request, invalid),
        Ok(text) if parameters.dry_run || text.is_some() => {
            respond(request, move || Ok(policies.plan(text))).await
        }
        Ok(_) => {
            tracing::info!("reload requested by an operator");
            respond(request, move || Ok(policies.reload())).await
        }
    }
}

async fn read_text(body: Body) -> Result<String, RouteError> {
    let body = Limited::new(body, MAX_CONFIG).collect().await;
    let body = body.map_err(RouteError::IncompleteBody)?.to_bytes();
    String::from_utf8(body.into()).map_err(|_| RouteError::InvalidCommandBody)
}
