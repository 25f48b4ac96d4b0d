//! The gateway: its parts, and the listener for clients.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use parking_lot::Mutex;
use pointsman_domain::Guards;
use pointsman_fleet::Fleet;
use pointsman_record::Recorder;
use pointsman_store::Store;
use prometheus_client::registry::Registry;

use crate::audit_log::AuditLog;
use crate::client_listener::ClientListener;
use crate::connection::Timeouts;
use crate::decision::MAX_PARSERS;
use crate::decisions::Decisions;
use crate::drain::Drain;
use crate::fair_permits::FairPermits;
use crate::feed::Feed;
use crate::finished::RequestObserver;
use crate::fleet_stream::FleetStream;
use crate::hosts::AllowedHosts;
use crate::idempotency::Idempotency;
use crate::idle::ConnectionPool;
use crate::in_flight::InFlightRequests;
use crate::keys_feed::KeysFeed;
use crate::listen::{self, Fixed};
use crate::metering::Meter;
use crate::metrics::GatewayMetrics;
use crate::pipeline::Pipeline;
use crate::policy_threads::PolicyThreads;
use crate::protocols::Protocols;
use crate::proxy_lanes::ProxyLanes;
use crate::responses::Responses;
use crate::routes::{ClientRoutes, Routes};
use crate::served::{Served, ServedSlot};
use crate::settings::{AdvisorSlot, ConsoleSettings, ListenerSettings, Settings, StatusPart};
use crate::shared_store::SharedHosts;
use crate::status::{self, StatusSources};
use crate::upload::Uploads;
use pointsman_access::{Accounts, Keys, UsageBook};
use tokio::sync::Semaphore;

/// Event streams of operators at a time.
const MAX_EVENT_STREAMS: usize = 16;

/// The components that a gateway is made of.
pub struct GatewayParts {
    /// Settings of the HTTP side.
    pub settings: Settings,
    /// The API keys of the clients.
    pub keys: Keys,
    /// The accounts on which requests are counted.
    pub accounts: Arc<Accounts>,
    /// What was used.
    pub usage: Arc<UsageBook>,
    /// The lanes.
    pub fleet: Fleet,
    /// The active advisor.
    pub advisor: AdvisorSlot,
    /// The status of the policies.
    pub policies: StatusPart,
    /// The status of the configuration: the error of the last reload, and pending restarts.
    pub config: StatusPart,
    /// The status of the store that hosts share; null if there is none.
    pub shared_state: StatusPart,
    /// Writes decision records; `None` if recording is disabled.
    pub recorder: Option<Recorder>,
    /// Receives each request that has ended.
    pub observer: Option<Arc<dyn RequestObserver>>,
    /// The live log, for operators: JSON objects.
    pub log: Feed,
    /// What operators have done.
    pub audit: AuditLog,
    /// Metrics of the gateway.
    pub metrics: Arc<GatewayMetrics>,
    /// Metrics of all components, for `/metrics`.
    pub registry: Registry,
    /// What outlives a restart; has the namespace of [`response_namespace`].
    ///
    /// [`response_namespace`]: crate::response_namespace
    pub store: Store,
    /// What hosts know together of requests; `None` if this host is the only one.
    pub shared: Option<SharedHosts>,
    /// The phases of the shutdown, which the caller begins.
    pub drain: Drain,
}

impl fmt::Debug for GatewayParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayParts")
            .field("settings", &self.settings)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// The part of a configuration that a running gateway takes over.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Settings of the HTTP side. The maximum number of connections, the nonce, the time of the
    /// start and the limits of stored responses stay those of the start.
    pub settings: Settings,
    /// Writes decision records; `None` if recording is disabled.
    pub recorder: Option<Recorder>,
    /// Settings of listeners, each for the listener with the same first address. A listener that
    /// has none keeps its own.
    pub listeners: Vec<ListenerSettings>,
}

/// Serves requests of clients. A clone shares all parts.
#[derive(Clone)]
pub struct Gateway {
    /// Replaced as a whole by a reload; each request keeps the one that it began with.
    pipeline: Arc<ArcSwap<Pipeline>>,
    listeners: Arc<Mutex<Listeners>>,
    status: Arc<StatusSources>,
    drain: Drain,
    /// The connections of clients, on all listeners.
    connections: Arc<ConnectionPool>,
    /// The settings of the first listener for clients, with which previews are made.
    main_listener: MainListener,
    /// Makes the console of a listener for clients, once operators are served.
    console: Arc<OnceLock<MakeConsole>>,
}

/// The settings of the first listener for clients; `None` before it listens.
pub(crate) type MainListener = Arc<ArcSwapOption<ListenerSettings>>;

/// A listener that listens, and how what it serves is made of a configuration.
struct Listening {
    served: ServedSlot,
    make: MakeServed,
}

