//! `pointsman serve`: builds the parts of the host, connects them, and runs them.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use futures_util::future::{join, join_all};
use pointsman_domain::PlanLimits;
use pointsman_fleet::{Fleet, FleetMetrics, FleetSpec, FleetTasks, StateDir};
use pointsman_gateway::{
    ConnectionSettings, Drain, Gateway, GatewayMetrics, GatewayParts, IdempotencySettings,
    ResponseLimits, ResponseModel, Settings, SpoolSettings, StatusPart, raise_descriptor_limit,
};
use pointsman_policy::{
    Allocator, Compiler, FleetLink, Policies, PolicyMetrics, Runtime, RuntimeSettings,
};
use pointsman_record::{RecordMetrics, Recorder};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::admin::AdminBackend;
use crate::cli::Serve;
use crate::key_source::KeySource;
use crate::listeners::{self, Bound};
use crate::reload::Reloader;
use crate::shutdown::{Running, Signals};
use crate::startup::EarlyConnections;
use crate::tokens::TokenKeys;
use crate::{
    admin, facts, inherited, memory, service_manager, shutdown, state, store, telemetry, usage,
};
use pointsman_config::Config;

/// Stack size of a worker thread in bytes. A policy can use 512 KiB of it, on top of the frames of
/// the request that calls it.
const WORKER_STACK: usize = 4 << 20;

/// Time for blocking tasks to end when the host has stopped.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until a signal stops the host.
pub(crate) fn serve(options: &Serve) -> Result<()> {
    let begun = Instant::now();
    let config = Config::load(&options.config)?;
    // Dropped last, which writes the last lines.
    let log = telemetry::start(&config.log, options.log.as_deref())?;
    let mut registry = Registry::default();
    log.register(&mut registry);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK)
        .build()
        .context("failed to start the async runtime")?;
    // On a worker: the kernel ends engines with the thread that started them (PR_SET_PDEATHSIG),
    // and the calling thread is not a worker.
    let options = options.clone();
    let main = runtime.block_on(async move {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { run(config, &options, registry, begun).await });
        tasks.join_next().await
    });
    // A blocking task that compiles a policy, or reads from a disk that hangs, must not keep the
    // process; its compiler ends with it.
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    main.transpose().context("the host failed")?.unwrap_or(Ok(()))
}

async fn run(
    mut config: Config,
    options: &Serve,
    mut registry: Registry,
    begun: Instant,
) -> Result<()> {
    let mut signals = Signals::listen()?;
    let key_source = KeySource::load(&options.config, &config)?;
    state::prepare(&mut config)?;
    let listeners = listeners::open(options, &config.server.listeners).await?;
    // Clients are answered from here on.
    let mut early = EarlyConnections::default();
    let load = load_policies(&config.policies, PolicyMetrics::register(&mut registry));
    let mut step = Step { early: &mut early, listeners: &listeners, signals: &mut signals };
    let Some(policies) = step.finish("policies were loaded", load).await? else { return Ok(()) };

    let operators = admin::open(&config.admin).await?;
    let records = config.records.take();
    let start = |records| Recorder::start(records, RecordMetrics::register(&mut registry));
    let (recorder, records) = records.map(start).transpose()?.unzip();
    let spec = fleet_spec(&config, options);
    let opened = step.finish("engines of an earlier host were ended", open_state(&spec)).await?;
    let Some(state_dir) = opened else { return Ok(()) };
    let responses = store::limits(&config.responses);
    let opened = store::open(config.fleet.state_dir.as_deref(), responses, &mut registry);
    let Some(store) = step.finish("the store was opened", opened).await? else { return Ok(()) };
    let tokens = config.tokens.take();
    let tokens = TokenKeys::open(tokens, config.fleet.state_dir.as_deref(), &mut registry)?;
    let metered = usage::start(&config.usage, &store, &mut registry)?;
    let (fleet, fleet_tasks) = start_fleet(&spec, state_dir, &mut registry);
    policies.attach(fleet_link(&fleet));
    let keys = key_source.keys();
    let (reloader, backend) = start_reloader(options, &config, &policies, key_source)?;
    let drain = Drain::default();
    let gateway = Gateway::new(GatewayParts {
        settings: gateway_settings(&config, spec.state_dir.as_deref(), responses),
        keys: tokens.added_to(keys),
        accounts: metered.accounts,
        usage: metered.book,
        fleet,
        advisor: policies.slot(),
        config: reload_status(&reloader),
        policies: Box::new(move || serde_json::to_value(policies.status()).unwrap_or_default()),
        recorder,
        metrics: GatewayMetrics::register(&mut registry),
        registry,
        store: store.clone(),
        drain: drain.clone(),
    });
    let addresses: Vec<_> = listeners.iter().map(|bound| bound.address.clone()).collect();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let serve = async {
            let operators = operators.serve(&gateway, backend);
            let clients = listeners
                .into_iter()
                .map(|Bound { listener, settings, .. }| gateway.serve(listener, settings));
            tokio::join!(join_all(clients), operators, early.finish());
        };
        let background = join(memory::trim_after_peaks(), tokens.refresh());
        tokio::select! { () = serve => {}, _ = background => {} }
    });
    listeners::announce(&addresses, begun, options.port_file.as_deref())?;
    service_manager::ready();
    let running = Running {
        reloader,
        server,
        fleet: fleet_tasks,
        drain,
        drain_timeout: config.server.drain_timeout,
        limit: shutdown::limit(config.server.drain_timeout, &config.fleet),
        records,
        usage: metered.writer,
        store,
    };
    shutdown::run(running, signals).await
}

