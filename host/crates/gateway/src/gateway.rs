//! The gateway: its parts, and the listener for clients.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use pointsman_fleet::Fleet;
use pointsman_record::Recorder;
use pointsman_store::Store;
use prometheus_client::registry::Registry;

use crate::client_listener::ClientListener;
use crate::connection::Timeouts;
use crate::decision::MAX_PARSERS;
use crate::drain::Drain;
use crate::fair_permits::FairPermits;
use crate::hosts::AllowedHosts;
use crate::idempotency::Idempotency;
use crate::idle::ConnectionPool;
use crate::listen::{self, Limits};
use crate::metering::Meter;
use crate::metrics::GatewayMetrics;
use crate::pipeline::Pipeline;
use crate::policy_threads::PolicyThreads;
use crate::protocols::Protocols;
use crate::responses::Responses;
use crate::routes;
use crate::settings::{AdvisorSlot, ListenerSettings, Settings, StatusPart};
use crate::status::StatusSources;
use crate::upload::{BodyMemory, MAX_DECODERS, Spool, Uploads};
use pointsman_access::{Accounts, Keys, UsageBook};

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
    /// Writes decision records; `None` if recording is disabled.
    pub recorder: Option<Recorder>,
    /// Metrics of the gateway.
    pub metrics: Arc<GatewayMetrics>,
    /// Metrics of all components, for `/metrics`.
    pub registry: Registry,
    /// What outlives a restart; has the namespace of [`response_namespace`].
    ///
    /// [`response_namespace`]: crate::response_namespace
    pub store: Store,
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

/// Serves requests of clients. A clone shares all parts.
#[derive(Clone)]
pub struct Gateway {
    pipeline: Arc<Pipeline>,
    status: Arc<StatusSources>,
    drain: Drain,
    /// The connections of clients, on all listeners.
    connections: Arc<ConnectionPool>,
}

impl Gateway {
    /// Creates a gateway, which gives each of its parts what it needs.
    pub fn new(parts: GatewayParts) -> Self {
        let GatewayParts { settings, keys, fleet, advisor, recorder, metrics, drain, .. } = parts;
        let status = StatusSources {
            fleet: fleet.clone(),
            policies: parts.policies,
            config: parts.config,
            registry: parts.registry,
            keys: keys.clone(),
            stop: drain.stopping().clone(),
        };
        let gauge = metrics.body_bytes.clone();
        let memory = BodyMemory::new(settings.body_memory, settings.max_body, gauge);
        let uploads = Uploads {
            max_body: settings.max_body,
            timeout: settings.body_timeout,
            deadline: settings.deadline,
            memory: Arc::new(memory),
            max_upload: settings.spool.max_upload,
            form_memory: settings.spool.memory,
            spool: Spool::new(&settings.spool, metrics.spool_bytes.clone()),
            decoders: FairPermits::new(MAX_DECODERS),
            stop: drain.stopping().clone(),
        };
        let connections = ConnectionPool::new(settings.connections.max);
        let idempotency = Idempotency::new(&settings.idempotency, drain.stopping().clone());
        let responses = Arc::new(Responses::new(&parts.store, &settings.responses));
        let pipeline = Pipeline {
            settings,
            idempotency,
            keys,
            meter: Meter::new(parts.accounts, parts.usage),
            uploads,
            parsers: FairPermits::new(MAX_PARSERS),
            fleet,
            advisor,
            policy_threads: PolicyThreads::default(),
            recorder,
            metrics,
            responses,
            drain: drain.clone(),
            abort: drain.aborting().clone(),
        };
        Self { pipeline: Arc::new(pipeline), status: Arc::new(status), drain, connections }
    }

    /// Serves `listener` until the drain is closed. The maximum number of connections is that of
    /// all listeners together.
    pub async fn serve(&self, listener: impl Into<ClientListener>, settings: ListenerSettings) {
        let listener = listener.into();
        let settings = Arc::new(settings);
        let (pipeline, status) = (Arc::clone(&self.pipeline), Arc::clone(&self.status));
        let router = routes::for_listener(pipeline, status, &settings);
        let hosts = listener.ip().map(|ip| self.allowed_hosts(ip));
        let protocols = listener.protocols().clone();
        let tls = protocols.tls.clone();
        let limits = self.limits(Arc::clone(&self.connections), hosts, protocols);
        let limits = Limits { cors: settings.cors.clone().map(Arc::new), ..limits };
        let metrics = Arc::clone(&self.pipeline.metrics);
        let serve = listen::listen(listener, router, limits, self.drain.clone(), metrics);
        match tls {
            Some(tls) => tokio::select! { () = serve => {}, () = tls.reload_on_changes() => {} },
            None => serve.await,
        }
    }

    /// Returns the names by which a listener may be addressed.
    pub(crate) fn allowed_hosts(&self, listener: IpAddr) -> AllowedHosts {
        AllowedHosts::new(listener, &self.pipeline.settings.connections.hosts)
    }

    /// Returns the limits of a listener.
    pub(crate) fn limits(
        &self,
        pool: Arc<ConnectionPool>,
        hosts: Option<AllowedHosts>,
        protocols: Protocols,
    ) -> Limits {
        let settings = &self.pipeline.settings.connections;
        let timeouts = Timeouts { idle: settings.idle_timeout, write: settings.write_timeout };
        Limits { pool, timeouts, hosts, protocols, cors: None }
    }

    /// Returns what the status pages show, which the admin API serves as well.
    pub(crate) fn status(&self) -> &Arc<StatusSources> {
        &self.status
    }

    /// Returns the phases of the shutdown.
    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Returns the metrics of the gateway.
    pub(crate) fn metrics(&self) -> &Arc<GatewayMetrics> {
        &self.pipeline.metrics
    }

    /// Returns what the requests of clients need.
    pub(crate) fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipeline
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("settings", &self.pipeline.settings)
            .field("keys", &self.pipeline.keys)
            .finish_non_exhaustive()
    }
}
