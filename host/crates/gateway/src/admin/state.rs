//! The state of policies on the admin API: what it has, and how it is cleared.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::Uri;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Policies;
use super::respond::respond;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::response::{error, only};

/// The state of policies. Calls may block.
pub trait StateAdmin: Send + Sync {
    /// Returns an array with what each policy has in its state.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn states(&self) -> Result<Value, AdminError>;

    /// Returns the entries in the state of a policy, or one of them with its value.
    ///
    /// # Errors
    /// If there is no such state or entry, or the store cannot be read.
    fn state(&self, policy: &str, key: Option<&str>) -> Result<Value, AdminError>;

    /// Removes all entries in the state of a policy, or one of them. Returns their number.
    ///
    /// # Errors
    /// If there is no such state, or the store cannot be written.
    fn clear_state(&self, policy: &str, key: Option<&str>) -> Result<usize, AdminError>;
}

/// The parameters. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    key: Option<String>,
}

pub(super) fn routes() -> Router<Policies> {
    Router::new()
        .route("/state", only("GET, HEAD", get(list)))
        .route("/state/{policy}", only("GET, HEAD", get(show)))
        .route("/state/{policy}/clear", only("POST", post(clear)))
}

async fn list(State(policies): State<Policies>, request: Request) -> Response {
    respond(request, move || Ok(json!({ "states": policies.states()? }))).await
}

async fn show(
    State(policies): State<Policies>,
    Path(policy): Path<String>,
    request: Request,
) -> Response {
    let key = key_of(request.uri());
    respond(request, move || policies.state(&policy, key?.as_deref())).await
}

async fn clear(
    State(policies): State<Policies>,
    Path(policy): Path<String>,
    request: Request,
) -> Response {
    let key = match key_of(request.uri()) {
        Ok(key) => key,
        Err(invalid) => return error(request, invalid.into()),
    };
    let request = request.map(|_| Body::empty());
    tracing::info!(policy, key, "state cleared by an operator");
    respond(request, move || {
        Ok(json!({ "cleared": policies.clear_state(&policy, key.as_deref())? }))
    })
    .await
}

fn key_of(uri: &Uri) -> Result<Option<String>, AdminError> {
    match Query::<Parameters>::try_from_uri(uri) {
        Ok(Query(parameters)) => Ok(parameters.key),
        Err(invalid) => Err(AdminError::new(ErrorCode::InvalidRequest, invalid.body_text())),
    }
}
