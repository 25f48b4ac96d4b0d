//! `pointsman serve`: build the parts, join them, run them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use pointsman_domain::PlanLimits;
use pointsman_fleet::{Fleet, FleetMetrics, FleetTasks};
use pointsman_gateway::{Gateway, GatewayMetrics, Keys, Settings};
use pointsman_policy::{
    Allocator, Compiler, FleetLink, Policies, PolicyMetrics, Runtime, RuntimeSettings,
};
use pointsman_record::{RecordMetrics, Recorder};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::Operated;
use crate::cli::Serve;
use crate::config::{self, Config};
use crate::reload::Reloader;
use crate::shutdown::{Running, Signals};
use crate::{admin, facts, shutdown, telemetry};

/// Stack of a worker. A policy may take 512 KiB of it, on top of what leads to the call.
const WORKER_STACK: usize = 4 << 20;

/// Serve until a signal ends it.
pub(crate) fn serve(options: &Serve) -> Result<()> {
    let begun = Instant::now();
    let config = Config::load(&options.config)?;
    telemetry::start(&config.log, options.log.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK)
        .build()
        .context("the runtime cannot be started")?;
    // On a worker, because engines end with the thread that started them, and the calling thread is none.
    let options = options.clone();
    let main = runtime.block_on(async move {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { run(config, &options, begun).await });
        tasks.join_next().await
    });
    main.transpose().context("the host failed")?.unwrap_or(Ok(()))
}

async fn run(mut config: Config, options: &Serve, begun: Instant) -> Result<()> {
    let signals = Signals::listen()?;
    let mut registry = Registry::default();
    let policies = load_policies(&config.policies, &mut registry)?;
    let address = options.listen.unwrap_or(config.server.listen);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("the listener has no address")?;

    let operators = admin::open(&config.admin).await?;
    let gateway_metrics = GatewayMetrics::register(&mut registry);
    let records = config.records.take();
    let records =
        records.map(|records| Recorder::start(records, RecordMetrics::register(&mut registry)));
    let (recorder, records) = records.transpose()?.unzip();
    let (fleet, fleet_tasks) = start_fleet(&config, options, &mut registry)?;
    policies.attach(fleet_link(&fleet));
    let reloader = Reloader::start(&options.config, &config.policies, Arc::clone(&policies))
        .context("there is no thread for reloads")?;
    let reloader = Arc::new(reloader);
    let operated =
        Arc::new(Operated { policies: Arc::clone(&policies), reloader: Arc::clone(&reloader) });
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let gateway = Arc::new(Gateway {
        settings: Settings {
            max_body: config.server.max_body,
            plan: PlanLimits { max_wait: config.queue.max_wait, max_steps: config.server.attempts },
            deadline: config.server.deadline,
            keep_alive: config.server.keep_alive.unwrap_or_default(),
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        },
        keys: Keys::new(config.keys),
        fleet,
        advisor: policies.slot(),
        config: {
            let reloader = Arc::clone(&reloader);
            Box::new(move || serde_json::to_value(reloader.status()).unwrap_or_default())
        },
        policies: Box::new(move || serde_json::to_value(policies.status()).unwrap_or_default()),
        recorder,
        metrics: gateway_metrics,
        registry,
        stop: stop.clone(),
        cut: cut.clone(),
    });
    let mut server = JoinSet::new();
    server.spawn(async move {
        tokio::join!(Arc::clone(&gateway).serve(listener), operators.serve(gateway, operated));
    });
    tracing::info!("listening on http://{address} after {} ms", begun.elapsed().as_millis());
    if let Some(file) = &options.port_file {
        write_port(file, address.port())
            .with_context(|| format!("cannot write the port to {}", file.display()))?;
    }
    let running = Running {
        reloader,
        server,
        fleet: fleet_tasks,
        stop,
        cut,
        drain: config.server.drain,
        records,
    };
    shutdown::run(running, signals).await
}

/// The policies. One that cannot be loaded is no reason not to serve: its failure mode applies.
fn load_policies(config: &config::Policies, registry: &mut Registry) -> Result<Arc<Policies>> {
    let metrics = PolicyMetrics::register(registry);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let settings = RuntimeSettings {
        cache_dir: config.cache.clone(),
        compiler: Compiler::this_program(),
        allocator: Allocator::Auto,
        warm_instances: workers.min(16),
        ..RuntimeSettings::default()
    };
    let runtime = Runtime::new(settings)?;
    let policies = Policies::new(&runtime, &metrics, Box::new(facts::of_case))
        .context("there are no threads for the policies")?;
    policies.apply(config.chain.clone());
    if config.chain.policies.is_empty() {
        tracing::info!("no policies: the built-in rule decides");
    }
    Ok(policies)
}

/// What the policies may know of the lanes, and wish of them, outside any request.
fn fleet_link(fleet: &Fleet) -> FleetLink {
    let (view, hint) = (fleet.clone(), fleet.clone());
    FleetLink {
        view: Box::new(move || view.view()),
        hint: Box::new(move |lane, wanted, lasts| hint.hint(lane, wanted, lasts)),
    }
}

fn start_fleet(
    config: &Config,
    options: &Serve,
    registry: &mut Registry,
) -> Result<(Fleet, FleetTasks)> {
    let mut spec = config.fleet.clone();
    spec.machine = options.machine.clone();
    match std::env::current_exe() {
        Ok(program) => spec.keeper = Some(program),
        Err(error) => tracing::warn!("no keeper: our own program cannot be found: {error}"),
    }
    let names: Vec<(String, u32)> =
        spec.lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
    let metrics = FleetMetrics::register(registry, &names);
    Ok(Fleet::start(&spec, &metrics)?)
}

/// In one step, so that whoever waits for the file never reads half of it.
fn write_port(file: &Path, port: u16) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{port}\n"))?;
    std::fs::rename(&new, file)
}
