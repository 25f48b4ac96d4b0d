//! What the operator says about lanes and their engines, validated.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

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
    /// Lanes with the same number share memory; 0 shares with none.
    pub group: u32,
    /// Relative price of a thousand tokens.
    pub cost_milli: u32,
    /// Model name sent to the engine; what the client asked for where `None`.
    pub engine_model: Option<String>,
    /// The engine.
    pub engine: EngineSpec,
    /// Limits on waiting for the engine.
    pub timeouts: Timeouts,
}

/// What serves a lane.
#[derive(Debug, Clone)]
pub enum EngineSpec {
    /// A llama.cpp server that we start.
    LlamaCpp(ProcessSpec),
    /// A server that is there already.
    External(ExternalSpec),
}

/// An engine that we start.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Program and arguments; `{port}`, `{host}` and `{lane}` are replaced.
    pub command: Vec<String>,
    /// Environment variables beyond our own.
    pub env: Vec<(String, String)>,
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

/// Pauses between failed lives of an engine: doubled from `first` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// A life that served this long makes the next pause the first one again.
    pub reset_after: Duration,
}

impl BackOff {
    /// The pause after this many failed lives in a row (at least 1).
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

/// An engine that we do not start.
#[derive(Debug, Clone)]
pub struct ExternalSpec {
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
    /// Another scheme than http.
    #[error("\"{0}\" does not begin with http://; reach TLS endpoints through a local proxy that ends TLS")]
    Scheme(String),
}

impl ExternalSpec {
    /// The engine at `url`. A path of the URL (but for `/v1`, which is implied) comes before every path that is asked for.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn try_new(url: &str, key: Option<Secret>, probe_every: Duration) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(|_| UrlError::Malformed(url.to_owned()))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) => {
                let path = uri.path().trim_end_matches('/');
                let base_path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
                let probe_every = probe_every.max(Duration::from_millis(100));
                Ok(Self { authority: authority.to_string(), base_path, key, probe_every })
            }
            (Some(_), Some(_)) => Err(UrlError::Scheme(url.to_owned())),
            _ => Err(UrlError::Malformed(url.to_owned())),
        }
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
            ExternalSpec::try_new(url, None, Duration::ZERO).map(|spec| (spec.authority, spec.base_path))
        };
        let ok = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
        assert_eq!(spec("http://127.0.0.1:8080"), ok("127.0.0.1:8080", ""));
        assert_eq!(spec("http://h:1/v1/"), ok("h:1", ""));
        assert_eq!(spec("http://h:1/api/v1"), ok("h:1", "/api"));
        for url in ["", "127.0.0.1:8080", "/v1", "not a url"] {
            assert_eq!(spec(url), Err(UrlError::Malformed(url.to_owned())), "{url}");
        }
        assert_eq!(spec("https://h"), Err(UrlError::Scheme("https://h".to_owned())));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let back_off = BackOff { first: second, most: 5 * second, reset_after: second };
        let pauses: Vec<u64> = [1, 2, 3, 4, 99].map(|failures| back_off.pause(failures).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("key".into()))), "Some(Secret(…))");
    }
}
