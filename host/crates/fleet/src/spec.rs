//! What the operator says about lanes and their engines, validated.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
pub use pointsman_domain::dispatch::{BackOff, Residency, Rules};

use crate::memory::Pool;
use crate::vllm::VllmSettings;

/// Everything that a fleet is made of.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// The lanes, in the order of their ids.
    pub lanes: Vec<LaneSpec>,
    /// Lanes that share memory.
    pub groups: Vec<GroupSpec>,
    /// The rules of the queue and of switching.
    pub rules: Rules,
    /// Where running engines are recorded, so that a later run finds what an earlier one left behind.
    pub state_dir: Option<PathBuf>,
    /// The program that kills the engines when we are gone: ourselves, run as `pointsman keeper`.
    pub keeper: Option<PathBuf>,
    /// Where `/sys` and `/proc` are: `/`, but for tests.
    pub machine: PathBuf,
}

/// Lanes that share memory.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// Its name.
    pub name: String,
    /// Bytes that its lanes may hold together.
    pub budget: u64,
    /// Where that memory is, to see that it is free before a load; `None`: not looked at.
    pub pool: Option<Pool>,
    /// How long to wait for it to become free.
    pub free_timeout: Duration,
}

/// One lane and the engine behind it.
#[derive(Debug, Clone)]
pub struct LaneSpec {
    /// Its name; no two lanes have the same.
    pub name: String,
    /// Model names it answers to.
    pub models: Vec<String>,
    /// Labels for policies.
    pub labels: Vec<(String, String)>,
    /// Longest sequence in tokens; 0 if not known.
    pub max_context: u32,
    /// Requests it works on at once.
    pub slots: u32,
    /// Index of its group; `None`: it shares with none.
    pub group: Option<usize>,
    /// Bytes of its group's memory that it holds while it is loaded.
    pub need: u64,
    /// Bytes of it that it holds while it sleeps.
    pub asleep: u64,
    /// When it is loaded.
    pub residency: Residency,
    /// How long a load is expected to take, until one has been seen.
    pub expected_load: Duration,
    /// Relative price of a thousand tokens.
    pub cost_milli: u32,
    /// Model name sent to the engine; what the client asked for where `None`.
    pub engine_model: Option<String>,
    /// The engine.
    pub engine: EngineSpec,
    /// Limits on waiting for the engine.
    pub timeouts: Timeouts,
    /// How it is found out that the engine hangs.
    pub liveness: Liveness,
}

/// What serves a lane.
#[derive(Debug, Clone)]
pub enum EngineSpec {
    /// A vLLM server that we start.
    Vllm {
        /// What it is to serve, and how.
        settings: Box<VllmSettings>,
        /// How it is run.
        run: ProcessSpec,
        /// How it makes room for other lanes.
        strategy: SwitchStrategy,
    },
    /// A llama.cpp server that we start.
    LlamaCpp {
        /// Program, arguments and environment.
        words: CommandLine,
        /// How it is run.
        run: ProcessSpec,
    },
    /// Any other program with the OpenAI API that we start.
    Command {
        /// Program, arguments and environment.
        words: CommandLine,
        /// Path that answers 2xx when it can serve.
        ready: String,
        /// How it is run.
        run: ProcessSpec,
    },
    /// A server that is there already.
    External(ExternalSpec),
}

impl EngineSpec {
    /// How it is run, if we start it.
    pub fn run(&self) -> Option<&ProcessSpec> {
        match self {
            Self::Vllm { run, .. } | Self::LlamaCpp { run, .. } | Self::Command { run, .. } => {
                Some(run)
            }
            Self::External(_) => None,
        }
    }
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// Program and arguments; `{port}`, `{host}` and `{lane}` are replaced.
    pub command: Vec<String>,
    /// Environment variables beyond our own; the same is replaced in their values.
    pub env: Vec<(String, String)>,
}

