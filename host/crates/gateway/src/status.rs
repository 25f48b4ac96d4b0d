//! Liveness, readiness, status and metrics. None of them logs a request: they are polled.
//!
//! * `/livez`: the process responds. Stays 200 while engines load, switch or fail, so that no
//!   orchestrator restarts the host because of an engine.
//! * `/readyz`: for load balancers: the host accepts requests. Stays 200 during a switch, because
//!   requests are queued for that time.
//! * `/health`: as of a single engine; see [`crate::health`].
//! * `/status`: for clients, names, states, versions and counts; for operators, on the listeners of
//!   the admin API, also configuration, problems, processes and ports.
//!
//! If there are API keys, `/status` and `/metrics` require one of them on the listener for clients,
//! and `/health` gives the reason only with one. A key sees the lanes that it may use; the metrics,
//! which are of all lanes, need one that may use all.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use pointsman_domain::dispatch::Problem;
use pointsman_domain::{LaneStat, LaneState};
use pointsman_fleet::{Fleet, LaneStatus, ManualStatus};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit_log::AuditLog;
use crate::error::RouteError;
use crate::exposition::Exposition;
use crate::feed::Feed;
use crate::fleet_stream::FleetStream;
use crate::keys_feed::KeysFeed;
use crate::memory_status::{groups, lane_memory, machine};
use crate::peer_status;
use crate::response::{check_result, error, json, typed};
use crate::rights;
use crate::settings::StatusPart;
use pointsman_access::{Identity, Keys};

/// What the status pages show.
pub(crate) struct StatusSources {
    pub(crate) fleet: Fleet,
    pub(crate) policies: StatusPart,
    pub(crate) config: StatusPart,
    pub(crate) shared_state: StatusPart,
    pub(crate) registry: Registry,
    /// The API keys of the clients.
    pub(crate) keys: Keys,
    /// Cancelled when the gateway stops.
    pub(crate) stop: CancellationToken,
    /// The live log.
    pub(crate) log: Feed,
    /// What operators have done.
    pub(crate) audit: AuditLog,
    /// What other hosts learn of the lanes.
    pub(crate) fleet_stream: Arc<FleetStream>,
    /// Limits the event streams of operators.
    pub(crate) event_streams: Arc<Semaphore>,
    /// What all of them tell of the keys.
    pub(crate) keys_feed: KeysFeed,
}

pub(crate) async fn live() -> Response {
    json(json!({ "status": "ok" }).to_string())
}

pub(crate) async fn ready(State(host): State<Arc<StatusSources>>) -> Response {
    use LaneState::{Degraded, Draining, Ready, Unloaded};
    let accepts = |state: LaneState| matches!(state, Ready | Degraded | Unloaded | Draining);
    let has_lane = host.fleet.view().stats().any(|stat| accepts(stat.state));
    let status = match (host.stop.is_cancelled(), has_lane) {
        (true, _) => "stopping",
        (false, false) => "no lane is serving",
        (false, true) => "ok",
    };
    let retry_in = (status != "ok").then_some(Duration::ZERO);
    check_result(retry_in, &json!({ "status": status }))
}

/// The part of the status that clients see.
pub(crate) async fn status(State(host): State<Arc<StatusSources>>, request: Request) -> Response {
    let identity = match identify(&host, &request) {
        Ok(identity) => identity,
        Err(refused) => return error(request, refused),
    };
    let view = host.fleet.view();
    let is_shown = |stat: &LaneStat| {
        let lane = view.topology.lane(stat.id);
        lane.is_some_and(|lane| rights::shows_lane(&identity.rights, lane))
    };
    let lane = |stat: LaneStat| {
        json!({
            "name": view.topology.name(stat.id),
            "state": stat.state.label(),
            "running": stat.running,
            "queued": stat.queued,
            "slots_free": stat.slots_free,
        })
    };
    let policies = (host.policies)();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": host.stop.is_cancelled(),
        "lanes": view.stats().filter(is_shown).map(lane).collect::<Vec<_>>(),
        "policies": policies.as_array().into_iter().flatten().map(public_part).collect::<Vec<_>>(),
    });
    json(body.to_string())
}

/// Returns the fields of a policy's status that clients see. A list of what is shown, so that a new
/// field is not.
fn public_part(policy: &Value) -> Value {
    const FIELDS: [&str; 8] =
        ["name", "state", "version", "fingerprint", "component_sha256", "calls", "faults", "slow"];
    let field = |name: &str| Some((name.to_owned(), policy.get(name)?.clone()));
    Value::Object(FIELDS.into_iter().filter_map(field).collect())
}

/// The whole status, for operators.
pub(crate) async fn full_status(State(host): State<Arc<StatusSources>>) -> Response {
    json(operator_status(&host).to_string())
}

