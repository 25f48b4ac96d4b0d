//! `POST /playground/{endpoint}`: a request of an operator, served as one of a client.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::post;
use http::{HeaderName, header};
use pointsman_openai::SERVED;

use crate::error::RouteError;
use crate::gateway::MainListener;
use crate::once;
use crate::pipeline::Pipeline;
use crate::response::{error, only, unknown_path};

/// The API key with which the request is sent.
const CLIENT_KEY: HeaderName = HeaderName::from_static("x-pointsman-client-key");
/// Headers that are for the admin API, and which clients do not send.
const OF_OPERATORS: [&str; 6] =
    ["authorization", "cookie", "x-api-key", "api-key", "x-pointsman-csrf", "x-pointsman-operator"];

/// Returns the routes. Names of models are those of the main listener.
pub(super) fn routes(pipeline: Arc<Pipeline>, listener: MainListener) -> Router {
    Router::new()
        .route("/playground/{*endpoint}", only("POST", post(send)))
        .with_state((pipeline, listener))
}

async fn send(
    State((pipeline, listener)): State<(Arc<Pipeline>, MainListener)>,
    Path(endpoint): Path<String>,
    mut request: Request,
) -> Response {
    let is_asked = |path: &str| path.strip_prefix("/v1/") == Some(&endpoint);
    let found = SERVED.into_iter().find(|served| served.path().is_some_and(is_asked));
    let Some(endpoint) = found else { return unknown_path(request).await };
    if pipeline.drain.stopping().is_cancelled() {
        return error(request, RouteError::Stopping);
    }
    let headers = request.headers_mut();
    OF_OPERATORS.iter().for_each(|name| drop(headers.remove(*name)));
    if let Some(mut key) = headers.remove(CLIENT_KEY) {
        key.set_sensitive(true);
        headers.insert(HeaderName::from_static("x-api-key"), key);
    }
    headers.remove(header::ORIGIN);
    if let Some(listener) = listener.load_full() {
        request.extensions_mut().insert(listener);
    }
    once::serve(pipeline, endpoint, request).await
}
