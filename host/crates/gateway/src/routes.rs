//! HTTP routes for clients.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use pointsman_openai::SERVED;
use tokio_util::sync::CancellationToken;

use crate::error::RouteError;
use crate::pipeline::Pipeline;
use crate::response::{error, json, only, unknown_path};
use crate::status::StatusSources;
use crate::{serve, status};

pub(crate) fn router(pipeline: Arc<Pipeline>, host: Arc<StatusSources>) -> Router {
    let stop = host.stop.clone();
    let host_routes = Router::new()
        .route("/health", only("GET, HEAD", get(status::health)))
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

async fn models(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    match pipeline.keys.tenant(request.headers()) {
        Err(unauthorized) => error(request, unauthorized.into()),
        Ok(_) => {
            let topology = &pipeline.fleet.view().topology;
            json(pointsman_openai::models::list(topology, pipeline.settings.started_at))
        }
    }
}

async fn model(
    State(pipeline): State<Arc<Pipeline>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    if let Err(unauthorized) = pipeline.keys.tenant(request.headers()) {
        return error(request, unauthorized.into());
    }
    // An id that is not UTF-8 is as unknown as any other; the message has it as it was sent.
    let id = id.map_or_else(|_| request.uri().path().to_owned(), |Path(id)| id);
    let topology = &pipeline.fleet.view().topology;
    match pointsman_openai::models::one(topology, &id, pipeline.settings.started_at) {
        Some(body) => json(body),
        None => {
            let available = topology.models().into_iter().map(str::to_owned).collect();
            error(request, RouteError::UnknownModel { model: id, available })
        }
    }
}
