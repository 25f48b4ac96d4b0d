//! A gateway in the process of a benchmark.
#![expect(clippy::unwrap_used, reason = "a failed setup has to end the benchmark")]

use std::sync::Arc;
use std::time::Duration;

use pointsman_access::Keys;
use pointsman_domain::PlanLimits;
use pointsman_domain::dispatch::{Residency, Rules};
use pointsman_fleet::{
    ExternalSpec, Fleet, FleetMetrics, FleetSpec, FleetTasks, LaneSpec, Liveness, Timeouts,
};
use pointsman_gateway::{
    AdvisorSlot, ConnectionSettings, Drain, Gateway, GatewayMetrics, GatewayParts, ResponseLimits,
    ResponseModel, Settings, response_namespace,
};
use pointsman_store::{Options, Store};
use prometheus_client::registry::Registry;
use serde_json::Value;

/// Returns a gateway whose lanes are ready.
pub(crate) async fn gateway(
    lanes: Vec<LaneSpec>,
    advisor: AdvisorSlot,
    drain: Drain,
) -> (Gateway, FleetTasks) {
    let mut registry = Registry::default();
    let names: Vec<_> = lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
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
    let (fleet, tasks) = Fleet::start(&spec, &metrics).unwrap();
    fleet.wait_for(|view| view.stats().all(|stat| stat.state.serving())).await;
    let deadline = Duration::from_secs(600);
    let limits = ResponseLimits::default();
    let gateway = Gateway::new(GatewayParts {
        settings: Settings {
            connections: ConnectionSettings::default(),
            max_body: 1 << 20,
            body_timeout: deadline,
            body_memory: 128 << 20,
            spool: pointsman_gateway::SpoolSettings::default(),
            plan: PlanLimits { max_wait: deadline, max_steps: 1 },
            guards: Default::default(),
            deadline,
            keep_alive: Duration::ZERO,
            response_model: ResponseModel::Asked,
            idempotency: pointsman_gateway::IdempotencySettings::default(),
            responses: limits,
            traces: None,
            decisions: 500,
            console: pointsman_gateway::ConsoleSettings::default(),
            host_name: String::new(),
            proxy_lanes: None,
            nonce: 0,
            started_at: 0,
        },
        keys: Keys::default(),
        accounts: Arc::default(),
        usage: Arc::default(),
        fleet,
        advisor,
        policies: Box::new(|| Value::Null),
        config: Box::new(|| Value::Null),
        shared_state: Box::new(|| Value::Null),
        recorder: None,
        observer: None,
        log: pointsman_gateway::Feed::default(),
        audit: pointsman_gateway::AuditLog::default(),
        metrics: GatewayMetrics::register(&mut registry),
        shared: None,
        registry,
        store: Store::open(Options {
            path: None,
            namespaces: vec![response_namespace(&limits)],
            on_loss: Box::new(|_| ()),
        })
        .unwrap(),
        drain,
    });
    (gateway, tasks)
}

/// Returns a lane of an engine on this port, which keeps its connections.
pub(crate) fn lane(name: &str, model: &str, port: u16) -> LaneSpec {
    let url = format!("http://127.0.0.1:{port}");
    let second = Duration::from_secs(1);
    LaneSpec {
        name: name.into(),
        models: vec![model.into()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 2048,
        endpoints: None,
        slots: 64,
        group: None,
        need: 0,
        asleep: 0,
        residency: Residency::External,
        expected_load: second,
        cost_milli: 0,
        engine_model: None,
        stream_usage: false,
        engine: ExternalSpec::try_new(&url, None, second).unwrap().into(),
        fallback_statuses: std::collections::BTreeMap::new(),
        timeouts: Timeouts { connect: 30 * second, first_byte: 600 * second, idle: 600 * second },
        liveness: Liveness {
            stall: Duration::ZERO,
            probe_interval: Duration::ZERO,
            probe_timeout: Duration::ZERO,
        },
    }
}
