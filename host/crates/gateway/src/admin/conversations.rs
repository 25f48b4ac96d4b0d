//! `DELETE /conversations` of the admin API: erases what was saved of conversations, of a tenant,
//! of a key, or of all.

use axum::extract::{Query, Request, State};
use axum::response::Response;
use pointsman_fleet::Fleet;
use serde::Deserialize;
use serde_json::json;

use super::respond::respond;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;

/// The parameters. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    tenant: Option<String>,
    key: Option<String>,
    #[serde(default)]
    all: bool,
}

pub(super) async fn erase(State(fleet): State<Fleet>, request: Request) -> Response {
    let invalid = |message: &str| AdminError::new(ErrorCode::InvalidRequest, message);
    let parsed = Query::<Parameters>::try_from_uri(request.uri());
    let parsed = parsed.map_err(|error| invalid(&error.to_string()));
    respond(request, move || {
        let Query(Parameters { tenant, key, all }) = parsed?;
        if all == (tenant.is_some() || key.is_some()) {
            return Err(invalid("expected `tenant`, `key` or both, or `all=true`"));
        }
        let erased = fleet.conversations().erase(tenant.as_deref(), key.as_deref());
        tracing::info!(
            event = "conversations_erased",
            tenant,
            key,
            files = erased.files,
            bytes = erased.bytes,
            "saved conversations erased"
        );
        Ok(json!({ "files": erased.files, "bytes": erased.bytes }))
    })
    .await
}
