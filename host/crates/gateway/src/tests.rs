//! The gateway with a real fleet, scripted engines and test advisors.

mod cached_tokens;
mod engine_responses;
mod fidelity;
mod guards;
mod health;
mod http_layer;
mod limits;
mod listener;
mod picking;
mod protocols;
mod reconfigure;
mod recovery;
mod responses;
mod spans;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use pointsman_access::Keys;
use pointsman_domain::dispatch::{Residency, Rules};
use pointsman_domain::{Advisor, Endpoint, PlanLimits, Trigger};
use pointsman_fleet::{
    ExternalSpec, Fleet, FleetMetrics, FleetSpec, FleetTasks, LaneSpec, Liveness, Timeouts,
};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::routes::ClientRoutes;
use crate::{
    ConnectionSettings, Drain, Gateway, GatewayMetrics, GatewayParts, IdempotencySettings,
    ListenerSettings, ResponseLimits, ResponseModel, Settings, once, response_namespace,
};

/// The API key that all requests carry.
const API_KEY: &str = "secret-api-key";
/// Maximum number of attempts of a request.
const MAX_ATTEMPTS: usize = 3;

/// An engine's response to one request.
#[derive(Debug, Clone, Copy)]
struct Reply {
    status: u16,
    content_type: &'static str,
    encoding: Option<&'static str>,
    body: &'static [u8],
    /// Further headers.
    headers: &'static [(&'static str, &'static str)],
    /// The body never ends.
    hangs: bool,
    /// The response has a `Content-Length`.
    length: bool,
}