/// How an engine makes room for other lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwitchStrategy {
    /// It is stopped, and started again when it is wanted.
    #[default]
    Restart,
    /// It sleeps, with its weights in the host's memory.
    SleepOne,
    /// It sleeps, and reads its weights again.
    SleepTwo,
}

/// How an engine that we start is run.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Working directory.
    pub directory: Option<PathBuf>,
    /// Port; a free one at each start where `None`.
    pub port: Option<u16>,
    /// Longest time from start to the first good answer.
    pub start_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// Pauses between failed lives.
    pub back_off: BackOff,
}

/// Of an engine that is not ours to start.
pub(crate) const NO_BACK_OFF: BackOff = BackOff {
    first: Duration::ZERO,
    most: Duration::ZERO,
    reset_after: Duration::ZERO,
    give_up: 0,
    failed_retry: Duration::ZERO,
};

/// How it is found out that an engine hangs though it answers `/health`. Zero turns a part off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// With requests under way and not one byte or token for this long, the engine is restarted.
    pub stall: Duration,
    /// An idle engine is asked for one token this often.
    pub probe_every: Duration,
    /// Longest time that this may take; twice in a row, and the engine is restarted.
    pub probe_limit: Duration,
}

/// An engine that we do not start.
#[derive(Debug, Clone)]
pub struct ExternalSpec {
    pub(crate) https: bool,
    /// PEM of the certificates to trust beside the system's own.
    pub(crate) authorities: Option<Vec<u8>>,
    pub(crate) authority: String,
    pub(crate) base_path: String,
    pub(crate) key: Option<Secret>,
    pub(crate) probe_every: Duration,
}

/// Why a URL is none of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL with a host.
    #[error("\"{0}\" is no URL; write for example \"http://127.0.0.1:8080\"")]
    Malformed(String),
    /// Another scheme than http and https.
    #[error("\"{0}\" begins with neither http:// nor https://")]
    Scheme(String),
}

impl ExternalSpec {
    /// The engine at `url`. A path of the URL (but for `/v1`, which is implied) comes before every path that is asked for.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn try_new(
        url: &str,
        key: Option<Secret>,
        probe_every: Duration,
    ) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(|_| UrlError::Malformed(url.to_owned()))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(authority)) => {
                let path = uri.path().trim_end_matches('/');
                let base_path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
                let probe_every = probe_every.max(Duration::from_millis(100));
                let authority = authority.to_string();
                Ok(Self {
                    https: scheme == "https",
                    authorities: None,
                    authority,
                    base_path,
                    key,
                    probe_every,
                })
            }
            (Some(_), Some(_)) => Err(UrlError::Scheme(url.to_owned())),
            _ => Err(UrlError::Malformed(url.to_owned())),
        }
    }
}

impl ExternalSpec {
    /// Trust the certificates of this PEM text, too.
    #[must_use]
    pub fn trusting(mut self, pem: Vec<u8>) -> Self {
        self.authorities = Some(pem);
        self
    }
}

/// Limits on waiting for an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection is there.
    pub connect: Duration,
    /// From sending a request to the first byte of the answer's body.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keep `text` secret.
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
    fn urls_are_taken_apart() {
        let spec = |url| {
            ExternalSpec::try_new(url, None, Duration::ZERO)
                .map(|spec| (spec.authority, spec.base_path))
        };
        let ok = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
        assert_eq!(spec("http://127.0.0.1:8080"), ok("127.0.0.1:8080", ""));
        assert_eq!(spec("http://h:1/v1/"), ok("h:1", ""));
        assert_eq!(spec("http://h:1/api/v1"), ok("h:1", "/api"));
        for url in ["", "127.0.0.1:8080", "/v1", "not a url"] {
            assert_eq!(spec(url), Err(UrlError::Malformed(url.to_owned())), "{url}");
        }
        assert_eq!(spec("https://api.openai.com/v1"), ok("api.openai.com", ""));
        assert_eq!(spec("ftp://h"), Err(UrlError::Scheme("ftp://h".to_owned())));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("key".into()))), "Some(Secret(…))");
    }
}
