//! `driver = "external"`: an existing server with the OpenAI API, which the host does not start.

mod metrics;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use pointsman_domain::EngineKind;
use pointsman_files::read_regular;
use pointsman_settings::{Code, Section, secret};

use crate::driver::{
    API_PATH, Description, Driver, DriverInfo, EngineConfig, EngineSpec, LaneBasics, LaneContext,
    LaneDefaults, MetricsSource, Prepared, Target, is_equal,
};
use crate::engine_spec::{ProcessSpec, Secret};
use crate::launch::Launch;
use crate::proof::Reuse;
use crate::tls::TrustedRoots;

const SECOND: Duration = Duration::from_secs(1);
/// Maximum size of a file with certificates in bytes; those of Debian have 220 kB.
const MAX_CERTIFICATES_BYTES: u64 = 8 << 20;

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "external",
    purpose: Some("an existing server"),
    kind: EngineKind::External,
    defaults: LaneDefaults { is_managed: false, stall: Duration::ZERO, ..LaneDefaults::MANAGED },
    read,
};

fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let server = read_server(section, lane.folder);
    let probe_interval = section.duration("probe-interval", 5 * SECOND);
    let reuse = section.bool("reuse-connections", false);
    let probe_path = section.string("probe-path");
    if probe_path.is_some_and(|path| !is_probe_path(path)) {
        let message = "expected a path below `url` with a leading `/`, for example \"/models\"";
        section.error_at("probe-path", Code::InvalidValue.with(message));
    }
    let mut spec = server?.with_reused_connections(reuse);
    spec.probe_interval = probe_interval.max(MIN_PROBE_INTERVAL);
    if let Some(path) = probe_path {
        spec = spec.with_probe_path(path);
    }
    Some(EngineConfig::new(spec))
}

/// Reads how a server is reached: its URL, its key and the certificates to trust. Returns `None`
/// only if an error was reported.
pub(super) fn read_server(section: &Section<'_>, folder: &Path) -> Option<ExternalSpec> {
    let url = section.required_string("url", "\"http://127.0.0.1:8080\"");
    let key = secret(section, "key-env", "key-file", folder).map(Secret::new);
    let authorities = section.string("ca-file").and_then(|file| {
        let path = folder.join(file);
        let read = read_regular(&path, MAX_CERTIFICATES_BYTES);
        read.inspect_err(|error| {
            section.error_at("ca-file", Code::Unavailable.with(error.to_string()));
        })
        .ok()
    });
    match ExternalSpec::try_new(url?, key, MIN_PROBE_INTERVAL) {
        Ok(spec) => Some(match authorities {
            Some(pem) => spec.with_root_certificates(pem),
            None => spec,
        }),
        Err(error) => {
            section.error_at("url", error.to_string());
            None
        }
    }
}

/// Returns true for a path that can follow that of the URL; an empty one turns probes off.
fn is_probe_path(path: &str) -> bool {
    path.is_empty()
        || (path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
}

/// An engine that the host does not start.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalSpec {
    pub(crate) https: bool,
    /// PEM of certificates to trust in addition to the system's.
    pub(crate) authorities: Option<Vec<u8>>,
    pub(crate) authority: String,
    /// Prefix of paths outside the API.
    pub(crate) base_path: String,
    /// The path of the API.
    pub(crate) api_path: String,
    /// The readiness paths; empty for an engine that is not probed.
    pub(crate) probe_paths: Vec<String>,
    /// The engine may lack them.
    pub(crate) probe_is_optional: bool,
    pub(crate) key: Option<Secret>,
    pub(crate) probe_interval: Duration,
    /// Connections are used for several requests.
    pub(crate) reuse_connections: bool,
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
    /// Creates the engine at `url`. The path of the URL is that of the API; without a path, it is
    /// `/v1`.
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
                let api_path = if path.is_empty() { API_PATH } else { path }.to_owned();
                let before_v1 = api_path.strip_suffix(API_PATH);
                let has_own_path = before_v1.is_none();
                let base_path = before_v1.unwrap_or(&api_path).to_owned();
                let models = format!("{API_PATH}/models");
                // Not every server has `/health`. An API with a path of its own is that of a
                // service, which has no `/health`, and some have no list of models either.
                let probe_paths = match has_own_path {
                    true => vec![models],
                    false => vec!["/health".to_owned(), models],
                };
                let probe_interval = probe_interval.max(MIN_PROBE_INTERVAL);
                let authority = authority.to_string();
                Ok(Self {
                    https: scheme == "https",
                    authorities: None,
                    authority,
                    base_path,
                    api_path,
                    probe_paths,
                    probe_is_optional: has_own_path,
                    key,
                    probe_interval,
                    reuse_connections: false,
                })
            }
            (Some(_), Some(_)) => Err(UrlError::Scheme(url.to_owned())),
            _ => Err(UrlError::Malformed(url.to_owned())),
        }
    }

    /// Probes a path below the URL instead of the default ones; an empty one turns probes off.
    #[must_use]
    pub fn with_probe_path(mut self, path: &str) -> Self {
        let path = (!path.is_empty()).then(|| format!("{API_PATH}{path}"));
        self.probe_paths = path.into_iter().collect();
        self.probe_is_optional = false;
        self
    }

    /// Uses connections for several requests. An engine that sends one response too many then gives
    /// later requests the responses of others.
    #[must_use]
    pub fn with_reused_connections(mut self, reuse: bool) -> Self {
        self.reuse_connections = reuse;
        self
    }

    /// Trusts the certificates of a PEM text in addition to the system's.
    #[must_use]
    pub fn with_root_certificates(mut self, pem: Vec<u8>) -> Self {
        self.authorities = Some(pem);
        self
    }
}

