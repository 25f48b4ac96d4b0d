//! The HTTP side of the host: one pipeline function per request, and streamed responses.
//!
//! ```text
//!   listen ──> routes ──> serve ──────────────────────────────> stream ──> client
//!                           │ identity, facts, advice, plan       ▲
//!                           └──> attempt ──> fleet ──> engine ────┘
//!                                 └─failed─> recover
//!        every failure ──> error          every end ──> request_tracker ──> recording
//! ```
//!
//! This crate depends on the fleet and on the wire format, and knows policies only as an
//! [`Advisor`]; it does not depend on WebAssembly. The admin API ([`Admin`]) has listeners of its
//! own, which clients cannot reach. The codes of all errors are in [`ErrorCode`].

mod admin;
mod attempt;
mod error;
mod error_code;
mod identity;
mod listen;
mod metrics;
mod recording;
mod recover;
mod request_id;
mod request_tracker;
mod routes;
mod serve;
mod socket;
mod status;
mod stream;
mod wait;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_domain::{Advisor, PlanLimits};
use pointsman_fleet::Fleet;
use pointsman_record::Recorder;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::admin::{Admin, AdminError, PolicyAdmin, PolicyCommand};
pub use self::error_code::ErrorCode;
pub use self::identity::{Keys, Unauthorized};
pub use self::metrics::GatewayMetrics;
pub use self::socket::{AdminSocket, SocketError};

/// The active advisor. Replaced as a whole; a request keeps the one that decided about it.
pub type AdvisorSlot = Arc<ArcSwap<Box<dyn Advisor>>>;

/// The advisor that decided about a request, whichever is active by now.
pub(crate) type AdvisorHandle = Arc<Box<dyn Advisor>>;

/// Returns a part of `/status` that another component provides.
pub type StatusPart = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Settings of the HTTP side.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Limits of every plan.
    pub plan: PlanLimits,
    /// Maximum time from a request to the first byte of its response, over all attempts.
    pub deadline: Duration,
    /// Interval of the comments that a streaming client gets while it waits for the first byte;
    /// zero disables them.
    pub keep_alive: Duration,
    /// When the host started, in seconds since the Unix epoch: `created` of the models.
    pub started_at: u64,
}

/// The components that serving a request needs.
pub struct Gateway {
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

impl Gateway {
    /// Serves `listener` until [`Gateway::stop`] is cancelled and the connections are closed.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let stop = self.stop.clone();
        listen::listen(listener, routes::router(self), stop).await;
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("settings", &self.settings)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
