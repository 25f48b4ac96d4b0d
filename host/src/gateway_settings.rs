//! Makes the settings of the gateway and its listeners from a configuration.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pointsman_config::{Config, Listener};
use pointsman_domain::PlanLimits;
use pointsman_gateway::{
    ConnectionSettings, ConsoleSettings, Cors, HealthRule, IdempotencySettings, ListenerSettings,
    ProxyLanes, ResponseLimits, ResponseModel, Settings, SpoolSettings, raise_descriptor_limit,
};

use crate::telemetry;

/// Returns the settings of a host that starts. `responses` are the limits of the store.
pub(crate) fn at_start(
    config: &Config,
    state_dir: Option<&Path>,
    responses: ResponseLimits,
) -> Settings {
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Random, from the keys that the standard library draws for each process.
    let nonce = RandomState::new().hash_one(());
    let max = raise_descriptor_limit();
    let fixed = Fixed { max_connections: max, responses, nonce, started_at };
    make(config, state_dir, fixed)
}

/// Returns the settings of a picker that starts, from those of a host with the configuration.
pub(crate) fn of_picker(config: &Config, settings: Settings) -> Settings {
    let lanes = Some(Arc::new(ProxyLanes::from_spec(&config.fleet)));
    let max_wait = config.pick.as_ref().map_or(settings.plan.max_wait, |pick| pick.max_wait);
    let plan = PlanLimits { max_wait, ..settings.plan };
    Settings { proxy_lanes: lanes, plan, ..settings }
}

/// Returns the settings of a changed configuration. What cannot change is that of `first`, the
/// settings with which the host was started.
pub(crate) fn changed(config: &Config, state_dir: Option<&Path>, first: &Settings) -> Settings {
    let max_background = config.responses.max_background;
    let fixed = Fixed {
        max_connections: first.connections.max,
        responses: ResponseLimits { max_background, ..first.responses },
        nonce: first.nonce,
        started_at: first.started_at,
    };
    let settings = make(config, state_dir, fixed);
    if first.proxy_lanes.is_some() { of_picker(config, settings) } else { settings }
}

/// What stays as it is until the host ends.
struct Fixed {
    max_connections: usize,
    responses: ResponseLimits,
    nonce: u64,
    started_at: u64,
}

fn make(config: &Config, state_dir: Option<&Path>, fixed: Fixed) -> Settings {
    let (server, max_wait) = (&config.server, config.queue.max_wait);
    let default = || state_dir.map_or_else(std::env::temp_dir, |dir| dir.join("spool"));
    let spool_dir = server.spool_dir.clone().unwrap_or_else(default);
    Settings {
        connections: ConnectionSettings {
            max: fixed.max_connections,
            idle_timeout: server.idle_timeout,
            write_timeout: server.write_timeout,
            hosts: server.hosts.clone(),
        },
        max_body: server.max_body,
        body_timeout: server.body_timeout,
        body_memory: server.body_memory,
        spool: SpoolSettings {
            max_upload: server.max_upload,
            memory: server.upload_memory,
            folder: spool_dir,
            max_size: server.spool_size,
        },
        plan: PlanLimits { max_wait, max_steps: server.max_attempts },
        guards: Arc::new(config.guards.clone()),
        deadline: server.deadline,
        keep_alive: server.keep_alive.unwrap_or_default(),
        idempotency: IdempotencySettings {
            keep: server.idempotency.keep,
            grace: server.idempotency.grace,
            memory: server.idempotency.memory,
        },
        response_model: match server.response_model {
            pointsman_config::ResponseModel::Asked => ResponseModel::Asked,
            pointsman_config::ResponseModel::Engine => ResponseModel::Engine,
        },
        responses: fixed.responses,
        traces: telemetry::export(&config.telemetry).and_then(|export| export.traces),
        decisions: config.admin.decisions,
        console: ConsoleSettings {
            enabled: config.console.enabled,
            client_listener: config.console.client_listener,
        },
        host_name: config.fleet.peering.name.clone(),
        proxy_lanes: None,
        nonce: fixed.nonce,
        started_at: fixed.started_at,
    }
}

/// Returns the settings of a listener.
pub(crate) fn of_listener(listener: &Listener) -> ListenerSettings {
    ListenerSettings {
        addresses: vec![listener.address.to_string()],
        path_prefix: listener.path_prefix.clone(),
        default_model: listener.default_model.clone(),
        models: listener.models.iter().cloned().collect(),
        health: match listener.health {
            pointsman_config::HealthRule::AnyLane => HealthRule::AnyLane,
            pointsman_config::HealthRule::AllLanes => HealthRule::AllLanes,
        },
        cors: listener.cors.clone().map(|cors| Cors {
            origins: cors.origins,
            credentials: cors.credentials,
            headers: cors.headers,
            max_age: cors.max_age,
        }),
        compression: listener.compression,
    }
}
