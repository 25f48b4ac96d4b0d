//! `pointsman serve`: builds the parts of the host, connects them, and runs them.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::{join, join_all, join3};
use parking_lot::Mutex;
use pointsman_fleet::{Fleet, FleetMetrics, FleetSpec, FleetTasks, StateDir};
use pointsman_gateway::{
    AuditLog, Drain, Feed, Gateway, GatewayMetrics, GatewayParts, PolicyAdmin, RequestObserver,
    StatusPart,
};
use pointsman_policy::{FleetLink, Policies, PolicyMetrics};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::admin::AdminBackend;
use crate::cli::Serve;
use crate::handover::{self, Inheritance, Served, StartedAs, TakeOver};
use crate::key_source::KeySource;
use crate::listeners::{self, Bound};
use crate::pick::{self, PickListener, Role};
use crate::records::Records;
use crate::registry::PolicySources;
use crate::reload::{ReloadMetrics, Reloaded, Reloader, Target};
use crate::running::{Running, Signals};
use crate::sockets::Sockets;
use crate::startup::EarlyConnections;
use crate::stop_limits::StopLimits;
use crate::telemetry::{LogControl, Observer};
use crate::tokens::TokenKeys;
use crate::{
    admin, gateway_settings, guards, inherited, policy_start, policy_state, service_manager,
    shared_state, shutdown, state, store, telemetry, usage,
};
use pointsman_config::Config;

/// Stack size of a worker thread in bytes. A policy can use 512 KiB of it, on top of the frames of
/// the request that calls it.
pub(crate) const WORKER_STACK: usize = 4 << 20;

/// Time for blocking tasks to end when the host has stopped.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until a signal stops the host.
pub(crate) fn serve(options: &Serve, role: Role) -> Result<()> {
    let (begun, started_as) = (Instant::now(), StartedAs::note());
    // Before other files are opened.
    let activated = if options.take_over { Sockets::default() } else { Sockets::activated() };
    let text = Config::source(&options.config)?;
    let config = Config::from_source(&text, &options.config)?;
    role.check(&options.config, &config)?;
    // Dropped last, which writes the last lines.
    let log = telemetry::start(&config, options.log.as_deref())?;
    let mut registry = Registry::default();
    log.register(&mut registry);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK)
        .build()
        .context("failed to start the async runtime")?;
    // On a worker: the kernel ends engines with the thread that started them (PR_SET_PDEATHSIG),
    // and the calling thread is not a worker.
    let (options, log_control, observer) = (options.clone(), log.control(), log.observer());
    let log_feed = log.feed();
    let main = runtime.block_on(async move {
        let mut tasks = JoinSet::new();
        let log = log_control;
        let source = Source { role, text, log, log_feed, observer, begun, started_as, activated };
        tasks.spawn(async move { start(config, &options, source, registry).await });
        tasks.join_next().await
    });
    // A blocking task that compiles a policy, or reads from a disk that hangs, must not keep the
    // process; its compiler ends with it.
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    main.transpose().context("the host failed")?.unwrap_or(Ok(()))
}

/// What a reload needs besides the configuration.
struct Source {
    role: Role,
    /// The text of the configuration.
    text: String,
    log: LogControl,
    /// Writes of requests that have ended.
    observer: Option<Arc<Observer>>,
    log_feed: Feed,
    /// When the process was started, and how.
    begun: Instant,
    started_as: StartedAs,
    /// The sockets of the service manager.
    activated: Sockets,
}

/// Runs the host, which takes over from another one if it was started for that.
async fn start(config: Config, options: &Serve, source: Source, registry: Registry) -> Result<()> {
    if !options.take_over {
        return run(config, options, source, registry, None).await;
    }
    let mut take_over = TakeOver::begin().await?;
    let report = take_over.failure();
    // After the hand-over, no host waits for the error.
    run(config, options, source, registry, Some(take_over)).await.inspect_err(report)
}