/// The listeners, and the last settings that a changed configuration had for them: one that begins
/// after that has these.
#[derive(Default)]
struct Listeners {
    settings: Vec<ListenerSettings>,
    listening: Vec<Listening>,
}

/// Makes what a listener serves with. The settings are those of the listeners for clients.
pub(crate) type MakeServed = Box<dyn FnMut(&Gateway, &[ListenerSettings]) -> Served + Send>;

/// Makes the routes of the console for a listener for clients. The boolean says whether the
/// listener has TLS.
pub(crate) type MakeConsole =
    Box<dyn Fn(&Gateway, &ListenerSettings, bool) -> Router + Send + Sync>;

impl Gateway {
    /// Creates a gateway, which gives each of its parts what it needs.
    pub fn new(parts: GatewayParts) -> Self {
        let GatewayParts { settings, keys, fleet, advisor, metrics, drain, .. } = parts;
        let (recorder, observer) = (parts.recorder, parts.observer);
        let status = StatusSources {
            fleet: fleet.clone(),
            policies: parts.policies,
            config: parts.config,
            shared_state: parts.shared_state,
            registry: parts.registry,
            keys: keys.clone(),
            stop: drain.stopping().clone(),
            log: parts.log,
            audit: parts.audit,
            fleet_stream: Arc::new(FleetStream::new(
                (fleet.clone(), settings.host_name.clone()),
                keys.clone(),
                drain.stopping().clone(),
                Arc::clone(&metrics),
            )),
            event_streams: Arc::new(Semaphore::new(MAX_EVENT_STREAMS)),
            keys_feed: KeysFeed::default(),
        };
        let gauges = (metrics.body_bytes.clone(), metrics.spool_bytes.clone());
        let uploads = Uploads::new(&settings, gauges, drain.stopping().clone());
        let connections = ConnectionPool::new(settings.connections.max);
        let idempotency = Idempotency::new(&settings.idempotency, drain.stopping().clone())
            .shared_with(parts.shared.clone());
        let responses = Responses::new(&parts.store, &settings.responses);
        let responses = Arc::new(responses.shared_with(parts.shared));
        let decisions = Decisions::new(settings.decisions);
        let pipeline = Pipeline {
            settings,
            idempotency,
            keys,
            meter: Meter::new(parts.accounts, parts.usage),
            uploads,
            parsers: Arc::new(FairPermits::new(MAX_PARSERS)),
            fleet,
            advisor,
            policy_threads: Arc::new(PolicyThreads::default()),
            recorder,
            observer,
            metrics,
            responses,
            in_flight: InFlightRequests::new(drain.aborting().clone()),
            decisions,
            drain: drain.clone(),
        };
        Self {
            pipeline: Arc::new(ArcSwap::from_pointee(pipeline)),
            listeners: Arc::default(),
            status: Arc::new(status),
            drain,
            connections,
            main_listener: Arc::default(),
            console: Arc::default(),
        }
    }

    /// Applies a changed configuration. Requests that have begun keep the one that they have;
    /// connections that are open keep their time limits.
    pub fn reconfigure(&self, config: GatewayConfig) {
        // Held until the end, so that no listener begins with the earlier configuration meanwhile.
        let mut listeners = self.listeners.lock();
        let pipeline = self.pipeline().reconfigured(config.settings, config.recorder);
        self.pipeline.store(Arc::new(pipeline));
        listeners.settings = config.listeners;
        let Listeners { settings, listening } = &mut *listeners;
        for Listening { served, make } in listening {
            served.store(Arc::new(make(self, settings)));
        }
    }

    /// Adds guards to those in force, until the configuration to which they belong is applied. A
    /// lane that this configuration changes gets no request that its guards do not allow.
    pub fn add_guards(&self, guards: &Guards) {
        let pipeline = self.pipeline();
        let mut settings = pipeline.settings.clone();
        let mut all = settings.guards.0.clone();
        all.extend(guards.0.iter().filter(|guard| !settings.guards.0.contains(guard)).cloned());
        settings.guards = Arc::new(Guards(all));
        self.change_settings(settings);
    }

    /// Adds lanes that a proxy reaches to those known, until the configuration to which they belong
    /// is applied: the first request for one of them may come before that. Without effect unless a
    /// proxy sends the requests.
    pub fn add_proxy_lanes(&self, lanes: &ProxyLanes) {
        let mut settings = self.pipeline().settings.clone();
        if let Some(known) = &settings.proxy_lanes {
            settings.proxy_lanes = Some(Arc::new(known.with(lanes)));
            self.change_settings(settings);
        }
    }

    fn change_settings(&self, settings: Settings) {
        let listeners = self.listeners.lock().settings.clone();
        let recorder = self.pipeline().recorder.clone();
        self.reconfigure(GatewayConfig { settings, recorder, listeners });
    }

