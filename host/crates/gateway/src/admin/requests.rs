//! Requests on the admin API: which are in flight, and how one is cancelled.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use axum::routing::{delete, get};
use serde_json::{Value, json};

use super::operator::Operator;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::pipeline::Pipeline;
use crate::response::{self, error, only};

pub(super) fn routes() -> Router<Arc<Pipeline>> {
    Router::new()
        .route("/requests", only("GET, HEAD", get(list)))
        .route("/requests/{id}", only("DELETE", delete(cancel)))
}

async fn list(State(pipeline): State<Arc<Pipeline>>) -> Response {
    // First, so that a request that is listed as waiting was there when the places were counted, or
    // has none.
    let requests = pipeline.in_flight.list();
    let places = pipeline.fleet.queue_positions().await;
    let requests: Vec<Value> = requests
        .iter()
        .map(|request| {
            json!({
                "id": request.id,
                "tenant": request.tenant,
                "key": request.key,
                "endpoint": request.endpoint,
                "model": request.model.as_deref(),
                "lane": request.lane,
                "state": request.stage.label(),
                "position": request.ticket.and_then(|ticket| places.get(&ticket)),
                // Saturates after millions of years.
                "age_ms": u64::try_from(request.age.as_millis()).unwrap_or(u64::MAX),
                "tokens": request.tokens,
            })
        })
        .collect();
    response::json(json!({ "requests": requests }).to_string())
}

async fn cancel(
    State(pipeline): State<Arc<Pipeline>>,
    Extension(Operator(by)): Extension<Operator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let cancelled = pipeline.in_flight.cancel(&id);
    if cancelled == 0 {
        let message = format!("no request with the id `{}` is in flight", id.escape_debug());
        let refused = AdminError::new(ErrorCode::RequestNotFound, message);
        return error(request.map(|_| Body::empty()), refused.into());
    }
    tracing::info!(
        event = "request_cancelled",
        cancelled_id = id,
        by = &*by,
        "request cancelled by an operator"
    );
    response::json(json!({ "id": id, "cancelled": cancelled }).to_string())
}