#[expect(clippy::too_many_lines, reason = "the order of the start is to be seen as a whole")]
async fn run(
    mut config: Config,
    options: &Serve,
    source: Source,
    mut registry: Registry,
    mut take_over: Option<TakeOver>,
) -> Result<()> {
    let mut signals = Signals::listen()?;
    let key_source = KeySource::load(&options.config, &config)?;
    state::prepare(&mut config)?;
    let mut sockets = match &mut take_over {
        Some(take_over) => {
            take_over.check_state_dir(config.fleet.state_dir.as_deref())?;
            take_over.take_sockets()
        }
        None => source.activated,
    };
    let picks = pick::open(source.role, options, &config, &mut sockets, &mut registry).await?;
    let of_clients = source.role.listeners(&config);
    let listeners = listeners::open(options, of_clients, &mut sockets).await?;
    // Clients are answered from here on, unless the host before still does that.
    let mut early = EarlyConnections::default();
    let sources = PolicySources::new(&mut registry);
    let shared = shared_state::start(config.shared_state.as_ref(), &mut registry)?;
    let metrics = PolicyMetrics::register(&mut registry);
    let load =
        policy_start::load(&config.policies, metrics, (Arc::clone(&sources), shared.clone()));
    let early_listeners = if take_over.is_some() { &[] } else { listeners.as_slice() };
    let mut step = Step { early: &mut early, listeners: early_listeners, signals: &mut signals };
    let Some(policies) = step.finish("policies were loaded", load).await? else { return Ok(()) };

    let operators = admin::open(&config.admin, &mut sockets).await?;
    sockets.close();
    let mut copies = admin::copies(&operators, &config.admin)?;
    for Bound { id, listener, .. } in &listeners {
        copies.push((id.clone(), listener.copy()?));
    }
    copies.extend(picks.as_ref().map(PickListener::copy).transpose()?);
    let records = Records::new(&mut registry);
    let recorder = records.apply(config.records.take())?;
    let spec = fleet_spec(&config, options);
    let handed = match &mut take_over {
        None => None,
        Some(take_over) => {
            let prepared = step.finish("the host before served", take_over.prepared()).await?;
            let Some(handed) = prepared else { return Ok(()) };
            Some(handed)
        }
    };
    let mut state_dir = None;
    if handed.is_none() {
        let ended = step.finish("engines of an earlier host were ended", open_state(&spec));
        let Some(opened) = ended.await? else { return Ok(()) };
        state_dir = Some(opened);
    }
    let responses = store::limits(&config.responses);
    let is_inherited = handed.is_some();
    let opened =
        store::open(config.fleet.state_dir.as_deref(), responses, is_inherited, &mut registry);
    let Some(store) = step.finish("the store was opened", opened).await? else { return Ok(()) };
    let tokens = config.tokens.take();
    let tokens = TokenKeys::open(tokens, config.fleet.state_dir.as_deref(), &mut registry)?;
    let metered = usage::start(&config.usage, &store, &mut registry)?;
    let states = policy_state::start(&policies, &store, &mut registry)?;
    // The last step of a hand-over that can fail: it takes the engines.
    let state_dir = match state_dir {
        Some(state_dir) => state_dir,
        None => open_state(&spec).await?,
    };
    let (fleet, fleet_tasks) = start_fleet(&spec, state_dir, &mut registry);
    policies.attach(fleet_link(&fleet));
    let keys = key_source.keys();
    let (reloader, reload_metrics) = (Reloader::new(), ReloadMetrics::register(&mut registry));
    let (upgrades, requested) = handover::upgrades();
    let backend = AdminBackend {
        policies: Arc::clone(&policies),
        reloader: Arc::clone(&reloader),
        upgrades: upgrades.clone(),
    };
    let drain = Drain::default();
    let mut settings = gateway_settings::at_start(&config, spec.state_dir.as_deref(), responses);
    if picks.is_some() {
        settings = gateway_settings::of_picker(&config, settings);
    }
    let address = listeners.first().map(|bound| bound.address.to_string()).unwrap_or_default();
    let requests = shared.as_ref().map(|shared| {
        shared.share_limits(&metered.accounts);
        let hosts = shared.requests(&config.fleet.peering.name, &address);
        shared.share_usage(&hosts, &metered.book, &metered.accounts).map(|()| hosts)
    });
    let requests = requests.transpose()?;
    let gateway = Gateway::new(GatewayParts {
        settings: settings.clone(),
        keys: tokens.added_to(keys),
        accounts: Arc::clone(&metered.accounts),
        usage: Arc::clone(&metered.book),
        fleet: fleet.clone(),
        advisor: policies.slot(),
        config: reload_status(&reloader),
        shared_state: shared_state::status_part(shared.as_ref()),
        policies: policy_status(&policies),
        recorder: recorder.clone(),
        observer: source.observer.clone().map(|observer| observer as Arc<dyn RequestObserver>),
        log: source.log_feed,
        audit: AuditLog::open(spec.state_dir.as_deref()),
        metrics: GatewayMetrics::register(&mut registry),
        registry,
        store: store.clone(),
        shared: requests,
        drain: drain.clone(),
    });
    if let Some(observer) = source.observer {
        observer.set_metrics_source(gateway.metrics_source());
        fleet.observe_switches(move |switch| observer.switched(&switch));
    }
    let limits = StopLimits::new(config.server.drain_timeout, &config.fleet);
    let limits = Arc::new(Mutex::new(limits));
    let reloaded = Reloaded {
        file: &options.config,
        text: source.text,
        config: &config,
        policies,
        sources: Arc::clone(&sources),
        keys: key_source,
        target: Target {
            fleet: fleet.clone(),
            spec,
            gateway: gateway.clone(),
            first: settings,
            records: records.clone(),
            recorder,
            usage: Arc::clone(&metered.book),
            log: source.log,
            stop: Arc::clone(&limits),
            runtime: tokio::runtime::Handle::current(),
        },
        metrics: reload_metrics,
    };
    reloader.start(reloaded).context("failed to spawn the reload threads")?;
    let addresses: Vec<_> = listeners.iter().map(|bound| bound.address.clone()).collect();
    let addresses = [addresses, picks.iter().map(PickListener::address).collect()].concat();
    let (mut server, mut predecessors) = (JoinSet::new(), JoinSet::new());
    let report_serving = take_over.as_ref().map(TakeOver::serving);
    if let (Some(take_over), Some(handed)) = (take_over, handed) {
        let served = Served {
            fleet: fleet.clone(),
            book: Arc::clone(&metered.book),
            accounts: metered.accounts,
            store: store.clone(),
            drain: drain.clone(),
        };
        predecessors.spawn(take_over.succeed(handed, served).await);
    }
    let backend: Arc<dyn PolicyAdmin> = Arc::new(backend);
    operators.offer_console(&gateway, &backend);
    let (watched, closing) = (fleet.clone(), drain.clone());
    let sources_changed = Arc::clone(&reloader);
    server.spawn(async move {
        let operators = operators.serve(&gateway, backend);
        let clients =
            join(serve_clients(&gateway, listeners), pick::serve(picks, &gateway, closing));
        let serve = join3(clients, operators, early.finish());
        let watchdog = service_manager::feed_watchdog(&watched);
        let followed = sources.follow(|| sources_changed.policies_changed());
        let background = join3(tokens.refresh(), watchdog, followed);
        tokio::select! { _ = serve => {}, _ = background => {} }
    });
    listeners::announce(&addresses, source.begun, options.port_file.as_deref())?;
    service_manager::ready();
    if let Some(report) = report_serving {
        copies.iter().for_each(|(_, copy)| copy.take_file());
        report();
    }
    let inheritance = Inheritance {
        start: source.started_as,
        listeners: copies,
        state_dir: config.fleet.state_dir.clone(),
        upgrades: requested,
    };
    let running = Running {
        reloader,
        server,
        predecessors,
        fleet: fleet_tasks,
        lanes: fleet,
        drain,
        limits,
        records,
        usage: metered.writer,
        states,
        shared,
        store,
    };
    shutdown::run(running, inheritance, signals).await
}

