//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;

use crate::error::RouteError;
use crate::pipeline::Pipeline;
use crate::response::{error, json};

pub(crate) async fn models(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    match pipeline.keys.tenant(request.headers()) {
        Err(unauthorized) => error(request, unauthorized.into()),
        Ok(_) => {
            let topology = &pipeline.fleet.view().topology;
            json(pointsman_openai::models::list(topology, pipeline.settings.started_at))
        }
    }
}

pub(crate) async fn model(
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