impl From<ExternalSpec> for EngineSpec {
    fn from(external: ExternalSpec) -> Self {
        EngineConfig::new(external).into_spec()
    }
}

impl Driver for ExternalSpec {
    fn info(&self) -> &'static DriverInfo {
        &DRIVER
    }

    fn equals(&self, other: &dyn Driver) -> bool {
        is_equal(self, other)
    }

    fn run(&self) -> Option<&ProcessSpec> {
        None
    }

    fn prepare(&self, _lane: &str, _port: u16) -> Prepared {
        Prepared { launch: Launch::default(), warnings: Vec::new() }
    }

    fn target(&self, _port: u16) -> Target {
        let Self { https, authority, base_path, api_path, key, .. } = self.clone();
        Target {
            https,
            authority,
            base_path,
            api_path,
            key,
            priorities: false,
            external: true,
            peer: false,
            activity: Arc::default(),
            conversations: None,
        }
    }

    fn reuse(&self) -> Reuse {
        if self.reuse_connections { Reuse::Always } else { Reuse::Never }
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &metrics::SOURCES
    }

    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        self.https.then_some(TrustedRoots { additional: self.authorities.as_deref() })
    }

    fn ready_paths(&self) -> Vec<&str> {
        self.probe_paths.iter().map(String::as_str).collect()
    }

    fn ready_paths_are_optional(&self) -> bool {
        self.probe_is_optional
    }

    fn describe(&self, _lane: &LaneContext<'_>) -> Description {
        Description::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let spec = |url: &str| ExternalSpec::try_new(url, None, Duration::ZERO);
        for (url, authority, chat, probes) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", "/v1", &["/health", "/v1/models"][..]),
            ("http://h:1/", "h:1", "/v1", &["/health", "/v1/models"]),
            ("http://h:1/v1/", "h:1", "/v1", &["/health", "/v1/models"]),
            ("http://h:1/api/v1", "h:1", "/api/v1", &["/api/health", "/api/v1/models"]),
            ("https://api.openai.com/v1", "api.openai.com", "/v1", &["/health", "/v1/models"]),
            ("https://h/api/paas/v4", "h", "/api/paas/v4", &["/api/paas/v4/models"]),
            ("https://h/v1beta/openai/", "h", "/v1beta/openai", &["/v1beta/openai/models"]),
            ("https://h/api/v3", "h", "/api/v3", &["/api/v3/models"]),
        ] {
            let spec = spec(url).unwrap();
            let target = spec.target(0);
            assert_eq!(target.authority, authority, "{url}");
            let chat = format!("{chat}/chat/completions");
            let at = |path: &str| <[&str; 2]>::from(target.path(path)).concat();
            assert_eq!(at("/v1/chat/completions"), chat, "{url}");
            let paths: Vec<_> = spec.ready_paths().iter().map(|path| at(path)).collect();
            assert_eq!(paths, probes, "{url}");
        }
        let own = spec("https://h/api/v3").unwrap().with_probe_path("/status?a=b");
        let target = own.target(0);
        assert_eq!(target.path(own.ready_paths()[0]), ("/api/v3", "/status?a=b"));
        assert!(own.with_probe_path("").ready_paths().is_empty());
        let spec = |url| spec(url).map(|spec| spec.authority);
        for url in ["", "127.0.0.1:8080", "/v1", "not a url"] {
            assert_eq!(spec(url), Err(UrlError::Malformed(url.to_owned())), "{url}");
        }
        assert_eq!(spec("ftp://h"), Err(UrlError::Scheme("ftp://h".to_owned())));
    }
}
