//! The host configuration: a TOML file, read into validated values or a list of all errors in it.
//!
//! `examples/pointsman.toml` documents every key. Paths are relative to the file's folder. Secrets
//! come from environment variables or files and are never written in the configuration itself.

mod admin;
mod engines;
mod groups;
mod lanes;
mod need;
mod policies;
mod records;
mod vllm;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::{PlanLimits, fnv1a_chain};
use pointsman_fleet::FleetSpec;
use pointsman_settings::{
    Code, Diagnostic, Location, Override, Section, folder_of, missing, rules,
};
use pointsman_spec::ChainSpec;

pub(crate) use pointsman_settings::{FileError as ConfigError, format_duration};

pub(crate) use self::admin::Admin;
pub(crate) use self::groups::format_pool;

/// A valid configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) log: Log,
    /// API keys and their tenants.
    pub(crate) keys: Vec<(String, String)>,
    pub(crate) queue: Queue,
    pub(crate) policies: Policies,
    /// Settings of decision records, if they are enabled.
    pub(crate) records: Option<pointsman_record::Settings>,
    /// Where the admin API listens.
    pub(crate) admin: Admin,
    /// Lanes, groups and the rules of the queue. The watchdog program is set by the caller.
    pub(crate) fleet: FleetSpec,
    /// For each lane, how its memory need was computed.
    pub(crate) needs: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listen: SocketAddr,
    pub(crate) max_body: usize,
    pub(crate) drain_timeout: Duration,
    /// Interval of keep-alive comments in streams that wait for their first byte; `None` turns them
    /// off.
    pub(crate) keep_alive: Option<Duration>,
    /// Maximum number of attempts per request, on all lanes together.
    pub(crate) max_attempts: usize,
    /// Maximum time from a request to the first byte of its response, over all attempts.
    pub(crate) deadline: Duration,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug)]
pub(crate) struct Queue {
    /// Maximum time in a queue, whatever policies advise. The other rules are in `fleet`.
    pub(crate) max_wait: Duration,
}

#[derive(Debug)]
pub(crate) struct Policies {
    /// Folder of compiled policies.
    pub(crate) cache: Option<PathBuf>,
    /// Parent folder of the policies' folders.
    pub(crate) dir: PathBuf,
    /// How often policy folders are scanned without an event.
    pub(crate) poll_interval: Duration,
    pub(crate) chain: ChainSpec,
    /// Where each policy of the chain is in the file, by name.
    pub(crate) locations: Vec<(String, PolicyLocation)>,
}

/// Where a policy of the chain is in the file, for errors that only appear when it is loaded.
#[derive(Debug)]
pub(crate) struct PolicyLocation {
    /// Its entry in the chain.
    pub(crate) entry: Location,
    /// Its `config`, or its entry if it has none.
    pub(crate) config: Location,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// All errors in the file, in its order.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with_overrides(file, &[])
    }

    /// Reads and validates a file after replacing some of its keys.
    ///
    /// # Errors
    /// All errors in the file and in the overrides.
    pub(crate) fn load_with_overrides(
        file: &Path,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        let source = ConfigError::source(file)?;
        Self::parse(&source, overrides, file).map_err(|errors| ConfigError::new(file, errors))
    }

    fn parse(source: &str, overrides: &[Override], file: &Path) -> Result<Self, Vec<Diagnostic>> {
        pointsman_settings::read(source, overrides, |root| read(root, file))
    }
}

/// Reads the whole file. Returns `None` only if an error was reported.
fn read(root: &Section<'_>, file: &Path) -> Option<Config> {
    let folder = folder_of(file);
    let server = read_server(root.section("server"));
    let log = read_log(root.section("log"));
    let keys =
        root.sections("keys").into_iter().filter_map(|section| read_key(section, folder)).collect();
    let state = root.section("state");
    let state_dir = state_dir(&state, file, folder);
    state.report_unknown();
    let admin = admin::read(&root.section("admin"), folder, state_dir.as_deref());
    let (rules, max_wait) = rules(&root.section("queue"), &root.section("switching"));
    let policies = policies::read(root.section("policies"), folder, state_dir.as_deref());
    let max_steps = server.as_ref().map_or(1, |server| server.max_attempts);
    let records =
        records::read(root.section("records"), folder, PlanLimits { max_wait, max_steps });
    let groups = groups::read(root);
    let taken = server.as_ref().map(|server| server.listen.port());
    let lanes = lanes::read(root, &groups, folder, taken);
    root.report_unknown();
    let lanes::Lanes { specs, needs } = lanes?;
    let machine = PathBuf::from("/");
    let fleet = FleetSpec { lanes: specs, groups, rules, state_dir, watchdog: None, machine };
    Some(Config {
        server: server?,
        log,
        keys,
        queue: Queue { max_wait },
        policies,
        records,
        admin,
        fleet,
        needs,
    })
}

