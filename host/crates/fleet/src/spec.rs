//! The validated configuration of lanes and their engines.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
pub use pointsman_domain::dispatch::{Backoff, Residency, Rules};

use crate::memory::Pool;
use crate::vllm::VllmSettings;

/// The configuration of a fleet.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// The lanes, in the order of their ids.
    pub lanes: Vec<LaneSpec>,
    /// The groups of lanes that share memory.
    pub groups: Vec<GroupSpec>,
    /// The rules of the queue and of switching.
    pub rules: Rules,
    /// The state directory, where running engines are recorded for the next host; `None` keeps no
    /// records.
    pub state_dir: Option<PathBuf>,
    /// The program that ends the engines if the host is killed: the host's own, run as `pointsman
    /// watchdog`.
    pub watchdog: Option<PathBuf>,
    /// The parent of `/sys` and `/proc`: `/`, except in tests.
    pub machine: PathBuf,
}

/// A group of lanes that share memory.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// The name.
    pub name: String,
    /// Bytes that the lanes may hold together.
    pub budget: u64,
    /// The memory that has to be free before a load; `None` to skip that check.
    pub pool: Option<Pool>,
    /// Maximum time to wait for free memory.
    pub free_timeout: Duration,
}

/// A lane and the engine behind it.
#[derive(Debug, Clone)]
pub struct LaneSpec {
    /// The name, unique among the lanes.
    pub name: String,
    /// Model names that the lane serves.
    pub models: Vec<String>,
    /// Labels for policies.
    pub labels: Vec<(String, String)>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// Maximum number of concurrent requests.
    pub slots: u32,
    /// Index of the group; `None` for a lane that shares no memory.
    pub group: Option<usize>,
    /// Bytes of the group's memory that the loaded engine holds.
    pub need: u64,
    /// Bytes of `need` that the engine holds while asleep.
    pub asleep: u64,
    /// When the lane is loaded.
    pub residency: Residency,
    /// Expected duration of a load, until one has been measured.
    pub expected_load: Duration,
    /// Relative price of a thousand tokens.
    pub cost_milli: u32,
    /// Model name to send to the engine; `None` keeps the client's.
    pub engine_model: Option<String>,
    /// The engine.
    pub engine: EngineSpec,
    /// Timeouts of requests to the engine.
    pub timeouts: Timeouts,
    /// Liveness checks of the engine.
    pub liveness: Liveness,
}

/// The engine of a lane.
#[derive(Debug, Clone)]
pub enum EngineSpec {
    /// A vLLM server that the host starts.
    Vllm {
        /// Settings of vLLM.
        settings: Box<VllmSettings>,
        /// How the host runs the process.
        run: ProcessSpec,
        /// How the engine frees its memory for other lanes.
        strategy: UnloadMode,
    },
    /// A llama.cpp server that the host starts.
    LlamaCpp {
        /// Program, arguments and environment.
        words: CommandLine,
        /// How the host runs the process.
        run: ProcessSpec,
    },
    /// Any other program with the OpenAI API that the host starts.
    Command {
        /// Program, arguments and environment.
        words: CommandLine,
        /// Path that returns a 2xx status when the engine is ready.
        ready: String,
        /// How the host runs the process.
        run: ProcessSpec,
    },
    /// An existing server.
    External(ExternalSpec),
}

impl EngineSpec {
    /// Returns how the host runs the engine, or `None` for an external one.
    pub fn run(&self) -> Option<&ProcessSpec> {
        match self {
            Self::Vllm { run, .. } | Self::LlamaCpp { run, .. } | Self::Command { run, .. } => {
                Some(run)
            }
            Self::External(_) => None,
        }
    }

    /// Returns the interval between readiness probes of an external engine; zero for one that the
    /// host starts, whose end its supervisor notices.
    pub(crate) fn probe_interval(&self) -> Duration {
        match self {
            Self::External(external) => external.probe_interval,
            Self::Vllm { .. } | Self::LlamaCpp { .. } | Self::Command { .. } => Duration::ZERO,
        }
    }
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// Program and arguments; the placeholders `{port}`, `{host}` and `{lane}` are replaced.
    pub command: Vec<String>,
    /// Variables to add to the host's environment; placeholders are replaced in their values.
    pub env: Vec<(String, String)>,
}

/// How an engine frees its memory for other lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnloadMode {
    /// The engine is stopped, and started again for the next load.
    #[default]
    Restart,
    /// The engine sleeps at level 1, with its weights in the host's memory.
    SleepLevel1,
    /// The engine sleeps at level 2, and reads its weights from the disk to wake up.
    SleepLevel2,
}

