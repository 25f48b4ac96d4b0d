//! `pointsman decide` without a host: what one would decide that has just started with a
//! configuration. The parts of a host are made as for `serve`, without listeners, engines and files
//! that are written.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use http::Request;
use pointsman_access::{Accounts, Keys, UsageBook, UsageSettings};
use pointsman_config::Config;
use pointsman_domain::LaneStat;
use pointsman_fleet::{Fleet, FleetMetrics, FleetSpec, FleetTasks};
use pointsman_gateway::{
    AuditLog, Drain, Feed, Gateway, GatewayMetrics, GatewayParts, ListenerSettings,
    preview_request, response_namespace,
};
use pointsman_policy::{ChainSpec, Policies};
use pointsman_record::{Assumptions, Explanation, Source};
use pointsman_store::{Options, Store};
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::app::WORKER_STACK;
use crate::in_service::in_service;
use crate::key_source::KeySource;
use crate::policy::read_response;
use crate::policy_state::StoredStates;
use crate::{chains, check, gateway_settings, store};

/// Decides about a request, which is one for `POST /decide` of the admin API.
///
/// # Errors
/// If the configuration is not valid, or a host would reject the request to decide.
pub(super) fn decide(file: &Path, request: Request<String>) -> Result<Explanation> {
    let config = Config::load_without_secrets(file, &[])?;
    let keys = KeySource::load(file, &config)?;
    let policies = chains::to_check(config.policies.cache.clone())?;
    let invalid = check::load_chain(file, &config, &policies, chain(&config));
    let (accounts, kept) = restored(config.fleet.state_dir.as_deref(), &policies);
    let mut notes = vec![
        "no engine is asked: contexts, adapters and endpoints are those of the configuration"
            .to_owned(),
        "no requests are in flight, no prompt is cached, and nothing was measured".to_owned(),
        kept,
    ];
    if config.shared_state.is_some() {
        notes.push("the store that hosts share is not read".to_owned());
    }
    let hide = |text| config.variables.iter().fold(text, |text, found| found.hide_in(text));
    notes.extend(invalid.into_iter().map(hide));
    // Calls of policies need as much of a stack as in a host.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK)
        .build()
        .context("failed to start the async runtime")?;
    let (mut explanation, lanes) = runtime.block_on(async {
        let mut registry = Registry::default();
        let (fleet, _tasks) = fleet_at_rest(&config.fleet, &mut registry)?;
        let listener = config.server.listeners.first();
        let listener = listener.map(gateway_settings::of_listener).unwrap_or_default();
        let gateway = gateway(&config, keys.keys(), accounts, &fleet, (&policies, registry))?;
        let explanation = explain(&gateway, listener, request).await?;
        let view = fleet.view();
        let state = |stat: LaneStat| {
            (view.topology.name(stat.id).to_owned(), stat.state.label().to_owned())
        };
        Ok::<_, anyhow::Error>((explanation, view.stats().map(state).collect()))
    })?;
    explanation.source = Source::Configuration;
    explanation.assumed = Some(Assumptions { config: file.display().to_string(), lanes, notes });
    Ok(explanation)
}

async fn explain(
    gateway: &Gateway,
    listener: ListenerSettings,
    request: Request<String>,
) -> Result<Explanation> {
    let (status, body) = preview_request(gateway, listener, request).await;
    super::parse(read_response(status, &body)?)
}

/// Returns the chain with the versions that the last host had in service.
fn chain(config: &Config) -> ChainSpec {
    let store = config.policies.chain.store.clone();
    let mut chain = in_service(config.policies.chain.clone());
    for policy in &mut chain.policies {
        // What is in service is not pulled.
        policy.source.take_if(|_| store.as_ref().is_some_and(|dir| policy.dir.starts_with(dir)));
    }
    chain
}

/// Restores what the last host has kept: the states of policies, and what is used of budgets.
/// Returns the accounts, and what was found.
fn restored(state_dir: Option<&Path>, policies: &Policies) -> (Arc<Accounts>, String) {
    let accounts = Arc::new(Accounts::default());
    let path = state_dir.map(|dir| dir.join(store::FILE)).filter(|path| path.is_file());
    let Some(path) = path else {
        let note = "the states of policies are empty, and nothing is used of limits and budgets";
        return (accounts, note.to_owned());
    };
    // Without namespaces, the file is left as it is.
    let options = Options { path: Some(path), namespaces: Vec::new(), on_loss: Box::new(|_| {}) };
    let restored = Store::open(options).map_err(|error| {
        let code = error.code();
        format!("{error} [{code}]")
    });
    let restored = restored.and_then(|store| {
        let book = UsageBook::new(store.clone(), UsageSettings::default());
        accounts.restore(book.budgets().map_err(|error| error.to_string())?);
        policies.attach_state(Arc::new(StoredStates(store)));
        Ok(())
    });
    let note = match restored {
        Ok(()) => "the states of policies, and what is used of budgets, are those that the last \
                   host has kept"
            .to_owned(),
        Err(error) => format!(
            "the states of policies are empty, and nothing is used of limits and budgets, because \
             what the last host has kept cannot be read: {error}"
        ),
    };
    (accounts, note)
}

fn fleet_at_rest(spec: &FleetSpec, registry: &mut Registry) -> Result<(Fleet, FleetTasks)> {
    let lanes: Vec<(String, u32)> =
        spec.lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
    let metrics = FleetMetrics::register(registry, &lanes);
    Ok(Fleet::at_rest(spec, &metrics)?)
}

fn gateway(
    config: &Config,
    keys: Keys,
    accounts: Arc<Accounts>,
    fleet: &Fleet,
    (policies, mut registry): (&Arc<Policies>, Registry),
) -> Result<Gateway> {
    let responses = store::limits(&config.responses);
    let in_memory = Options {
        path: None,
        namespaces: vec![response_namespace(&responses)],
        on_loss: Box::new(|_| {}),
    };
    let store = Store::open(in_memory)?;
    let book = UsageBook::new(store.clone(), UsageSettings::default());
    let unused = || Box::new(|| Value::Null);
    Ok(Gateway::new(GatewayParts {
        settings: gateway_settings::at_start(config, None, responses),
        keys,
        accounts,
        usage: Arc::new(book),
        fleet: fleet.clone(),
        advisor: policies.slot(),
        policies: unused(),
        config: unused(),
        shared_state: unused(),
        recorder: None,
        observer: None,
        log: Feed::default(),
        audit: AuditLog::open(None),
        metrics: GatewayMetrics::register(&mut registry),
        registry,
        store,
        shared: None,
        drain: Drain::default(),
    }))
}
