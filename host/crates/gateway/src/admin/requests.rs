//! Requests on the admin API: which are in flight, and how one is cancelled.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use axum::routing::{delete, get};
use pointsman_domain::{FleetView, LaneState};
use pointsman_fleet::Fleet;
use serde_json::{Value, json};

use super::operator::Operator;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::in_flight::{InFlightRequests, RequestStatus, Stage};
use crate::pipeline::Pipeline;
use crate::response::{self, error, only};

pub(super) fn routes() -> Router<Arc<Pipeline>> {
    Router::new()
        .route("/requests", only("GET, HEAD", get(list)))
        .route("/requests/{id}", only("DELETE", delete(cancel)))
}

async fn list(State(pipeline): State<Arc<Pipeline>>) -> Response {
    let now = SystemTime::now();
    let mut requests = rows(&pipeline.in_flight, &pipeline.fleet).await;
    for request in &mut requests {
        let arrived = request["arrived_unix_ms"].as_u64().unwrap_or_default();
        request["age_ms"] = unix_ms(now).saturating_sub(arrived).into();
    }
    response::json(json!({ "requests": requests }).to_string())
}

/// Returns the time in milliseconds since the Unix epoch.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let age = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Saturates after millions of years.
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the requests in flight, oldest first. Nothing in a row changes just because time passes.
pub(super) async fn rows(in_flight: &InFlightRequests, fleet: &Fleet) -> Vec<Value> {
    // First, so that a request that is listed as waiting was there when the places were counted, or
    // has none.
    let requests = in_flight.list();
    let places = fleet.queue_positions().await;
    let view = fleet.view();
    requests
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
                "why": waits_for(request, &view),
                "arrived_unix_ms": unix_ms(request.arrived),
                "tokens": request.tokens,
            })
        })
        .collect()
}

/// Returns what a queued request waits for.
fn waits_for(request: &RequestStatus, view: &FleetView) -> Option<&'static str> {
    let lane = request.lane.as_deref().filter(|_| request.stage == Stage::Queued)?;
    let stat = view.topology.find(lane).and_then(|id| view.stat(id))?;
    Some(match stat.state {
        LaneState::Unloaded => "memory for the lane",
        LaneState::Starting => "the lane to be loaded",
        LaneState::Draining => "the lane, which is being unloaded, to be loaded again",
        LaneState::Down => "the lane to recover",
        LaneState::Ready | LaneState::Degraded if stat.slots_free == 0 => "a slot",
        LaneState::Ready | LaneState::Degraded => "its turn",
    })
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