/// Returns a store in memory.
fn store() -> pointsman_store::Store {
    let namespaces = vec![response_namespace(&ResponseLimits::default())];
    let on_loss = Box::new(|loss: pointsman_store::Loss<'_>| panic!("lost {loss:?}"));
    let options = pointsman_store::Options { path: None, namespaces, on_loss };
    pointsman_store::Store::open(options).unwrap()
}

fn json(status: u16, body: &'static str) -> Reply {
    let (content_type, body) = ("application/json", body.as_bytes());
    Reply { status, content_type, encoding: None, body, headers: &[], hangs: false, length: false }
}

fn stream(body: &'static str, hangs: bool) -> Reply {
    let (content_type, body) = ("text/event-stream", body.as_bytes());
    Reply { status: 200, content_type, encoding: None, body, headers: &[], hangs, length: false }
}

/// All engines: their scripted responses, and the requests they received, in order.
#[derive(Debug, Default)]
struct Engines {
    scripts: Mutex<HashMap<&'static str, VecDeque<Reply>>>,
    received: Mutex<Vec<(&'static str, Value)>>,
    /// The ids of the requests, in order.
    ids: Mutex<Vec<String>>,
    /// The encodings that the last request accepted.
    accepted: Mutex<Vec<http::HeaderValue>>,
}

impl Engines {
    async fn respond(&self, name: &'static str, request: Request) -> Response {
        if request.method() == http::Method::GET {
            return Response::new(Body::from("{}"));
        }
        *self.accepted.lock().unwrap() =
            request.headers().get_all("accept-encoding").iter().cloned().collect();
        let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        self.ids.lock().unwrap().extend(id.map(str::to_owned));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.received.lock().unwrap().push((name, serde_json::from_slice(&body).unwrap()));
        let reply = self.scripts.lock().unwrap().get_mut(name).and_then(VecDeque::pop_front);
        let reply = reply.unwrap_or(json(200, "{}"));
        let Reply { status, content_type, encoding, body, headers, hangs, length } = reply;
        let length = length.then_some(body.len());
        let body = Ok::<_, std::io::Error>(Bytes::from_static(body));
        let body = futures_util::stream::iter([body]);
        let rest = futures_util::stream::pending().take(usize::from(hangs));
        let mut response = Response::new(Body::from_stream(body.chain(rest)));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        for (name, value) in headers.iter().chain(&[("content-type", content_type)]) {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        if let Some(length) = length {
            response.headers_mut().insert("content-length", length.into());
        }
        if let Some(encoding) = encoding {
            response.headers_mut().insert("content-encoding", encoding.parse().unwrap());
        }
        response
    }
}

/// A gateway with the lanes `a` and `b` for the model `m`, ranked in this order, and the lane `c`
/// for another model.
pub(crate) struct TestGateway {
    pub(crate) gateway: Gateway,
    spec: FleetSpec,
    drain: Drain,
    engines: Arc<Engines>,
    _fleet: FleetTasks,
    engine_tasks: HashMap<&'static str, AbortHandle>,
    _engines: JoinSet<()>,
}

/// Returns the settings of a gateway for tests.
fn settings() -> Settings {
    Settings {
        connections: ConnectionSettings::default(),
        max_body: 1 << 20,
        body_timeout: Duration::from_secs(30),
        body_memory: 8 << 20,
        spool: crate::settings::SpoolSettings::default(),
        plan: PlanLimits { max_wait: Duration::from_secs(30), max_steps: MAX_ATTEMPTS },
        guards: Arc::default(),
        deadline: Duration::from_secs(30),
        keep_alive: Duration::ZERO,
        response_model: ResponseModel::Asked,
        idempotency: IdempotencySettings::default(),
        responses: ResponseLimits::default(),
        console: crate::ConsoleSettings::default(),
        traces: None,
        host_name: "host".to_owned(),
        proxy_lanes: None,
        nonce: 0,
        decisions: 100,
        started_at: 0,
    }
}

impl TestGateway {
    pub(crate) async fn new(advisor: impl Advisor + 'static) -> Self {
        Self::with(advisor, |_| ()).await
    }

    /// Creates a gateway after changing its defaults.
    pub(crate) async fn with(
        advisor: impl Advisor + 'static,
        configure: impl FnOnce(&mut GatewayParts),
    ) -> Self {
        Self::with_lanes(advisor, |_| (), configure).await
    }

    /// Creates a gateway after changing its lanes and its defaults.
    async fn with_lanes(
        advisor: impl Advisor + 'static,
        change_lane: impl Fn(&mut LaneSpec),
        configure: impl FnOnce(&mut GatewayParts),
    ) -> Self {
        keep_callsites_enabled();
        let engines = Arc::<Engines>::default();
        let mut tasks = JoinSet::new();
        let mut engine_tasks = HashMap::new();
        let mut lanes = Vec::new();
        for (name, model, slots) in [("a", "m", 3), ("b", "m", 2), ("c", "other", 1)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            lanes.push(lane(name, model, slots, listener.local_addr().unwrap().port()));
            let engines = Arc::clone(&engines);
            let router = Router::new().fallback(move |request: Request| async move {
                engines.respond(name, request).await
            });
            let task = tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
            engine_tasks.insert(name, task);
        }
        lanes.iter_mut().for_each(change_lane);
        let mut registry = Registry::default();
        let names: Vec<(String, u32)> =
            lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
        let metrics = FleetMetrics::register(&mut registry, &names);
        let spec = FleetSpec {
            lanes,
            groups: Vec::new(),
            rules: Rules::default(),
            state_dir: None,
            conversations: None,
            keeper: pointsman_fleet::KeeperSpec::default(),
            secret_variables: Vec::new(),
            machine: "/".into(),
            peering: pointsman_fleet::Peering::default(),
        };
        let (fleet, fleet_tasks) = Fleet::start(&spec, &metrics).unwrap();
        fleet.wait_for(|view| view.stats().all(|stat| stat.state.serving())).await;
        let advisor: Box<dyn Advisor> = Box::new(advisor);
        let mut parts = GatewayParts {
            settings: settings(),
            keys: Keys::default(),
            accounts: Arc::default(),
            usage: Arc::default(),
            fleet,
            advisor: Arc::new(ArcSwap::from_pointee(advisor)),
            policies: Box::new(|| Value::Null),
            config: Box::new(|| serde_json::Value::Null),
            shared_state: Box::new(|| serde_json::Value::Null),
            recorder: None,
            observer: None,
            log: crate::Feed::default(),
            audit: crate::AuditLog::default(),
            metrics: GatewayMetrics::register(&mut registry),
            registry,
            store: store(),
            shared: None,
            drain: Drain::default(),
        };
        configure(&mut parts);
        let drain = parts.drain.clone();
        let gateway = Gateway::new(parts);
        Self { gateway, spec, drain, engines, _fleet: fleet_tasks, engine_tasks, _engines: tasks }
    }

    /// Returns the routes for clients.
    pub(crate) fn routes(&self) -> ClientRoutes {
        self.routes_with(ListenerSettings::default())
    }

    /// Returns the routes of a listener with these settings.
    fn routes_with(&self, settings: ListenerSettings) -> ClientRoutes {
        let (pipeline, status) = (self.gateway.pipeline(), self.gateway.status());
        ClientRoutes::new(pipeline, Arc::clone(status), Arc::new(settings), None)
    }

    /// Stops an engine, so that its port refuses connections.
    fn stop_engine(&self, lane: &str) {
        self.engine_tasks[lane].abort();
    }

    /// Sets an engine's responses to the next requests.
    fn script(&self, lane: &'static str, replies: &[Reply]) {
        self.engines.scripts.lock().unwrap().insert(lane, replies.iter().copied().collect());
    }

    /// Returns the lanes whose engines received a request, in order.
    fn attempted_lanes(&self) -> String {
        self.engines.received.lock().unwrap().iter().map(|(name, _)| *name).collect()
    }

    /// Sends a request and returns the response, with its body still to come.
    async fn begin(&self, body: &'static str) -> Response {
        self.begin_with_id("the-id", body).await
    }

    async fn begin_with_id(&self, id: &str, body: &'static str) -> Response {
        let request = Request::post("/v1/chat/completions")
            .header("content-type", "application/json")
            .header("x-request-id", id)
            .header("authorization", format!("Bearer {API_KEY}"))
            .body(Body::from(body))
            .unwrap();
        once::serve(self.gateway.pipeline(), Endpoint::ChatCompletions, request).await
    }

    /// Sends a request and returns status, headers and body of the response.
    async fn send(&self, body: &'static str) -> (u16, http::HeaderMap, String) {
        let (head, body) = self.begin(body).await.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until a request is queued for a lane.
    async fn wait_for_queued(&self, lane: &str) {
        let line = format!("pointsman_lane_queued{{lane={lane:?}}} 1");
        while self.metric(&line).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns the lines of a metric.
    fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.gateway.status().registry)
            .unwrap();
        text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
    }
}

/// Installs a subscriber that discards everything. Without one, a test whose thread has none can
/// disable a callsite for the log of another test at the same time.
fn keep_callsites_enabled() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(std::io::sink)
            .finish();
        tracing::subscriber::set_global_default(subscriber).ok();
    });
}

fn lane(name: &str, model: &str, slots: u32, port: u16) -> LaneSpec {
    let url = format!("http://127.0.0.1:{port}");
    let second = Duration::from_secs(1);
    LaneSpec {
        name: name.into(),
        models: vec![model.into()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: match name {
            "a" => 1000,
            "b" => 4000,
            _ => 0,
        },
        endpoints: None,
        slots,
        group: None,
        need: 0,
        asleep: 0,
        residency: Residency::External,
        expected_load: second,
        cost_milli: 0,
        engine_model: None,
        stream_usage: false,
        engine: ExternalSpec::try_new(&url, None, second).unwrap().into(),
        fallback_statuses: [
            (402, Trigger::ServerError),
            (404, Trigger::ServerError),
            (409, Trigger::Overloaded),
        ]
        .into(),
        timeouts: Timeouts { connect: 30 * second, first_byte: 30 * second, idle: 30 * second },
        liveness: Liveness {
            stall: Duration::ZERO,
            probe_interval: Duration::ZERO,
            probe_timeout: Duration::ZERO,
        },
    }
}
