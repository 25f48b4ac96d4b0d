//! HTTP routes for clients.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::{HeaderName, HeaderValue, Method, header};
use pointsman_access::Keys;
use pointsman_openai::SERVED;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::compression::{Encoders, compress};
use crate::error::RouteError;
use crate::models::{model, models};
use crate::pipeline::Pipeline;
use crate::response::{allowed, error, only, unknown_path};
use crate::settings::ListenerSettings;
use crate::status::StatusSources;
use crate::upstream_routes::{self, Access};
use crate::{health, native, ollama, once, paths, responses, status};

/// The header that gets a key of the query.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Returns the routes of a listener for clients.
pub(crate) fn for_listener(
    pipeline: Arc<Pipeline>,
    host: Arc<StatusSources>,
    settings: &Arc<ListenerSettings>,
    console: Option<Router>,
) -> Router {
    let native = native::default_lane(&pipeline.fleet.view().topology, settings);
    let is_native = native.is_some();
    let keys = pipeline.keys.clone();
    let routes = with_native(pipeline, host, native.as_deref());
    let listener = Arc::clone(settings);
    // A fallback, because routes are chosen before middlewares could change the path.
    let all = Router::new().fallback(move |request: Request| {
        let (routes, listener) = (routes.clone(), Arc::clone(&listener));
        let console = console.clone();
        let request = with_key_in_header(&keys, request);
        async move {
            match console.zip(console_path(&request, &listener)) {
                Some((console, path)) => at_path(console, path, request).await,
                None => with_normal_path(routes, &listener, is_native, request).await,
            }
        }
    });
    let all = match settings.compression {
        true => all.layer(middleware::from_fn_with_state(Encoders::default(), compress)),
        false => all,
    };
    all.layer(Extension(Arc::clone(settings)))
}

/// Moves a key from the query of a request to a header, before anything logs, records or forwards
/// the URI. Unless the configuration allows such keys, it is dropped. Headers win.
fn with_key_in_header(keys: &Keys, mut request: Request) -> Request {
    let Some((uri, key)) = paths::take_key(request.uri()) else { return request };
    *request.uri_mut() = uri;
    let headers = [header::AUTHORIZATION, KEY_HEADER, HeaderName::from_static("api-key")];
    let has_key = headers.iter().any(|name| request.headers().contains_key(name));
    if keys.allows_query_key()
        && !has_key
        && let Ok(mut value) = HeaderValue::from_str(&key)
    {
        value.set_sensitive(true);
        request.headers_mut().insert(KEY_HEADER, value);
    }
    request
}

/// Passes a request to its route, whichever form its path has.
async fn with_normal_path(
    routes: Router,
    listener: &ListenerSettings,
    is_native: bool,
    request: Request,
) -> Response {
    if request.method() == Method::OPTIONS && request.uri().path() == "*" {
        return allowed("GET, HEAD, POST");
    }
    let given = request.uri().path();
    let native = || paths::of_llama_cpp(given, &listener.path_prefix);
    let native = is_native.then(native).flatten().map(str::to_owned);
    let Some(path) = native.or_else(|| listener.route(given)) else {
        return unknown_path(request).await;
    };
    at_path(routes, path, request).await
}

/// Passes a request to the route of this path.
async fn at_path(mut routes: Router, path: String, mut request: Request) -> Response {
    if path != request.uri().path() {
        let Some(uri) = paths::replace(request.uri(), path) else {
            return unknown_path(request).await;
        };
        *request.uri_mut() = uri;
    }
    routes.call(request).await.unwrap_or_else(|never| match never {})
}

/// Returns the path below the prefix of the listener if it is one of the console.
fn console_path(request: &Request, listener: &ListenerSettings) -> Option<String> {
    let path = request.uri().path().strip_prefix(&listener.path_prefix)?;
    (path == "/console" || path.starts_with("/console/")).then(|| path.to_owned())
}

#[cfg(test)]
pub(crate) fn router(pipeline: Arc<Pipeline>, host: Arc<StatusSources>) -> Router {
    with_native(pipeline, host, None)
}

/// Returns the routes, with those of llama.cpp for the lane `native`.
fn with_native(pipeline: Arc<Pipeline>, host: Arc<StatusSources>, native: Option<&str>) -> Router {
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
        let serve = move |State(pipeline), request| once::serve(pipeline, endpoint, request);
        router.route(path, only("POST", post(serve)))
    });
    router
        .route("/v1/models", only("GET, HEAD", get(models)))
        .route("/v1/models/{*id}", only("GET, HEAD", get(model)))
        .merge(ollama::routes())
        .merge(upstream_routes::routes(Access::Client))
        .merge(native.map(native::routes).unwrap_or_default())
        .route(
            "/v1/responses/{id}",
            only("GET, HEAD, DELETE", get(responses::retrieve).delete(responses::delete)),
        )
        .route("/v1/responses/{id}/cancel", only("POST", post(responses::cancel)))
        .route("/v1/responses/{id}/input_items", only("GET, HEAD", get(responses::input_items)))
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
