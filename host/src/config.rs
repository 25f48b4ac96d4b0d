//! The configuration: a TOML file, read into validated values, or into a list of everything that is wrong with it.
//!
//! `examples/pointsman.toml` documents every key. Paths are relative to the file's folder; secrets come from environment
//! variables or files and never stand in the configuration itself.

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
use pointsman_policy::ChainSpec;
use pointsman_settings::{Diagnostic, Override, Section, folder_of, rules};

pub(crate) use pointsman_settings::{FileError as ConfigError, format_duration};

pub(crate) use self::admin::Admin;
pub(crate) use self::groups::shown_pool;

/// A valid configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) log: Log,
    /// API keys and their tenants.
    pub(crate) keys: Vec<(String, String)>,
    pub(crate) queue: Queue,
    pub(crate) policies: Policies,
    /// Decision records; `None`: none.
    pub(crate) records: Option<pointsman_record::Settings>,
    /// Where operators come in.
    pub(crate) admin: Admin,
    /// Lanes, groups and the rules of the queue. `keeper` is not the configuration's matter.
    pub(crate) fleet: FleetSpec,
    /// Of each lane, how its need of memory comes about.
    pub(crate) needs: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listen: SocketAddr,
    pub(crate) max_body: usize,
    pub(crate) drain: Duration,
    /// Clients that wait for a stream get a comment this often; `None`: they do not.
    pub(crate) keep_alive: Option<Duration>,
    /// Most lanes that one request tries.
    pub(crate) attempts: usize,
    /// Longest time from a request to the first byte of its answer, on all lanes together.
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
    /// Longest wait, whatever policies say. All else about the queue is in the fleet's rules.
    pub(crate) max_wait: Duration,
}

#[derive(Debug)]
pub(crate) struct Policies {
    /// Where compiled policies are kept.
    pub(crate) cache: Option<PathBuf>,
    /// The folder that the policies' folders are in.
    pub(crate) dir: PathBuf,
    /// How often their folders are looked at, though nothing said that they have changed.
    pub(crate) poll: Duration,
    pub(crate) chain: ChainSpec,
}

impl Config {
    /// Read and validate a file.
    ///
    /// # Errors
    /// With every mistake in it, in the order of the file.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_over(file, &[])
    }

    /// The same, with some keys that are other than the file says.
    ///
    /// # Errors
    /// With every mistake, those in these keys too.
    pub(crate) fn load_over(file: &Path, over: &[Override]) -> Result<Self, ConfigError> {
        let source = ConfigError::source(file)?;
        Self::parse(&source, over, file).map_err(|errors| ConfigError::new(file, errors))
    }

    fn parse(source: &str, over: &[Override], file: &Path) -> Result<Self, Vec<Diagnostic>> {
        pointsman_settings::read(source, over, |root| read(root, file))
    }
}

/// The whole file. `None` only together with a mistake.
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
    let max_steps = server.as_ref().map_or(1, |server| server.attempts);
    let records =
        records::read(root.section("records"), folder, PlanLimits { max_wait, max_steps });
    let groups = groups::read(root);
    let taken = server.as_ref().map(|server| server.listen.port());
    let lanes = lanes::read(root, &groups, folder, taken);
    root.report_unknown();
    let lanes::Lanes { specs, needs } = lanes?;
    let machine = PathBuf::from("/");
    let fleet = FleetSpec { lanes: specs, groups, rules, state_dir, keeper: None, machine };
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
    const MOST: u64 = 1 << 30;
    let listen = section.parsed("listen", |text| {
        text.parse().map_err(|_| {
            format!("\"{text}\" is no address; write an IP address and a port, such as \"127.0.0.1:8000\"")
        })
    });
    let listen =
        if section.has("listen") { listen } else { Some(SocketAddr::from(([127, 0, 0, 1], 8000))) };
    let max_body = section.bytes("max-body").unwrap_or(32 << 20);
    if !(1..=MOST).contains(&max_body) {
        section.error_at("max-body", "must be from \"1B\" to \"1GiB\"");
    }
    let drain = section.duration("drain-timeout", Duration::from_secs(30));
    let keep_alive = section.duration("keep-alive", Duration::from_secs(10));
    let attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", Duration::from_secs(600));
    section.report_unknown();
    Some(Server {
        listen: listen?,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        drain,
        keep_alive: Some(keep_alive).filter(|pause| !pause.is_zero()),
        attempts,
        deadline,
    })
}

fn read_log(section: Section<'_>) -> Log {
    let filter =
        section.parsed("level", |text| match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "\"{text}\" is no level or filter ({error}); write for example \"info\""
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
        section.error_at(
            "env",
            "is missing; name the environment variable (`env`) or the file (`file`) that holds the key",
        );
    }
    section.report_unknown();
    Some((key?, tenant?))
}

/// A secret from the environment variable or the file that these keys name; `None` if there is none, or on a mistake.
pub(crate) fn secret(
    section: &Section<'_>,
    env: &'static str,
    file: &'static str,
    folder: &Path,
) -> Option<String> {
    let (key, found) = match (section.string(env), section.string(file)) {
        (Some(_), Some(_)) => {
            section.error_at(file, format!("stands beside `{env}`; write one of the two"));
            return None;
        }
        (Some(name), None) => (
            env,
            std::env::var(name)
                .map_err(|_| format!("the environment variable `{name}` is not set to a text")),
        ),
        (None, Some(name)) => {
            let path = folder.join(name);
            (
                file,
                std::fs::read_to_string(&path)
                    .map_err(|error| format!("{} cannot be read: {error}", path.display())),
            )
        }
        (None, None) => return None,
    };
    let checked = found.and_then(|secret| match secret.trim() {
        "" => Err("the secret that this names is empty".to_owned()),
        secret if secret.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(secret.to_owned()),
        _ => Err(
            "the secret that this names has spaces, line ends or other characters that no header may carry"
                .to_owned(),
        ),
    });
    match checked {
        Ok(secret) => Some(secret),
        Err(what) => {
            section.error_at(key, what);
            None
        }
    }
}

/// Where compiled policies are kept when the configuration does not say: the user's cache folder.
pub(crate) fn default_cache() -> Option<PathBuf> {
    let cache = env_folder("XDG_CACHE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("pointsman").join("policies"))
}

/// Where running engines are recorded; `None`: nowhere.
fn state_dir(section: &Section<'_>, file: &Path, folder: &Path) -> Option<PathBuf> {
    match section.string("dir") {
        Some("") => None,
        Some(dir) => Some(folder.join(dir)),
        None => default_state(file, env_folder),
    }
}

/// The same when the configuration does not say: a folder of its own in the user's folder for states.
fn default_state(file: &Path, env_folder: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let states = env_folder("XDG_STATE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".local/state")))?;
    let whole = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let path = whole.as_os_str().as_encoded_bytes();
    // Files of one name in several folders are several configurations.
    let hash = fnv1a_chain([path], path.len(), 1).first().copied().unwrap_or_default();
    let name = whole.file_stem().unwrap_or_default().to_string_lossy();
    Some(states.join("pointsman").join(format!("{name}-{hash:016x}")))
}

/// The folder that an environment variable names, if it is an absolute path.
fn env_folder(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests;
