//! Settings of the HTTP side, and types of the components that the binary provides.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_domain::{Advisor, Guards, PlanLimits};

use crate::cors::Cors;
use crate::paths;
use crate::proxy_lanes::ProxyLanes;
use crate::responses::ResponseLimits;
use crate::trace_context::TraceSettings;

/// The active advisor. Replaced as a whole; a request keeps the one that decided about it.
pub type AdvisorSlot = Arc<ArcSwap<Box<dyn Advisor>>>;

/// The advisor that decided about a request, whichever is active by now.
pub(crate) type AdvisorHandle = Arc<Box<dyn Advisor>>;

/// Returns a part of `/status` that another component provides.
pub type StatusPart = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What distinguishes a listener from others. The requests that arrive on it have it as an
/// extension, in an `Arc`.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// The addresses by which keys name the listener: that of the configuration, and the one that
    /// is listened on.
    pub addresses: Vec<String>,
    /// Path below which all routes are, with a leading slash and without a trailing one; empty for
    /// none.
    pub path_prefix: String,
    /// Model of requests that name none.
    pub default_model: Option<String>,
    /// Model names that only this listener has, each with the model name that it stands for.
    pub models: HashMap<String, String>,
    /// When `/health` is 200.
    pub health: HealthRule,
    /// Which pages of other origins may use the listener; `None` for none.
    pub cors: Option<Cors>,
    /// Compress responses, except streams, for clients that accept it.
    pub compression: bool,
}

impl ListenerSettings {
    /// Returns the path of the route for a request, below the path prefix and in one form; `None`
    /// if the path is not one of the listener.
    pub fn route(&self, path: &str) -> Option<String> {
        paths::normalize(path, &self.path_prefix)
    }
}

impl Default for ListenerSettings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            path_prefix: String::new(),
            default_model: None,
            models: HashMap::new(),
            health: HealthRule::AnyLane,
            cors: None,
            compression: true,
        }
    }
}

/// When `/health` is 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthRule {
    /// If a request for some model can be served now.
    AnyLane,
    /// If no lane is loading, being switched or down.
    AllLanes,
}

/// The name of the model in responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseModel {
    /// The name that the client asked for.
    #[default]
    Asked,
    /// The name that the engine uses.
    Engine,
}

/// Limits of the connections of clients.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Maximum number of open connections.
    pub max: usize,
    /// Maximum time between two requests on a connection.
    pub idle_timeout: Duration,
    /// Maximum time for which a client may take nothing of a response.
    pub write_timeout: Duration,
    /// Names by which clients address the host, in addition to those of its address.
    pub hosts: Vec<String>,
}

impl Default for ConnectionSettings {
    /// Returns the defaults of the configuration, for as many connections as a process can have
    /// that does not raise its limit of open files.
    fn default() -> Self {
        Self {
            max: 384,
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            hosts: Vec::new(),
        }
    }
}

/// Limits of multipart forms, and where what is too large for memory goes.
#[derive(Debug, Clone)]
pub struct SpoolSettings {
    /// Maximum size of a form in bytes.
    pub max_upload: usize,
    /// Bytes of the files of a form that are kept in memory.
    pub memory: usize,
    /// Folder of the spool files, which have no names.
    pub folder: PathBuf,
    /// Maximum size of all spool files in bytes.
    pub max_size: usize,
}

impl Default for SpoolSettings {
    /// Returns the defaults of the configuration, with the system's folder for temporary files.
    fn default() -> Self {
        Self {
            max_upload: 200 << 20,
            memory: 1 << 20,
            folder: std::env::temp_dir(),
            max_size: 2 << 30,
        }
    }
}

/// Settings of idempotent requests.
#[derive(Debug, Clone)]
pub struct IdempotencySettings {
    /// How long a response is kept for retries; zero keeps none.
    pub keep: Duration,
    /// How long a request goes on without a client.
    pub grace: Duration,
    /// Maximum size of the responses that can be joined or replayed, in bytes; zero ignores keys.
    pub memory: usize,
}

impl Default for IdempotencySettings {
    fn default() -> Self {
        let (keep, grace) = (Duration::from_secs(600), Duration::from_secs(10));
        Self { keep, grace, memory: 64 << 20 }
    }
}

/// Where the console is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleSettings {
    /// On the listeners of the admin API.
    pub enabled: bool,
    /// On the listeners for clients, too.
    pub client_listener: bool,
}

impl Default for ConsoleSettings {
    fn default() -> Self {
        Self { enabled: true, client_listener: false }
    }
}

/// Settings of the HTTP side.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits of connections.
    pub connections: ConnectionSettings,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Maximum time for which a client may send nothing of a body that it has begun.
    pub body_timeout: Duration,
    /// Maximum size of all request bodies in flight in bytes.
    pub body_memory: usize,
    /// Limits of multipart forms.
    pub spool: SpoolSettings,
    /// Limits of every plan.
    pub plan: PlanLimits,
    /// Rules that no policy can break.
    pub guards: Arc<Guards>,
    /// Maximum time from a request to the first byte of its response, over all attempts.
    pub deadline: Duration,
    /// Interval of the comments that a streaming client gets while it waits for the first byte;
    /// zero disables them.
    pub keep_alive: Duration,
    /// The name of the model in responses.
    pub response_model: ResponseModel,
    /// Requests with an idempotency key.
    pub idempotency: IdempotencySettings,
    /// The limits of responses that the host keeps.
    pub responses: ResponseLimits,
    /// Which requests are traced; `None` if traces are off, and the headers of clients pass.
    pub traces: Option<TraceSettings>,
    /// Maximum number of requests that have ended and are kept for operators; 0 keeps none.
    pub decisions: usize,
    /// Where the console is served.
    pub console: ConsoleSettings,
    /// The name of this host for other hosts; may be empty. Stays that of the start.
    pub host_name: String,
    /// The lanes to which a proxy sends requests; `None` if the host sends them.
    pub proxy_lanes: Option<Arc<ProxyLanes>>,
    /// A secret number, from which and from the request's id the seed of a decision is derived: so
    /// the clients, which may choose ids, do not choose seeds.
    pub nonce: u64,
    /// When the host started, in seconds since the Unix epoch: `created` of the models.
    pub started_at: u64,
}
