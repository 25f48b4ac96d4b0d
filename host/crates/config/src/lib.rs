//! The host configuration: a TOML file, read into validated values or a list of all errors in it.
//!
//! `examples/pointsman.toml` documents every key. Paths are relative to the file's folder. Secrets
//! come from environment variables or files and are never written in the configuration itself.
//! `${NAME}` and `${NAME:-DEFAULT}` in its strings stand for environment variables.

mod access;
mod admin;
mod console;
mod conversations;
mod difference;
mod effects;
mod folders;
mod groups;
mod guards;
mod keys;
mod lanes;
mod listeners;
mod log;
mod models;
mod need;
mod peers;
mod policies;
mod records;
mod responses;
mod schema;
mod state;
mod telemetry;
mod tokens;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::{Guards, PlanLimits};
use pointsman_fleet::FleetSpec;
use pointsman_settings::{
    Code, Diagnostic, Location, Override, Secrets, Section, folder_of, read_expanded, rules,
};
use pointsman_spec::ChainSpec;

pub use pointsman_settings::{FileError as ConfigError, Variable, format_duration};

pub use self::access::Access;
pub use self::admin::{Admin, MAX_SOCKET_PATH, Token, find_state_dir};
pub use self::console::Console;
pub use self::difference::{ChangeKind, KeyChange, differences};
pub use self::effects::{EFFECTS, Effect, KeyGroup, effect_of, effects_table};
pub use self::folders::default_cache;
pub use self::groups::format_pool;
pub use self::keys::ApiKey;
pub use self::listeners::{Address, ClientCertificates, Cors, HealthRule, Listener, Tls};
pub use self::log::{
    ACCESS_FIELDS, AccessLog, AccessOutput, Log, LogFileLimits, LogFormat, ShownAddress,
};
pub use self::peers::Peer;
pub use self::responses::Responses;
pub use self::schema::schema;
pub use self::telemetry::{OtlpProtocol, Telemetry};
pub use self::tokens::{KeySource, Tokens};
pub use self::usage::Usage;

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The public listeners and the limits of requests.
    pub server: Server,
    /// What is logged, and how.
    pub log: Log,
    /// The export of traces and metrics.
    pub telemetry: Telemetry,
    /// API keys and their tenants.
    pub keys: Vec<ApiKey>,
    /// The other hosts that may ask this one.
    pub peers: Vec<Peer>,
    /// Where further keys come from.
    pub access: Access,
    /// Whose tokens are accepted, if any.
    pub tokens: Option<Tokens>,
    /// Limits of waiting.
    pub queue: Queue,
    /// The policies.
    pub policies: Policies,
    /// Rules that no policy can break.
    pub guards: Guards,
    /// The limits of responses that the host keeps.
    pub responses: Responses,
    /// How much is kept of what was used.
    pub usage: Usage,
    /// Settings of decision records, if they are enabled.
    pub records: Option<pointsman_record::Settings>,
    /// Where the admin API listens.
    pub admin: Admin,
    /// Where the console is served.
    pub console: Console,
    /// True if `state.dir` is not set, so that the state directory is the default one.
    pub has_default_state: bool,
    /// Lanes, groups and the rules of the queue. The program of the keeper is set by the
    /// caller.
    pub fleet: FleetSpec,
    /// For each lane, how its memory need was computed.
    pub needs: Vec<String>,
    /// References to environment variables in the file.
    pub variables: Vec<Variable>,
}

/// The public listeners and the limits of requests.
#[derive(Debug)]
pub struct Server {
    /// The addresses, of which that of `server.listen` is the first.
    pub listeners: Vec<Listener>,
    /// Names by which clients address the host, in addition to those of its address: `name`,
    /// `*.suffix`, or `*` for all.
    pub hosts: Vec<String>,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Maximum size of all request bodies in flight in bytes; at least that of one.
    pub body_memory: usize,
    /// Maximum size of a multipart form in bytes.
    pub max_upload: usize,
    /// Bytes of the files of a form that are kept in memory; what exceeds them is spooled.
    pub upload_memory: usize,
    /// Folder of the spool files; `None` for the default one.
    pub spool_dir: Option<PathBuf>,
    /// Maximum size of all spool files in bytes; at least that of one form.
    pub spool_size: usize,
    /// Maximum time for which a client may send nothing of a body that it has begun.
    pub body_timeout: Duration,
    /// Maximum time for which a client may take nothing of a response.
    pub write_timeout: Duration,
    /// Maximum time between two requests on a connection.
    pub idle_timeout: Duration,
    /// Maximum time that requests in flight may take after the host was told to stop.
    pub drain_timeout: Duration,
    /// Interval of keep-alive comments in streams that wait for their first byte; `None` turns them
    /// off.
    pub keep_alive: Option<Duration>,
    /// The name of the model in responses.
    pub response_model: ResponseModel,
    /// Requests with an idempotency key.
    pub idempotency: Idempotency,
    /// Maximum number of attempts per request, on all lanes together.
    pub max_attempts: usize,
    /// Maximum time from a request to the first byte of its response, over all attempts.
    pub deadline: Duration,
}