/// Serves clients on all listeners until the drain is closed.
async fn serve_clients(gateway: &Gateway, listeners: Vec<Bound>) {
    let serve = |Bound { listener, settings, .. }| gateway.serve(listener, settings);
    join_all(listeners.into_iter().map(serve)).await;
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
            () = service_manager::extend_start() => Ok(None),
            signal = self.signals.stop() => {
                tracing::info!(event = "start_aborted", signal, "stopped while {name}");
                Ok(None)
            }
        }
    }
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

/// Opens the state directory and ends the engines that an earlier host left running, except those
/// that lanes take over, on a blocking thread: that takes some seconds. Logs what it finds. Before
/// the first load, so that the memory of old engines is free.
async fn open_state(spec: &FleetSpec) -> Result<StateDir> {
    let spec = spec.clone();
    let open = move || -> Result<StateDir> {
        let state_dir = StateDir::open(spec.state_dir.as_deref(), &spec.keeper)?;
        state_dir.keep_adoptable(&spec);
        state_dir.sweep();
        Ok(state_dir)
    };
    tokio::task::spawn_blocking(open).await.context("failed to open the state directory")?
}

fn fleet_spec(config: &Config, options: &Serve) -> FleetSpec {
    let mut spec = config.fleet.clone();
    spec.machine = options.machine.clone();
    match std::env::current_exe() {
        Ok(program) => spec.keeper.program = Some(program),
        Err(error) => {
            tracing::warn!(%error, "failed to find the path of this program; running without a \
                keeper")
        }
    }
    for warning in inherited::warnings(&spec).into_iter().chain(guards::warnings(config)) {
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

/// Returns the status of the policies.
fn policy_status(policies: &Arc<Policies>) -> StatusPart {
    let policies = Arc::clone(policies);
    Box::new(move || serde_json::to_value(policies.status()).unwrap_or_default())
}

/// Returns the status of the configuration.
fn reload_status(reloader: &Arc<Reloader>) -> StatusPart {
    let reloader = Arc::clone(reloader);
    Box::new(move || serde_json::to_value(reloader.status()).unwrap_or_default())
}
