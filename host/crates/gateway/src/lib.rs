//! HTTP in, one pipeline function per request, stream out.
//!
//! ```text
//!   listen ──> routes ──> serve ──────────────────────────────> stream ──> client
//!                           │ identity, facts, advice, plan       ▲
//!                           └──> attempt ──> fleet ──> engine ────┘
//!                                 └─failed─> recover
//!              every failure ──> error          every end ──> account ──> recording
//! ```
//!
//! This crate knows the fleet and the wire, and that there is an [`Advisor`]; that advice comes from WebAssembly is no
//! business of its. Operators have an entrance of their own ([`Admin`]), which clients cannot come in by.

mod account;
mod admin;
mod attempt;
mod error;
mod identity;
mod listen;
mod metrics;
mod recording;
mod recover;
mod request_id;
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
pub use self::identity::{Keys, Unauthorized};
pub use self::metrics::GatewayMetrics;
pub use self::socket::{AdminSocket, SocketError};

/// The advisor in force. Replaced as a whole; a request keeps the one that it was decided by.
pub type AdvisorSlot = Arc<ArcSwap<Box<dyn Advisor>>>;

/// The advisor that decided about a request, whatever is in force by now.
pub(crate) type Decider = Arc<Box<dyn Advisor>>;

/// A part of `/status` that others know.
pub type StatusPart = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Settings of the HTTP side.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest request body in bytes.
    pub max_body: usize,
    /// Limits of every plan.
    pub plan: PlanLimits,
    /// Longest time from a request to the first byte of its answer, over all lanes that are tried.
    pub deadline: Duration,
    /// A client that streams gets a comment after this time without an answer, and then this often; zero: never.
    pub keep_alive: Duration,
    /// When the host started, in seconds since the Unix epoch: `created` of the models.
    pub started_at: u64,
}

/// The parts that serving a request needs.
pub struct Gateway {
    /// Settings.
    pub settings: Settings,
    /// Who may ask.
    pub keys: Keys,
    /// The lanes.
    pub fleet: Fleet,
    /// Whoever gives advice.
    pub advisor: AdvisorSlot,
    /// What policies there are.
    pub policies: StatusPart,
    /// What runs of the configuration, and what is wrong with it.
    pub config: StatusPart,
    /// Keeps records of decisions, if anybody wants them.
    pub recorder: Option<Recorder>,
    /// Figures of the gateway.
    pub metrics: Arc<GatewayMetrics>,
    /// Figures of all parts, for `/metrics`.
    pub registry: Registry,
    /// No new connections and requests; those that are there may finish.
    pub stop: CancellationToken,
    /// The time to finish is over: end what is left with an explicit error.
    pub cut: CancellationToken,
}

impl Gateway {
    /// Serve on `listener` until [`Gateway::stop`], and until the connections have ended after it.
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