/// What goes on during a step of the start that takes long.
struct Step<'a> {
    early: &'a mut EarlyConnections,
    listeners: &'a [Bound],
    signals: &'a mut Signals,
}

impl Step<'_> {
    /// Answers clients until `work` is done, and returns its result; `None` if a signal stops the
    /// host before that. `name` says for the log what was done.
    async fn finish<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        tokio::select! {
            done = self.early.serve_while(self.listeners, work) => done.map(Some),
            signal = self.signals.stop() => {
                tracing::info!(event = "start_aborted", signal, "stopped while {name}");
                Ok(None)
            }
        }
    }
}

fn gateway_settings(
    config: &Config,
    state_dir: Option<&Path>,
    responses: ResponseLimits,
) -> Settings {
    let (server, max_wait) = (&config.server, config.queue.max_wait);
    let default = || state_dir.map_or_else(std::env::temp_dir, |dir| dir.join("spool"));
    let spool_dir = server.spool_dir.clone().unwrap_or_else(default);
    Settings {
        connections: ConnectionSettings {
            max: raise_descriptor_limit(),
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
        responses,
        // Random, from the keys that the standard library draws for each process.
        nonce: RandomState::new().hash_one(()),
        started_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

/// Loads the policies, on a blocking thread. A policy that cannot be loaded does not keep the host
/// from serving: its `on-error` mode applies.
async fn load_policies(
    config: &pointsman_config::Policies,
    metrics: Arc<PolicyMetrics>,
) -> Result<Arc<Policies>> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let settings = RuntimeSettings {
        cache_dir: config.cache.clone(),
        compiler: Compiler::this_program(),
        allocator: Allocator::Auto,
        warm_instances: workers.min(16),
        ..RuntimeSettings::default()
    };
    let chain = config.chain.clone();
    if chain.policies.is_empty() {
        tracing::info!("no policies configured; using built-in routing");
    }
    let load = move || -> Result<Arc<Policies>> {
        let runtime = Runtime::new(settings)?;
        let policies = Policies::new(&runtime, &metrics, Box::new(facts::from_case))
            .context("failed to spawn the policy threads")?;
        policies.apply(chain);
        Ok(policies)
    };
    tokio::task::spawn_blocking(load).await.context("failed to load the policies")?
}

/// Returns the access to lanes that policies have outside of requests: reading their state and
/// giving hints.
fn fleet_link(fleet: &Fleet) -> FleetLink {
    let (view, hint) = (fleet.clone(), fleet.clone());
    FleetLink {
        view: Box::new(move || view.view()),
        hint: Box::new(move |lane, wanted, duration| hint.hint(lane, wanted, duration)),
    }
}

/// Opens the state directory and ends the engines that an earlier host left running, on a blocking
/// thread: that takes some seconds. Logs what it finds. Before the first load, so that the memory
/// of old engines is free.
async fn open_state(spec: &FleetSpec) -> Result<StateDir> {
    let (dir, watchdog) = (spec.state_dir.clone(), spec.watchdog.clone());
    let open = move || -> Result<StateDir> {
        let state_dir = StateDir::open(dir.as_deref(), watchdog.as_deref())?;
        state_dir.sweep();
        Ok(state_dir)
    };
    tokio::task::spawn_blocking(open).await.context("failed to open the state directory")?
}

fn fleet_spec(config: &Config, options: &Serve) -> FleetSpec {
    let mut spec = config.fleet.clone();
    spec.machine = options.machine.clone();
    match std::env::current_exe() {
        Ok(program) => spec.watchdog = Some(program),
        Err(error) => {
            tracing::warn!(%error, "failed to find the path of this program; running without a \
                watchdog")
        }
    }
    for warning in inherited::warnings(&spec) {
        tracing::warn!("{warning}");
    }
    spec
}

fn start_fleet(
    spec: &FleetSpec,
    state_dir: StateDir,
    registry: &mut Registry,
) -> (Fleet, FleetTasks) {
    let names: Vec<(String, u32)> =
        spec.lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
    let metrics = FleetMetrics::register(registry, &names);
    Fleet::start_with(spec, &metrics, state_dir)
}

/// Starts what applies changes of policies and keys, and what operators command it with.
fn start_reloader(
    options: &Serve,
    config: &Config,
    policies: &Arc<Policies>,
    keys: KeySource,
) -> Result<(Arc<Reloader>, Arc<AdminBackend>)> {
    let watched = (Arc::clone(policies), keys);
    let reloader = Reloader::start(&options.config, &config.policies, watched)
        .context("failed to spawn the reload thread")?;
    let reloader = Arc::new(reloader);
    let (policies, status) = (Arc::clone(policies), Arc::clone(&reloader));
    Ok((reloader, Arc::new(AdminBackend { policies, reloader: status })))
}

/// Returns the status of the configuration.
fn reload_status(reloader: &Arc<Reloader>) -> StatusPart {
    let reloader = Arc::clone(reloader);
    Box::new(move || serde_json::to_value(reloader.status()).unwrap_or_default())
}