fn read_server(section: Section<'_>) -> Option<Server> {
    const MAX_BODY_LIMIT: u64 = 1 << 30;
    let listen = section.parsed("listen", |text| {
        text.parse().map_err(|_| {
            format!("invalid address \"{text}\": expected IP:PORT, for example 127.0.0.1:8000")
        })
    });
    let listen =
        if section.has("listen") { listen } else { Some(SocketAddr::from(([127, 0, 0, 1], 8000))) };
    let max_body = section.bytes("max-body").unwrap_or(32 << 20);
    if !(1..=MAX_BODY_LIMIT).contains(&max_body) {
        section.error_at("max-body", Code::OutOfRange.with("must be between 1B and 1GiB"));
    }
    let drain_timeout = section.duration("drain-timeout", Duration::from_secs(30));
    let keep_alive = section.duration("keep-alive", Duration::from_secs(10));
    let max_attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", Duration::from_secs(600));
    section.report_unknown();
    Some(Server {
        listen: listen?,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        drain_timeout,
        keep_alive: Some(keep_alive).filter(|interval| !interval.is_zero()),
        max_attempts,
        deadline,
    })
}

fn read_log(section: Section<'_>) -> Log {
    let filter =
        section.parsed("level", |text| match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "invalid log filter \"{text}\" ({error}): expected for example \"info\""
            )),
        });
    let format = section.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        LogFormat::Text,
    );
    section.report_unknown();
    Log { filter: filter.unwrap_or_else(|| "info".to_owned()), format }
}

fn read_key(section: Section<'_>, folder: &Path) -> Option<(String, String)> {
    let tenant = section.required_string("tenant", "\"team-a\"").map(str::to_owned);
    let key = secret(&section, "env", "file", folder);
    if !section.has("env") && !section.has("file") {
        section.error_at("env", missing("`env = \"VARIABLE\"` or `file = \"PATH\"`"));
    }
    section.report_unknown();
    Some((key?, tenant?))
}

/// Reads a secret from the environment variable or the file that these keys name. Returns `None` if
/// neither key is set, or after reporting an error.
pub(crate) fn secret(
    section: &Section<'_>,
    env: &'static str,
    file: &'static str,
    folder: &Path,
) -> Option<String> {
    let (key, found) = match (section.string(env), section.string(file)) {
        (Some(_), Some(_)) => {
            let message = format!("conflicts with `{env}`; remove one of the two");
            section.error_at(file, Code::Conflict.with(message));
            return None;
        }
        (Some(name), None) => (
            env,
            std::env::var(name).map_err(|_| {
                format!("environment variable `{name}` is not set, or is not valid UTF-8")
            }),
        ),
        (None, Some(name)) => {
            let path = folder.join(name);
            (
                file,
                std::fs::read_to_string(&path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display())),
            )
        }
        (None, None) => return None,
    };
    let checked = found.and_then(|secret| match secret.trim() {
        "" => Err("the secret is empty".to_owned()),
        secret if secret.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(secret.to_owned()),
        _ => {
            Err("the secret contains characters that are not allowed in an HTTP header".to_owned())
        }
    });
    match checked {
        Ok(secret) => Some(secret),
        Err(message) => {
            section.error_at(key, Code::Unavailable.with(message));
            None
        }
    }
}

/// Returns the default folder of compiled policies, below the user's cache folder.
pub(crate) fn default_cache() -> Option<PathBuf> {
    let cache = env_folder("XDG_CACHE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("pointsman").join("policies"))
}

/// Returns the state directory; `None` if it is turned off or there is no default.
fn state_dir(section: &Section<'_>, file: &Path, folder: &Path) -> Option<PathBuf> {
    match section.string("dir") {
        Some("") => None,
        Some(dir) => Some(folder.join(dir)),
        None => default_state(file, env_folder),
    }
}

/// Returns the default state directory: one folder per configuration file, below the user's state
/// folder.
fn default_state(file: &Path, env_folder: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let states = env_folder("XDG_STATE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".local/state")))?;
    let whole = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let path = whole.as_os_str().as_encoded_bytes();
    // Files with the same name in different folders are different configurations.
    let hash = fnv1a_chain([path], path.len(), 1).first().copied().unwrap_or_default();
    let name = whole.file_stem().unwrap_or_default().to_string_lossy();
    Some(states.join("pointsman").join(format!("{name}-{hash:016x}")))
}

/// Returns the folder in an environment variable, if it is an absolute path.
fn env_folder(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests;
