//! What the router says of itself: health, readiness, status and metrics.
//!
//! * `/livez`: the process answers. Stays 200 while engines load or fail, so that nothing restarts us for their sake.
//! * `/readyz`: send requests here: some lane serves, and the host is not stopping.
//! * `/health`: as the engines' own endpoint of that name: 200 `{"status":"ok"}` when every lane serves, 503 with the
//!   lanes that do not otherwise.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::Gateway;

pub(crate) async fn live() -> Response {
    json(json!({ "status": "ok" }).to_string())
}

pub(crate) async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let serving = gateway.fleet.view().stats.iter().any(|stat| stat.state.serving());
    let status = match (gateway.stop.is_cancelled(), serving) {
        (true, _) => "stopping",
        (false, false) => "no lane is serving",
        (false, true) => "ok",
    };
    with_status(status == "ok", json!({ "status": status }))
}

pub(crate) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let view = gateway.fleet.view();
    let lanes: Value = view
        .stats
        .iter()
        .map(|stat| (view.topology.name(stat.id).to_owned(), Value::from(stat.state.label())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let well = view.stats.iter().all(|stat| stat.state.serving()) && !gateway.stop.is_cancelled();
    with_status(well, json!({ "status": if well { "ok" } else { "unavailable" }, "lanes": lanes }))
}

pub(crate) async fn status(State(gateway): State<Arc<Gateway>>) -> Response {
    let view = gateway.fleet.view();
    let lanes: Vec<Value> = gateway
        .fleet
        .status()
        .into_iter()
        .map(|lane| {
            let stat = view.topology.find(&lane.name).and_then(|id| view.stat(id));
            json!({
                "name": lane.name,
                "state": lane.state.label(),
                "pid": lane.pid,
                "port": lane.port,
                "starts": lane.starts,
                "problem": lane.problem,
                "running": stat.map(|stat| stat.running),
                "queued": stat.map(|stat| stat.queued),
                "slots_free": stat.map(|stat| stat.slots_free),
            })
        })
        .collect();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": gateway.stop.is_cancelled(),
        "lanes": lanes,
        "policies": (gateway.policies)(),
    });
    json(body.to_string())
}

pub(crate) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &gateway.registry) {
        Ok(()) => typed("application/openmetrics-text; version=1.0.0; charset=utf-8", text.into()),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics");
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

fn with_status(well: bool, body: Value) -> Response {
    let mut response = json(body.to_string());
    if !well {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A JSON answer.
pub(crate) fn json(body: impl Into<Bytes>) -> Response {
    typed("application/json", body.into())
}

fn typed(content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
