//! HTTP routes for clients.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, header};
use pointsman_access::Keys;
use pointsman_domain::Endpoint;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::compression::{Encoders, WantedEncoding};
use crate::error::RouteError;
use crate::models::{model, models};
use crate::pipeline::Pipeline;
use crate::response::{Serving, allowed, error, only, responding, unknown, unknown_path};
use crate::settings::ListenerSettings;
use crate::status::StatusSources;
use crate::upstream_routes::{self, Access};
use crate::{fleet_stream, health, native, ollama, once, paths, responses, status};

/// The header that gets a key of the query.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// The paths that other hosts may use besides the endpoints.
const PATHS_OF_PEERS: [&str; 4] = ["/fleet", "/health", "/livez", "/readyz"];

/// The beginning of the paths of responses, about which other hosts pass on requests.
const RESPONSES: &str = "/v1/responses/";

/// What a listener serves.
pub(crate) enum Routes {
    /// Requests of clients.
    Clients(Box<ClientRoutes>),
    /// Requests of operators.
    Operators(Router),
}

impl Routes {
    /// Serves one request.
    pub(crate) fn serve(&self, request: Request) -> Serving {
        match self {
            Self::Clients(routes) => routes.serve(request),
            Self::Operators(router) => call(router, request),
        }
    }
}

/// What a listener for clients serves.
pub(crate) struct ClientRoutes {
    pipeline: Arc<Pipeline>,
    /// Is cancelled when the host stops.
    stop: CancellationToken,
    listener: Arc<ListenerSettings>,
    /// The default lane of the listener is a llama.cpp.
    is_native: bool,
    console: Option<Router>,
    /// `None` if responses are not compressed.
    encoders: Option<Encoders>,
    /// All but the requests for endpoints.
    others: Router,
}

impl ClientRoutes {
    /// Creates the routes of a listener.
    pub(crate) fn new(
        pipeline: Arc<Pipeline>,
        host: Arc<StatusSources>,
        listener: Arc<ListenerSettings>,
        console: Option<Router>,
    ) -> Self {
        let native = native::default_lane(&pipeline.fleet.view().topology, &listener);
        Self {
            stop: host.stop.clone(),
            is_native: native.is_some(),
            console,
            encoders: listener.compression.then(Encoders::default),
            others: others(Arc::clone(&pipeline), host, native.as_deref()),
            listener,
            pipeline,
        }
    }

    /// Creates the routes for requests that a proxy sends to the engines: the endpoints, what the
    /// host knows of the models, and the responses that other hosts keep.
    pub(crate) fn for_proxy(
        pipeline: Arc<Pipeline>,
        host: &StatusSources,
        listener: Arc<ListenerSettings>,
    ) -> Self {
        let others = Router::new()
            .route("/v1/models", only("GET, HEAD", get(models)))
            .route("/v1/models/{*id}", only("GET, HEAD", get(model)))
            .merge(response_routes())
            .with_state(Arc::clone(&pipeline))
            .fallback(unknown_path);
        let stop = host.stop.clone();
        Self { pipeline, stop, listener, is_native: false, console: None, encoders: None, others }
    }

    /// Serves one request.
    pub(crate) fn serve(&self, request: Request) -> Serving {
        let mut request = with_key_in_header(&self.pipeline.keys, request);
        request.extensions_mut().insert(Arc::clone(&self.listener));
        let Some(encoders) = self.encoders.clone() else { return self.route(request) };
        let wanted = WantedEncoding::new(&request);
        let serving = self.route(request);
        Box::pin(async move { wanted.apply(&encoders, serving.await).await })
    }

    /// Passes a request to its route, whichever form its path has. Requests for endpoints, which
    /// are nearly all, do not pass through axum's router: it would take more than half as long as
    /// hyper takes for all of the request.
    fn route(&self, mut request: Request) -> Serving {
        if let Some(console) = &self.console
            && let Some(path) = console_path(&request, &self.listener)
        {
            return match set_path(&mut request, path) {
                true => call(console, request),
                false => responding(unknown(request)),
            };
        }
        let given = request.uri().path();
        if self.listener.path_prefix.is_empty()
            && let Some(endpoint) = paths::served(given)
        {
            return self.at_endpoint(endpoint, request);
        }
        if request.method() == Method::OPTIONS && given == "*" {
            return responding(allowed("GET, HEAD, POST"));
        }
        let native = || paths::of_llama_cpp(given, &self.listener.path_prefix);
        let native = self.is_native.then(native).flatten().map(str::to_owned);
        let Some(path) = native.or_else(|| self.listener.route(given)) else {
            return responding(unknown(request));
        };
        let endpoint = paths::served(&path);
        if !set_path(&mut request, path) {
            return responding(unknown(request));
        }
        match endpoint {
            Some(endpoint) => self.at_endpoint(endpoint, request),
            None if self.is_kept_from_peers(&request) => {
                responding(error(request, RouteError::PeerNotAllowed))
            }
            None => call(&self.others, request),
        }
    }

