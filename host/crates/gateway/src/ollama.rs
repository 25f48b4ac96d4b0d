//! What clients of Ollama ask before they send requests: whether it is there, which models it has,
//! and what these can do. The host does not manage models: requests that change them are
//! refused.

mod models;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get, post};
use bytes::Bytes;
use serde_json::json;

use self::models::{show, tags};
use crate::error::RouteError;
use crate::pipeline::Pipeline;
use crate::response::{self, error, only};
use crate::rights;

/// The version of Ollama whose API this is; clients refuse versions that are too old for them.
const VERSION: &str = "0.13.0";
/// What Ollama says at its root. Clients compare the text.
const RUNNING: &str = "Ollama is running";
/// Paths that change the models of an Ollama.
const MANAGEMENT: [&str; 6] =
    ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}"];

/// Returns the routes.
pub(crate) fn routes() -> Router<Arc<Pipeline>> {
    let routes = Router::new()
        .route("/", only("GET, HEAD", get(root)))
        .route("/api/version", only("GET, HEAD", get(version)))
        .route("/api/tags", only("GET, HEAD", get(tags)))
        .route("/api/ps", only("GET, HEAD", get(models::loaded)))
        .route("/api/show", only("POST", post(show)));
    MANAGEMENT.iter().fold(routes, |routes, path| routes.route(path, any(refuse)))
}

async fn root(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    match rights::identify(&pipeline.keys, request.headers(), request.extensions()) {
        Ok(_) => {
            response::typed("text/plain; charset=utf-8", Bytes::from_static(RUNNING.as_bytes()))
        }
        Err(refused) => error(request, refused),
    }
}

async fn version(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    match rights::identify(&pipeline.keys, request.headers(), request.extensions()) {
        Ok(_) => response::json(json!({ "version": VERSION }).to_string()),
        Err(refused) => error(request, refused),
    }
}

async fn refuse(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    match rights::identify(&pipeline.keys, request.headers(), request.extensions()) {
        Ok(_) => error(request, RouteError::ModelManagement),
        Err(refused) => error(request, refused),
    }
}