impl Server {
    /// Returns the ports on which clients are served.
    fn ports(&self) -> impl Iterator<Item = u16> {
        self.listeners.iter().filter_map(|listener| Some(listener.address.tcp()?.port()))
    }
}

/// How long and how much is kept of requests with an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// How long a response is kept for retries; zero keeps none.
    pub keep: Duration,
    /// How long a request goes on without a client.
    pub grace: Duration,
    /// Maximum size of all responses that can be joined or replayed; zero ignores keys.
    pub memory: usize,
}

/// The name of the model in responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseModel {
    /// The name that the client asked for.
    Asked,
    /// The name that the engine uses.
    Engine,
}

/// Limits of waiting.
#[derive(Debug)]
pub struct Queue {
    /// Maximum time in a queue, whatever policies advise. The other rules are in `fleet`.
    pub max_wait: Duration,
}

/// The policies, and where they are.
#[derive(Debug)]
pub struct Policies {
    /// Folder of compiled policies.
    pub cache: Option<PathBuf>,
    /// Parent folder of the policies' folders.
    pub dir: PathBuf,
    /// How often policy folders are scanned without an event.
    pub poll_interval: Duration,
    /// The chain.
    pub chain: ChainSpec,
    /// Where each policy of the chain is in the file, by name.
    pub locations: Vec<(String, PolicyLocation)>,
}

/// Where a policy of the chain is in the file, for errors that only appear when it is loaded.
#[derive(Debug)]
pub struct PolicyLocation {
    /// Its entry in the chain.
    pub entry: Location,
    /// Its `config`, or its entry if it has none.
    pub config: Location,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// All errors in the file, in its order.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::from_source(&ConfigError::source(file)?, file)
    }

    /// Reads and validates a file after replacing some of its keys, for a command that serves no
    /// requests: all secrets are placeholders, so that their variables and files may be missing.
    ///
    /// # Errors
    /// All errors in the file and in the overrides.
    pub fn load_without_secrets(file: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let source = ConfigError::source(file)?;
        read_expanded(&source, overrides, Secrets::Placeholder, |root| read(root, file))
            .map_err(|errors| ConfigError::new(file, errors))
    }

    /// Validates the text of a file that has been read.
    ///
    /// # Errors
    /// All errors in the text, in its order.
    pub fn from_source(source: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::parse(source, file).map_err(|errors| ConfigError::new(file, errors))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn source(file: &Path) -> Result<String, ConfigError> {
        ConfigError::source(file)
    }

    fn parse(source: &str, file: &Path) -> Result<Self, Vec<Diagnostic>> {
        read_expanded(source, &[], Secrets::Read, |root| read(root, file))
    }
}

/// Reads the whole file. Returns `None` only if an error was reported.
fn read(root: &Section<'_>, file: &Path) -> Option<Config> {
    let folder = folder_of(file);
    let server = root.section("server");
    let listeners = listeners::read(root, &server, folder);
    let server = read_server(server, listeners, folder);
    let log = log::read(&root.section("log"), folder);
    let telemetry = telemetry::read(&root.section("telemetry"));
    let keys = root.sections("keys").into_iter();
    let keys = keys.filter_map(|section| keys::read(section, folder)).collect();
    let peers = peers::read_peers(root, folder);
    let peering = peers::read_fleet(&root.section("fleet"), folder);
    let access = root.section("access");
    let tokens = tokens::read(&access, folder);
    let access = access::read(&access, folder);
    let state = root.section("state");
    let state_dir = folders::state_dir(&state, file, folder);
    let has_default_state = !state.has("dir");
    let keeper = state::read(&state);
    state.report_unknown();
    let admin = admin::read(&root.section("admin"), folder, state_dir.as_deref());
    let console = console::read(&root.section("console"), &admin);
    let (rules, max_wait) = rules(&root.section("queue"), &root.section("switching"));
    let policies = policies::read(root.section("policies"), folder, state_dir.as_deref());
    let guards = guards::read(root);
    let max_steps = server.as_ref().map_or(1, |server| server.max_attempts);
    let responses = responses::read(&root.section("responses"));
    let usage = usage::read(&root.section("usage"));
    let records =
        records::read(root.section("records"), folder, PlanLimits { max_wait, max_steps });
    let groups = groups::read(root);
    let admin_port = admin.port.as_ref().map(|(address, _)| address.port());
    let taken: Vec<u16> = server.iter().flat_map(Server::ports).chain(admin_port).collect();
    let conversations = conversations::read(&root.section("conversations"), state_dir.is_some());
    let place = lanes::Place { folder, taken: &taken, conversations: conversations.is_some() };
    let mut lanes = lanes::read(root, &groups, place);
    models::read(root, lanes.as_mut().map(|lanes| lanes.specs.as_mut_slice()));
    if let Some(server) = &server {
        let lanes = lanes.as_ref().map(|lanes| lanes.specs.as_slice());
        listeners::check(root, &server.listeners, &admin, lanes);
    }
    root.report_unknown();
    let lanes::Lanes { specs, needs } = lanes?;
    let fleet = FleetSpec {
        lanes: specs,
        groups,
        rules,
        state_dir,
        conversations,
        keeper,
        secret_variables: telemetry::with_secret_variable(root.secret_variables()),
        machine: PathBuf::from("/"),
        peering,
    };
    Some(Config {
        server: server?,
        log,
        telemetry,
        keys,
        peers,
        access,
        tokens,
        queue: Queue { max_wait },
        policies,
        guards,
        responses,
        usage,
        records,
        admin,
        console,
        has_default_state,
        fleet,
        needs,
        variables: root.variables(),
    })
}