    /// Adds a listener, whose snapshot follows the configuration from then on.
    pub(crate) fn add_listener(&self, mut make: MakeServed) -> ServedSlot {
        let mut listeners = self.listeners.lock();
        let served = Arc::new(ArcSwap::from_pointee(make(self, &listeners.settings)));
        listeners.listening.push(Listening { served: Arc::clone(&served), make });
        served
    }

    /// Serves `listener` until the drain is closed. The maximum number of connections is that of
    /// all listeners together.
    pub async fn serve(&self, listener: impl Into<ClientListener>, settings: ListenerSettings) {
        let listener = listener.into();
        let protocols = listener.protocols().clone();
        let tls = protocols.tls.clone();
        let fixed = self.fixed(Arc::clone(&self.connections), protocols);
        let make = make_served(settings, listener.ip(), tls.is_some());
        let served = self.add_listener(make);
        let serve = listen::listen(listener, served, fixed);
        match tls {
            Some(tls) => tokio::select! { () = serve => {}, () = tls.reload_on_changes() => {} },
            None => serve.await,
        }
    }

    /// Sets what makes the console of listeners for clients: before they are added. A second call
    /// has no effect.
    pub(crate) fn set_console(&self, make: MakeConsole) {
        // Fails only if it is set.
        self.console.set(make).ok();
    }

    /// Returns the console of a listener for clients; `None` unless it is served there.
    fn console_of(&self, listener: &ListenerSettings, has_tls: bool) -> Option<Router> {
        let ConsoleSettings { enabled, client_listener } = self.pipeline.load().settings.console;
        let make = self.console.get().filter(|_| enabled && client_listener)?;
        Some(make(self, listener, has_tls))
    }

    /// Returns the names by which a listener may be addressed.
    pub(crate) fn allowed_hosts(&self, listener: IpAddr) -> AllowedHosts {
        AllowedHosts::new(listener, &self.pipeline.load().settings.connections.hosts)
    }

    /// Returns the limits of time of a listener's connections.
    pub(crate) fn timeouts(&self) -> Timeouts {
        let settings = &self.pipeline.load().settings.connections;
        Timeouts { idle: settings.idle_timeout, write: settings.write_timeout }
    }

    /// Returns what does not change while a listener listens.
    pub(crate) fn fixed(&self, pool: Arc<ConnectionPool>, protocols: Protocols) -> Fixed {
        let metrics = Arc::clone(&self.pipeline.load().metrics);
        Fixed { pool, protocols, drain: self.drain.clone(), metrics }
    }

    /// Returns a function that returns the metrics of all components in the text format of
    /// OpenMetrics; `None` after the last gateway that shares them was dropped.
    pub fn metrics_source(&self) -> impl Fn() -> Option<String> + Send + Sync + 'static {
        let status = Arc::downgrade(&self.status);
        move || status::metrics_text(&*status.upgrade()?)
    }

    /// Returns the settings of the first listener for clients.
    pub(crate) fn main_listener(&self) -> &MainListener {
        &self.main_listener
    }

    /// Notes the settings of a listener, if it is the first one for clients.
    pub(crate) fn note_listener(&self, settings: &Arc<ListenerSettings>) {
        let main = self.main_listener.load();
        let is_main = main.as_ref().is_none_or(|main| main.addresses == settings.addresses);
        if is_main {
            self.main_listener.store(Some(Arc::clone(settings)));
        }
    }

    /// Returns what the status pages show, which the admin API serves as well.
    pub(crate) fn status(&self) -> &Arc<StatusSources> {
        &self.status
    }

    /// Returns the phases of the shutdown.
    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Returns what the requests of clients need now.
    pub(crate) fn pipeline(&self) -> Arc<Pipeline> {
        self.pipeline.load_full()
    }
}

/// Returns what makes the snapshots of a listener for clients.
fn make_served(settings: ListenerSettings, ip: Option<IpAddr>, has_tls: bool) -> MakeServed {
    let mut settings = Arc::new(settings);
    Box::new(move |gateway, all| {
        let changed = all.iter().find(|new| new.addresses.first() == settings.addresses.first());
        if let Some(changed) = changed {
            // The addresses are also those that are listened on, which may have another port.
            let addresses = settings.addresses.clone();
            settings = Arc::new(ListenerSettings { addresses, ..changed.clone() });
        }
        gateway.note_listener(&settings);
        let status = Arc::clone(&gateway.status);
        let console = gateway.console_of(&settings, has_tls);
        let routes = ClientRoutes::new(gateway.pipeline(), status, Arc::clone(&settings), console);
        let routes = Routes::Clients(Box::new(routes));
        let hosts = ip.map(|ip| gateway.allowed_hosts(ip));
        let cors = settings.cors.clone().map(Arc::new);
        Served { cors, ..Served::new(routes, gateway.timeouts(), hosts) }
    })
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("settings", &self.pipeline.load().settings)
            .finish_non_exhaustive()
    }
}
