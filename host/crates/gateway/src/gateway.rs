//! The gateway: its parts, and the listener for clients.

use std::fmt;
use std::sync::Arc;

use pointsman_fleet::Fleet;
use pointsman_record::Recorder;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::identity::Keys;
use crate::listen;
use crate::metrics::GatewayMetrics;
use crate::pipeline::Pipeline;
use crate::routes;
use crate::settings::{AdvisorSlot, Settings, StatusPart};
use crate::status::StatusSources;

/// The components that a gateway is made of.
pub struct GatewayParts {
    /// Settings of the HTTP side.
    pub settings: Settings,
    /// The API keys of the clients.
    pub keys: Keys,
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
    /// When cancelled, no connections and requests are accepted any more; others may finish.
    pub stop: CancellationToken,
    /// When cancelled, the drain timeout has expired: requests that are left get an error.
    pub abort: CancellationToken,
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
    stop: CancellationToken,
}

impl Gateway {
    /// Creates a gateway, which gives each of its parts what it needs.
    pub fn new(parts: GatewayParts) -> Self {
        let GatewayParts { settings, keys, fleet, advisor, recorder, metrics, abort, .. } = parts;
        let status = StatusSources {
            fleet: fleet.clone(),
            policies: parts.policies,
            config: parts.config,
            registry: parts.registry,
            stop: parts.stop.clone(),
        };
        let pipeline = Pipeline { settings, keys, fleet, advisor, recorder, metrics, abort };
        Self { pipeline: Arc::new(pipeline), status: Arc::new(status), stop: parts.stop }
    }

    /// Serves `listener` until the gateway is stopped and the connections are closed.
    pub async fn serve(&self, listener: TcpListener) {
        let router = routes::router(Arc::clone(&self.pipeline), Arc::clone(&self.status));
        listen::listen(listener, router, self.stop.clone()).await;
    }

    /// Returns what the status pages show, which the admin API serves as well.
    pub(crate) fn status(&self) -> &Arc<StatusSources> {
        &self.status
    }

    /// Returns the token that is cancelled when the gateway stops.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    #[cfg(test)]
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
