//! llama.cpp's own routes, on listeners whose default lane is a llama.cpp: the lane of the
//! listener's default model, or the only lane of the host.
//!
//! | path | |
//! |---|---|
//! | `/completion`, `/completions`, `/infill`, `/apply-template` | a request like others |
//! | `/embedding`, `/embeddings` | a request like others |
//! | `/slots`, `/slots/{id}`, `/props`, `/lora-adapters` | as below `/upstream/{lane}/` |
//!
//! The paths without `/v1` that both have are llama.cpp's there; see [`crate::paths`].

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::post;
use pointsman_domain::{Endpoint, EngineKind, Topology};
use pointsman_openai::ModelNames;

use crate::once;
use crate::pipeline::Pipeline;
use crate::response::only;
use crate::settings::ListenerSettings;
use crate::upstream_routes::{self, Access, METHODS};

const ENDPOINTS: [Endpoint; 4] = [
    Endpoint::LlamaCompletion,
    Endpoint::LlamaInfill,
    Endpoint::LlamaEmbedding,
    Endpoint::LlamaApplyTemplate,
];
/// Paths that show or change what the clients of an engine share.
const SHARED: [&str; 4] = ["/slots", "/slots/{id}", "/props", "/lora-adapters"];

/// Returns the name of the listener's default lane, if its engine is a llama.cpp.
pub(crate) fn default_lane(topology: &Topology, listener: &ListenerSettings) -> Option<String> {
    let lane = match &listener.default_model {
        Some(model) => {
            let names = ModelNames { default: Some(model), targets: &listener.models };
            let model = names.target(model).unwrap_or(model);
            topology.lane(*topology.candidates(model).first()?)?
        }
        None => match topology.lanes() {
            [lane] => lane,
            _ => return None,
        },
    };
    // External ones name theirs, if they are known to be one.
    let is_native =
        lane.engine == EngineKind::LlamaCpp || lane.endpoints.contains(Endpoint::LlamaCompletion);
    is_native.then(|| lane.name.clone())
}

/// Returns the routes for a listener with this default lane.
pub(crate) fn routes(lane: &str) -> Router<Arc<Pipeline>> {
    let endpoints = ENDPOINTS.into_iter().filter_map(|endpoint| Some((endpoint, endpoint.path()?)));
    let routes = endpoints.fold(Router::new(), |routes, (endpoint, path)| {
        let serve = move |State(pipeline), request| once::serve(pipeline, endpoint, request);
        routes.route(path, only("POST", post(serve)))
    });
    let lane: Arc<str> = lane.into();
    SHARED.into_iter().fold(routes, |routes, path| {
        let lane = Arc::clone(&lane);
        let serve = move |State(pipeline): State<Arc<Pipeline>>, request: Request| {
            let path = request.uri().path().to_owned();
            let lane = lane.to_string();
            async move {
                upstream_routes::serve(&pipeline, Access::Client, &lane, &path, request).await
            }
        };
        routes.route(path, only(METHODS, upstream_routes::all(serve)))
    })
}
