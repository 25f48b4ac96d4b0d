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
mod discovery;
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
mod pick;
mod policies;
mod records;
mod registries;
mod responses;
mod schema;
mod server;
mod shared_state;
mod state;
mod telemetry;
mod tokens;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::{Guards, PlanLimits};
use pointsman_fleet::{FleetSpec, GroupSpec};
use pointsman_settings::{Diagnostic, Override, Secrets, Section, folder_of, read_expanded, rules};
use pointsman_spec::ChainSpec;

pub use pointsman_settings::{FileError as ConfigError, Variable, format_duration};

pub use self::access::Access;
pub use self::admin::{Admin, MAX_SOCKET_PATH, Token, find_state_dir};
pub use self::console::Console;
pub use self::difference::{ChangeKind, KeyChange, differences};
pub use self::discovery::{Discovery, EndpointsFile, LaneText};
pub use self::effects::{EFFECTS, Effect, KeyGroup, effect_of, effects_table};
pub use self::folders::default_cache;
pub use self::groups::format_pool;
pub use self::keys::ApiKey;
pub use self::listeners::{Address, ClientCertificates, Cors, HealthRule, Listener, Tls};
pub use self::log::{
    ACCESS_FIELDS, AccessLog, AccessOutput, Log, LogFileLimits, LogFormat, ShownAddress,
};
pub use self::peers::Peer;
pub use self::pick::{HostLane, Pick, PickHost};
pub use self::policies::PolicyLocation;
pub use self::responses::Responses;
pub use self::schema::schema;
pub use self::server::{Idempotency, ResponseModel, Server};
pub use self::shared_state::SharedState;
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
    /// The store that several hosts share, if there is one.
    pub shared_state: Option<SharedState>,
    /// Settings of decision records, if they are enabled.
    pub records: Option<pointsman_record::Settings>,
    /// Where the admin API listens.
    pub admin: Admin,
    /// Where the console is served.
    pub console: Console,
    /// How a proxy is served; `None` for a configuration that `pointsman pick` cannot use.
    pub pick: Option<Pick>,
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

    /// Validates a text as [`Config::from_source`] does, with the lanes of these sources, too. The
    /// file of endpoints is only read if it is among them.
    ///
    /// # Errors
    /// All errors in the text and in the lanes of the sources.
    pub fn discover(
        source: &str,
        file: &Path,
        discovery: &[&dyn Discovery],
    ) -> Result<Self, ConfigError> {
        let read = |root: &Section<'_>| read_discovered(root, file, discovery);
        read_expanded(source, &[], Secrets::Read, read)
            .map_err(|errors| ConfigError::new(file, errors))
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

/// Reads the whole file, and the file of endpoints. Returns `None` only if an error was reported.
fn read(root: &Section<'_>, file: &Path) -> Option<Config> {
    read_discovered(root, file, &[&EndpointsFile])
}

/// Reads the whole file, and the lanes of these sources. Returns `None` only if an error was
/// reported.
fn read_discovered(
    root: &Section<'_>,
    file: &Path,
    discovery: &[&dyn Discovery],
) -> Option<Config> {
    let folder = folder_of(file);
    let server = root.section("server");
    let listeners = listeners::read(root, &server, folder);
    let server = server::read(server, listeners, folder);
    let log = log::read(&root.section("log"), folder);
    let telemetry = telemetry::read(&root.section("telemetry"));
    let keys = keys::read_all(root, folder);
    let (peers, peering) = peers::read(root, folder);
    let access = root.section("access");
    let tokens = tokens::read(&access, folder);
    let access = access::read(&access, folder);
    let state = root.section("state");
    let state_dir = folders::state_dir(&state, file, folder);
    let has_default_state = !state.has("dir");
    let keeper = state::read(&state);
    let admin = admin::read(&root.section("admin"), folder, state_dir.as_deref());
    let console = console::read(&root.section("console"), &admin);
    let (rules, max_wait) = rules(&root.section("queue"), &root.section("switching"));
    let policies = policies::read(root, folder, state_dir.as_deref());
    let guards = guards::read(root);
    let max_steps = server.as_ref().map_or(1, |server| server.max_attempts);
    let responses = responses::read(&root.section("responses"));
    let usage = usage::read(&root.section("usage"));
    let shared_state = shared_state::read(root, folder);
    let records =
        records::read(root.section("records"), folder, PlanLimits { max_wait, max_steps });
    let groups = groups::read(root);
    let conversations = conversations::read(&root.section("conversations"), state_dir.is_some());
    let pick = pick::read(root, folder, max_wait);
    let listening = (server.as_ref(), &admin);
    let further = (pick.as_ref(), discovery);
    let lanes = read_lanes(root, folder, (&groups, conversations.is_some()), further, listening);
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
        shared_state,
        records,
        admin,
        console,
        pick,
        has_default_state,
        fleet,
        needs,
        variables: root.variables(),
    })
}

/// Reads the lanes, and checks the addresses of the host against theirs. Returns `None` only if an
/// error was reported.
fn read_lanes(
    root: &Section<'_>,
    folder: &Path,
    (groups, has_conversations): (&[GroupSpec], bool),
    (pick, discovery): (Option<&Pick>, &[&dyn Discovery]),
    (server, admin): (Option<&Server>, &Admin),
) -> Option<lanes::Lanes> {
    let ports = server.into_iter().flat_map(Server::ports);
    let taken: Vec<u16> = ports.chain(admin.tcp_port()).collect();
    let place = lanes::Place {
        folder,
        taken: &taken,
        conversations: has_conversations,
        are_elsewhere: pick.is_some_and(Pick::has_further_lanes),
    };
    let lanes = lanes::read(root, groups, place);
    let mut lanes = discovery::complete(root, pick, lanes, place, discovery);
    models::read(root, lanes.as_mut().map(|lanes| lanes.specs.as_mut_slice()));
    if let Some(server) = server {
        let lanes = lanes.as_ref().map(|lanes| lanes.specs.as_slice());
        listeners::check(root, &server.listeners, admin, lanes);
    }
    lanes
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
