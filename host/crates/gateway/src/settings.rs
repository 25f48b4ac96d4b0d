//! Settings of the HTTP side, and types of the components that the binary provides.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_domain::{Advisor, PlanLimits};

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
