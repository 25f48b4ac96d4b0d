//! `driver = "external"`: an existing server with the OpenAI API, which the host does not start.

mod metrics;

use std::time::Duration;

use pointsman_domain::EngineKind;
use pointsman_settings::{Code, Section};

use super::server::Server;
pub use super::server::UrlError;
use crate::driver::{
    API_PATH, Description, Driver, DriverInfo, EngineConfig, EngineSpec, LaneBasics, LaneContext,
    LaneDefaults, MetricsSource, Prepared, Target, is_equal,
};
use crate::engine_spec::{ProcessSpec, Secret};
use crate::launch::Launch;
use crate::proof::Reuse;
use crate::tls::TrustedRoots;

const SECOND: Duration = Duration::from_secs(1);

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "external",
    purpose: Some("an existing server"),
    kind: EngineKind::External,
    defaults: LaneDefaults { is_managed: false, stall: Duration::ZERO, ..LaneDefaults::MANAGED },
    read,
};

fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let server = Server::read(section, lane.folder);
    let probe_interval = section.duration("probe-interval", 5 * SECOND);
    let reuse = section.bool("reuse-connections", false);
    let probe_path = section.string("probe-path");
    if probe_path.is_some_and(|path| !is_probe_path(path)) {
        let message = "expected a path below `url` with a leading `/`, for example \"/models\"";
        section.error_at("probe-path", Code::InvalidValue.with(message));
    }
    let mut spec = ExternalSpec::new(server?, probe_interval).with_reused_connections(reuse);
    if let Some(path) = probe_path {
        spec = spec.with_probe_path(path);
    }
    Some(EngineConfig::new(spec))
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
    server: Server,
    /// The readiness paths; empty for an engine that is not probed.
    probe_paths: Vec<String>,
    /// The engine may lack them.
    probe_is_optional: bool,
    probe_interval: Duration,
    /// Connections are used for several requests.
    reuse_connections: bool,
}

/// Minimum interval between readiness probes of an external engine; a shorter one would only load
/// the engine with probes.
const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(100);

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
        Ok(Self::new(Server::try_new(url, key)?, probe_interval))
    }

    fn new(server: Server, probe_interval: Duration) -> Self {
        let models = format!("{API_PATH}/models");
        // Not every server has `/health`. An API with a path of its own is that of a service, which
        // has no `/health`, and some have no list of models either.
        let probe_paths = match server.has_own_path() {
            true => vec![models],
            false => vec!["/health".to_owned(), models],
        };
        Self {
            probe_is_optional: server.has_own_path(),
            server,
            probe_paths,
            probe_interval: probe_interval.max(MIN_PROBE_INTERVAL),
            reuse_connections: false,
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
        self.server.ca = Some(pem);
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
        self.server.target()
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
        self.server.trusted_roots()
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
        let spec = |url| spec(url).map(|spec| spec.server.authority);
        for url in ["", "127.0.0.1:8080", "/v1", "not a url"] {
            assert_eq!(spec(url), Err(UrlError::Malformed(url.to_owned())), "{url}");
        }
        assert_eq!(spec("ftp://h"), Err(UrlError::Scheme("ftp://h".to_owned())));
    }
}
