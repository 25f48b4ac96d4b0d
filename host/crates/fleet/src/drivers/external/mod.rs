//! `driver = "external"`: an existing server with the OpenAI API, which the host does not start.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use pointsman_domain::EngineKind;
use pointsman_files::read_regular;
use pointsman_settings::{Code, Section, secret};

use crate::driver::{
    Description, Driver, DriverInfo, EngineConfig, EngineSpec, LaneBasics, LaneContext,
    LaneDefaults, Prepared, Target,
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
    let url = section.required_string("url", "\"http://127.0.0.1:8080\"");
    let key = secret(section, "key-env", "key-file", lane.folder).map(Secret::new);
    let probe_interval = section.duration("probe-interval", 5 * SECOND);
    let authorities = section.string("ca-file").and_then(|file| {
        let path = lane.folder.join(file);
        let read = read_regular(&path, MAX_CERTIFICATES_BYTES);
        read.inspect_err(|error| {
            section.error_at("ca-file", Code::Unavailable.with(error.to_string()));
        })
        .ok()
    });
    let reuse = section.bool("reuse-connections", false);
    let spec = ExternalSpec::try_new(url?, key, probe_interval);
    match spec.map(|spec| spec.with_reused_connections(reuse)) {
        Ok(spec) => Some(EngineConfig::new(match authorities {
            Some(pem) => spec.with_root_certificates(pem),
            None => spec,
        })),
        Err(error) => {
            section.error_at("url", error.to_string());
            None
        }
    }
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
                    reuse_connections: false,
                })
            }
            (Some(_), Some(_)) => Err(UrlError::Scheme(url.to_owned())),
            _ => Err(UrlError::Malformed(url.to_owned())),
        }
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

    fn run(&self) -> Option<&ProcessSpec> {
        None
    }

    fn prepare(&self, _lane: &str, _port: u16) -> Prepared {
        Prepared { launch: Launch::default(), warnings: Vec::new() }
    }

    fn target(&self, _port: u16) -> Target {
        let Self { https, authority, base_path, key, .. } = self.clone();
        Target {
            https,
            authority,
            base_path,
            key,
            priorities: false,
            external: true,
            activity: Arc::default(),
        }
    }

    fn reuse(&self) -> Reuse {
        if self.reuse_connections { Reuse::Always } else { Reuse::Never }
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        self.https.then_some(TrustedRoots { additional: self.authorities.as_deref() })
    }

    fn ready_paths(&self) -> Vec<&str> {
        // Not every server has `/health`.
        vec!["/health", "/v1/models"]
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
}
