//! HTTP routes for clients.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use http::Method;
use pointsman_domain::Endpoint;
use tracing::Span;

use crate::error::RouteError;
use crate::{Gateway, request_id, serve, status};

pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/chat/completions", only("POST", post(chat_completions)))
        .route("/v1/completions", only("POST", post(completions)))
        .route("/v1/models", only("GET, HEAD", get(models)))
        .route("/v1/models/{*id}", only("GET, HEAD", get(model)))
        .route("/health", only("GET, HEAD", get(status::health)))
        .route("/livez", only("GET, HEAD", get(status::live)))
        .route("/readyz", only("GET, HEAD", get(status::ready)))
        .route("/status", only("GET, HEAD", get(status::status)))
        .route("/metrics", only("GET, HEAD", get(status::metrics)))
        .fallback(unknown_path)
        .with_state(gateway)
}

/// Rejects other methods with an error body in OpenAI's form, which axum does not produce.
pub(crate) fn only<S: Clone + Send + Sync + 'static>(
    allowed: &'static str,
    methods: MethodRouter<S>,
) -> MethodRouter<S> {
    methods.fallback(move |method: Method, request: Request| async move {
        error(request, RouteError::Method { method, allowed })
    })
}

async fn chat_completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    serve::serve(gateway, Endpoint::ChatCompletions, request).await
}

async fn completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    serve::serve(gateway, Endpoint::Completions, request).await
}

async fn models(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    match gateway.keys.tenant(request.headers()) {
        Err(unauthorized) => error(request, unauthorized.into()),
        Ok(_) => {
            let topology = &gateway.fleet.view().topology;
            status::json(pointsman_openai::models::list(topology, gateway.settings.started_at))
        }
    }
}

async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    if let Err(unauthorized) = gateway.keys.tenant(request.headers()) {
        return error(request, unauthorized.into());
    }
    let topology = &gateway.fleet.view().topology;
    match pointsman_openai::models::one(topology, &id, gateway.settings.started_at) {
        Some(body) => status::json(body),
        None => {
            let available = topology.models().into_iter().map(str::to_owned).collect();
            error(request, RouteError::UnknownModel { model: id, available })
        }
    }
}

pub(crate) async fn unknown_path(request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    error(request, RouteError::UnknownPath { method, path })
}

/// Returns the error response to a request that does not enter the pipeline.
pub(crate) fn error(request: Request, error: RouteError) -> Response {
    let (mut parts, _) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    // The admin API has entered a span with the id already.
    let span = Some(Span::current()).filter(|current| !current.is_none());
    let span = span.unwrap_or_else(|| tracing::info_span!("request", request_id = id));
    let mut response = span.in_scope(|| error.into_untracked_response());
    request_id::set(response.headers_mut(), &id);
    response
}