    /// Returns true if another host may not send a request, which is not one for an endpoint.
    fn is_kept_from_peers(&self, request: &Request) -> bool {
        let path = request.uri().path();
        !PATHS_OF_PEERS.contains(&path)
            && !path.starts_with(RESPONSES)
            && self.pipeline.keys.is_peer(request.headers())
    }

    fn at_endpoint(&self, endpoint: Endpoint, request: Request) -> Serving {
        if self.stop.is_cancelled() {
            return responding(error(request, RouteError::Stopping));
        }
        match request.method().clone() {
            Method::POST => once::serve(Arc::clone(&self.pipeline), endpoint, request),
            Method::OPTIONS => responding(allowed("POST")),
            method => responding(error(request, RouteError::Method { method, allowed: "POST" })),
        }
    }
}

fn call(router: &Router, request: Request) -> Serving {
    let response = router.clone().call(request);
    Box::pin(response.map(|response| response.unwrap_or_else(|never| match never {})))
}

/// Sets the path of a request. Returns false if it cannot have it.
fn set_path(request: &mut Request, path: String) -> bool {
    if path == request.uri().path() {
        return true;
    }
    let replaced = paths::replace(request.uri(), path);
    let is_replaced = replaced.is_some();
    if let Some(uri) = replaced {
        *request.uri_mut() = uri;
    }
    is_replaced
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

/// Returns the path below the prefix of the listener if it is one of the console.
fn console_path(request: &Request, listener: &ListenerSettings) -> Option<String> {
    let path = request.uri().path().strip_prefix(&listener.path_prefix)?;
    (path == "/console" || path.starts_with("/console/")).then(|| path.to_owned())
}

/// Returns the routes of all that is not an endpoint, with those of llama.cpp for the lane
/// `native`.
fn others(pipeline: Arc<Pipeline>, host: Arc<StatusSources>, native: Option<&str>) -> Router {
    let stop = host.stop.clone();
    let fleet_routes = Router::new()
        .route("/fleet", only("GET", get(fleet_stream::for_peers)))
        .with_state(Arc::clone(&host.fleet_stream));
    let host_routes = Router::new()
        .route("/health", only("GET, HEAD", get(health::health)))
        .route("/livez", only("GET, HEAD", get(status::live)))
        .route("/readyz", only("GET, HEAD", get(status::ready)))
        .route("/status", only("GET, HEAD", get(status::status)))
        .route("/metrics", only("GET, HEAD", get(status::client_metrics)))
        .with_state(host);
    Router::new()
        .route("/v1/models", only("GET, HEAD", get(models)))
        .route("/v1/models/{*id}", only("GET, HEAD", get(model)))
        .merge(ollama::routes())
        .merge(upstream_routes::routes(Access::Client))
        .merge(native.map(native::routes).unwrap_or_default())
        .merge(response_routes())
        .with_state(pipeline)
        .route_layer(middleware::from_fn_with_state(stop, reject_while_stopping))
        .merge(host_routes)
        .merge(fleet_routes)
        .fallback(unknown_path)
}

/// Returns the routes of responses that are kept.
fn response_routes() -> Router<Arc<Pipeline>> {
    Router::new()
        .route(
            "/v1/responses/{id}",
            only("GET, HEAD, DELETE", get(responses::retrieve).delete(responses::delete)),
        )
        .route("/v1/responses/{id}/cancel", only("POST", post(responses::cancel)))
        .route("/v1/responses/{id}/input_items", only("GET, HEAD", get(responses::input_items)))
}

/// Rejects new requests once the host stops. Health and status still respond.
async fn reject_while_stopping(
    State(stop): State<CancellationToken>,
    request: Request,
    next: Next,
) -> Response {
    if stop.is_cancelled() { error(request, RouteError::Stopping) } else { next.run(request).await }
}