/// How the host runs an engine process.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Working directory; the host's if `None`.
    pub directory: Option<PathBuf>,
    /// Port; if `None`, a free one is chosen at each start.
    pub port: Option<u16>,
    /// Maximum time from the start of the process until the engine is ready.
    pub start_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// Delays between starts after failures.
    pub backoff: Backoff,
}

/// The backoff of an external engine, which the host does not start.
pub(crate) const NO_BACK_OFF: Backoff = Backoff {
    first: Duration::ZERO,
    most: Duration::ZERO,
    reset_after: Duration::ZERO,
    max_failures: 0,
    retry_failed_after: Duration::ZERO,
};

/// Liveness checks, which detect an engine that hangs although `/health` passes. A zero duration
/// disables a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// The engine is restarted if it makes no progress, neither a byte nor a token, for this long
    /// while requests are in flight.
    pub stall: Duration,
    /// Interval between probes of an idle engine, each of which asks for one token.
    pub probe_interval: Duration,
    /// Maximum time for the response to a probe; the engine is restarted after two failures in a
    /// row.
    pub probe_timeout: Duration,
}

/// An engine that the host does not start.
#[derive(Debug, Clone)]
pub struct ExternalSpec {
    pub(crate) https: bool,
    /// PEM of certificates to trust in addition to the system's.
    pub(crate) authorities: Option<Vec<u8>>,
    pub(crate) authority: String,
    pub(crate) base_path: String,
    pub(crate) key: Option<Secret>,
    pub(crate) probe_interval: Duration,
}

/// Minimum interval between readiness probes of an external engine; a shorter one would only load
/// the engine with probes.
const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The reason why a URL cannot be the address of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The text is not a URL with a host.
    #[error("invalid URL \"{0}\": expected for example http://127.0.0.1:8080")]
    Malformed(String),
    /// The scheme is neither http nor https.
    #[error("unsupported scheme in URL \"{0}\": expected http or https")]
    Scheme(String),
}

impl ExternalSpec {
    /// Creates the engine at `url`. The path of the URL, without a trailing `/v1`, becomes the
    /// prefix of every request path.
    ///
    /// # Errors
    /// Returns an error if the URL cannot be used.
    pub fn try_new(
        url: &str,
        key: Option<Secret>,
        probe_interval: Duration,
    ) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(|_| UrlError::Malformed(url.to_owned()))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(authority)) => {
                let path = uri.path().trim_end_matches('/');
                let base_path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
                let probe_interval = probe_interval.max(MIN_PROBE_INTERVAL);
                let authority = authority.to_string();
                Ok(Self {
                    https: scheme == "https",
                    authorities: None,
                    authority,
                    base_path,
                    key,
                    probe_interval,
                })
            }
            (Some(_), Some(_)) => Err(UrlError::Scheme(url.to_owned())),
            _ => Err(UrlError::Malformed(url.to_owned())),
        }
    }
}

impl ExternalSpec {
    /// Trusts the certificates of a PEM text in addition to the system's.
    #[must_use]
    pub fn with_root_certificates(mut self, pem: Vec<u8>) -> Self {
        self.authorities = Some(pem);
        self
    }
}

/// Timeouts of requests to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Maximum time to connect.
    pub connect: Duration,
    /// Maximum time from sending a request to the first byte of the response body.
    pub first_byte: Duration,
    /// Maximum time between two chunks of a response.
    pub idle: Duration,
}

/// A secret text, which debug output does not show.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let spec = |url| {
            ExternalSpec::try_new(url, None, Duration::ZERO)
                .map(|spec| (spec.authority, spec.base_path))
        };
        let parsed = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
        assert_eq!(spec("http://127.0.0.1:8080"), parsed("127.0.0.1:8080", ""));
        assert_eq!(spec("http://h:1/v1/"), parsed("h:1", ""));
        assert_eq!(spec("http://h:1/api/v1"), parsed("h:1", "/api"));
        for url in ["", "127.0.0.1:8080", "/v1", "not a url"] {
            assert_eq!(spec(url), Err(UrlError::Malformed(url.to_owned())), "{url}");
        }
        assert_eq!(spec("https://api.openai.com/v1"), parsed("api.openai.com", ""));
        assert_eq!(spec("ftp://h"), Err(UrlError::Scheme("ftp://h".to_owned())));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("key".into()))), "Some(Secret(…))");
    }
}
