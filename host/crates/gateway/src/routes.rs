//! HTTP routes for clients.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use pointsman_openai::SERVED;
use tokio_util::sync::CancellationToken;

use crate::error::RouteError;
use crate::models::{model, models};
use crate::pipeline::Pipeline;
use crate::response::{error, only, unknown_path};
use crate::status::StatusSources;
use crate::{health, serve, status};

pub(crate) fn router(pipeline: Arc<Pipeline>, host: Arc<StatusSources>) -> Router {
    let stop = host.stop.clone();
    let host_routes = Router::new()
        .route("/health", only("GET, HEAD", get(health::health)))
        .route("/livez", only("GET, HEAD", get(status::live)))
        .route("/readyz", only("GET, HEAD", get(status::ready)))
        .route("/status", only("GET, HEAD", get(status::status)))
        .route("/metrics", only("GET, HEAD", get(status::client_metrics)))
        .with_state(host);
    let served = SERVED.into_iter().filter_map(|endpoint| Some((endpoint, endpoint.path()?)));
    let router = served.fold(Router::new(), |router, (endpoint, path)| {
        let serve = move |State(pipeline), request| serve::serve(pipeline, endpoint, request);
        router.route(path, only("POST", post(serve)))
    });
    router
        .route("/v1/models", only("GET, HEAD", get(models)))
        .route("/v1/models/{*id}", only("GET, HEAD", get(model)))
        .with_state(pipeline)
        .route_layer(middleware::from_fn_with_state(stop, reject_while_stopping))
        .merge(host_routes)
        .fallback(unknown_path)
}

/// Rejects new requests once the host stops. Health and status still respond.
async fn reject_while_stopping(
    State(stop): State<CancellationToken>,
    request: Request,
    next: Next,
) -> Response {
    if stop.is_cancelled() { error(request, RouteError::Stopping) } else { next.run(request).await }
}