/// Returns the whole status.
pub(crate) fn operator_status(host: &StatusSources) -> Value {
    let view = host.fleet.view();
    let memory = host.fleet.memory_report();
    let lanes: Vec<Value> = host
        .fleet
        .status()
        .into_iter()
        .map(|lane| {
            let stat = view.topology.find(&lane.name).and_then(|id| view.stat(id));
            json!({
                "name": lane.name,
                "state": lane.state.label(),
                "engine": lane.engine.label(),
                "manual": manual(&lane),
                "progress": lane.progress,
                "ready_in_ms": stat.map(|stat| stat.ready_in_ms),
                "est_wait_ms": stat.map(|stat| stat.est_wait_ms),
                "waiting_in_engine": stat.map(|stat| stat.waiting),
                "kv_used_permille": stat.map(|stat| stat.kv_used),
                "decode_tokens_per_second": stat.map(|stat| stat.decode_tps),
                "weights_bytes": lane.weights_bytes,
                "kv_bytes": lane.kv_bytes,
                "kv_tokens": lane.kv_tokens,
                "compute_bytes": lane.compute_bytes,
                "memory_estimate": memory_estimate(&lane),
                "memory": lane_memory(&memory, &lane.name),
                "pid": lane.pid,
                "port": lane.port,
                "starts": lane.starts,
                "problem": lane.problem.as_ref().map(ToString::to_string),
                "problem_code": lane.problem.as_ref().and_then(Problem::code),
                "running": stat.map(|stat| stat.running),
                "queued": stat.map(|stat| stat.queued),
                "slots_free": stat.map(|stat| stat.slots_free),
                "slots": view.topology.lane(lane.lane).map(|lane| lane.slots),
                "models": view.topology.lane(lane.lane).map(|lane| &lane.models),
                "conversations": conversations(&host.fleet, &lane.name),
                "host": peer_status::lane_host(&host.fleet, &lane.name),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": host.stop.is_cancelled(),
        "lanes": lanes,
        "groups": groups(&memory),
        "machine": machine(&memory),
        "config": (host.config)(),
        "policies": (host.policies)(),
        "tokens": host.keys.token_status(),
        "fleet_readers": peer_status::readers(&host.fleet_stream),
        "shared_state": (host.shared_state)(),
    })
}

/// Returns what an operator has commanded of a lane, while it is not done.
pub(crate) fn manual(lane: &LaneStatus) -> Option<Value> {
    let ManualStatus { mode, by, since } = lane.manual.as_ref()?;
    let since = humantime::format_rfc3339_seconds(*since).to_string();
    Some(json!({ "mode": mode.label(), "by": &**by, "since": since }))
}

/// Returns what was computed of a lane's memory before it was loaded, and how that compares with
/// what its engine reported.
fn memory_estimate(lane: &LaneStatus) -> Option<Value> {
    let estimate = lane.estimate?;
    let found = lane.memory_comparison();
    Some(json!({
        "weights_bytes": estimate.weights,
        "kv_bytes": estimate.kv,
        "compute_bytes": estimate.compute,
        "total_bytes": estimate.total,
        "off_percent": found.map(|found| found.percent()),
        "is_off": found.map(|found| found.is_off()),
    }))
}

/// Returns what is saved of a lane's conversations; null if nothing is kept at all.
fn conversations(fleet: &Fleet, lane: &str) -> Value {
    let Some(status) = fleet.conversations().status(lane) else { return Value::Null };
    json!({ "files": status.files, "bytes": status.bytes, "off": status.off })
}

/// What the names of metrics begin with that are of tenants: a client does not see those of others.
const TENANT_METRICS: &str = "pointsman_tenant_";

/// The metrics, for clients with a key.
pub(crate) async fn client_metrics(
    State(host): State<Arc<StatusSources>>,
    request: Request,
) -> Response {
    match identify(&host, &request) {
        Ok(identity) if identity.rights.hides_lanes() => {
            let what = "the metrics, which are of all lanes".to_owned();
            error(request, RouteError::LaneNotAllowed { what })
        }
        Ok(_) => encoded(&host, &request, |line| !line.contains(TENANT_METRICS)),
        Err(refused) => error(request, refused),
    }
}

/// Returns who asks.
pub(crate) fn identify(
    host: &StatusSources,
    request: &Request,
) -> Result<Arc<Identity>, RouteError> {
    rights::identify(&host.keys, request.headers(), request.extensions())
}

/// All metrics, for operators.
pub(crate) async fn metrics(State(host): State<Arc<StatusSources>>, request: Request) -> Response {
    encoded(&host, &request, |_| true)
}

/// Returns all metrics as text.
pub(crate) fn metrics_text(host: &StatusSources) -> Option<String> {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &host.registry);
    encoded
        .inspect_err(|error| tracing::error!(%error, "failed to encode the metrics"))
        .is_ok()
        .then_some(text)
}

/// Returns the lines of the metrics that are shown.
fn encoded(host: &StatusSources, request: &Request, is_shown: impl Fn(&str) -> bool) -> Response {
    let Some(text) = metrics_text(host) else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    };
    let format = Exposition::for_request(request.headers());
    let shown: String = text.split_inclusive('\n').filter(|line| is_shown(line)).collect();
    typed(format.content_type(), format.convert(shown).into())
}