fn read_server(
    section: Section<'_>,
    listeners: Option<Vec<Listener>>,
    folder: &Path,
) -> Option<Server> {
    const MAX_BODY_LIMIT: u64 = 1 << 30;
    let max_body = section.bytes("max-body").unwrap_or(32 << 20);
    if !(1..=MAX_BODY_LIMIT).contains(&max_body) {
        section.error_at("max-body", Code::OutOfRange.with("must be between 1B and 1GiB"));
    }
    let hosts = section.strings("hosts").unwrap_or_default();
    check_hosts(&section, &hosts);
    let body_memory = section.bytes("body-memory").unwrap_or(max_body.max(128 << 20));
    if body_memory < max_body {
        section.error_at("body-memory", Code::OutOfRange.with("must be at least `max-body`"));
    }
    let forms = read_forms(&section, folder, body_memory);
    let body_timeout = section.positive_duration("body-timeout", Duration::from_secs(30));
    let write_timeout = section.positive_duration("write-timeout", Duration::from_secs(30));
    // Longer than the 60 s for which load balancers keep idle connections by default: they must be
    // the first to close one, or they send a request on a connection that is being closed.
    let idle_timeout = section.positive_duration("idle-timeout", Duration::from_secs(75));
    let drain_timeout = section.duration("drain-timeout", Duration::from_secs(30));
    let keep_alive = section.duration("keep-alive", Duration::from_secs(10));
    let names = [("asked", ResponseModel::Asked), ("engine", ResponseModel::Engine)];
    let response_model = section.choice("response-model", &names, ResponseModel::Asked);
    let idempotency = Idempotency {
        keep: section.duration("idempotency-keep", Duration::from_secs(600)),
        grace: section.duration("idempotency-grace", Duration::from_secs(10)),
        memory: usize::try_from(section.bytes("idempotency-memory").unwrap_or(64 << 20))
            .unwrap_or(usize::MAX),
    };
    let max_attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", Duration::from_secs(600));
    section.report_unknown();
    Some(Server {
        listeners: listeners?,
        hosts,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        body_memory: usize::try_from(body_memory).unwrap_or(usize::MAX),
        max_upload: forms.max_upload,
        upload_memory: forms.upload_memory,
        spool_dir: forms.spool_dir,
        spool_size: forms.spool_size,
        body_timeout,
        write_timeout,
        idle_timeout,
        drain_timeout,
        keep_alive: Some(keep_alive).filter(|interval| !interval.is_zero()),
        response_model,
        idempotency,
        max_attempts,
        deadline,
    })
}

/// The limits of multipart forms.
struct Forms {
    max_upload: usize,
    upload_memory: usize,
    spool_dir: Option<PathBuf>,
    spool_size: usize,
}

fn read_forms(section: &Section<'_>, folder: &Path, body_memory: u64) -> Forms {
    const MAX_UPLOAD_LIMIT: u64 = 64 << 30;
    let max_upload = section.bytes("max-upload").unwrap_or(200 << 20);
    if !(1..=MAX_UPLOAD_LIMIT).contains(&max_upload) {
        section.error_at("max-upload", Code::OutOfRange.with("must be between 1B and 64GiB"));
    }
    let upload_memory = section.bytes("upload-memory").unwrap_or(1 << 20);
    if upload_memory > body_memory {
        section.error_at("upload-memory", Code::OutOfRange.with("must be at most `body-memory`"));
    }
    let spool_size = section.bytes("spool-size").unwrap_or(max_upload.max(2 << 30));
    if spool_size < max_upload {
        section.error_at("spool-size", Code::OutOfRange.with("must be at least `max-upload`"));
    }
    let to_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Forms {
        max_upload: to_usize(max_upload),
        upload_memory: to_usize(upload_memory),
        spool_dir: section.string("spool-dir").map(|path| folder.join(path)),
        spool_size: to_usize(spool_size),
    }
}

/// Reports names that no `Host` can have, so that a typing error does not lock clients out.
fn check_hosts(section: &Section<'_>, hosts: &[String]) {
    for host in hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if host != "*" && !name.split('.').all(is_label) {
            let message = format!(
                "invalid host name \"{host}\": expected a name without scheme and port, for \
                 example \"router.example.org\", \"*.example.org\", or \"*\" for all names"
            );
            section.error_at("hosts", Code::InvalidValue.with(message));
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
