//! A server that the host does not run: how the drivers `external` and `pointsman` reach it.

use std::path::Path;
use std::sync::Arc;

use http::Uri;
use pointsman_files::read_regular;
use pointsman_settings::{Code, Section, secret};

use crate::driver::{API_PATH, Target};
use crate::engine_spec::Secret;
use crate::tls::TrustedRoots;

/// Maximum size of a file with certificates in bytes; those of Debian have 220 kB.
const MAX_CERTIFICATES_BYTES: u64 = 8 << 20;

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

/// How a server is reached that the host does not run: its URL, its key and the certificates to
/// trust.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Server {
    https: bool,
    /// Host and port.
    pub(super) authority: String,
    /// Prefix of paths outside the API.
    base_path: String,
    /// The path of the API.
    api_path: String,
    pub(super) key: Option<Secret>,
    /// PEM of certificates to trust in addition to the system's.
    pub(super) ca: Option<Vec<u8>>,
}

impl Server {
    /// Creates the server at `url`. The path of the URL is that of the API; without a path, it is
    /// `/v1`.
    ///
    /// # Errors
    /// Returns an error if the URL cannot be used.
    pub(super) fn try_new(url: &str, key: Option<Secret>) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(|_| UrlError::Malformed(url.to_owned()))?;
        let (scheme, authority) = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(authority)) => (scheme, authority.to_string()),
            (Some(_), Some(_)) => return Err(UrlError::Scheme(url.to_owned())),
            _ => return Err(UrlError::Malformed(url.to_owned())),
        };
        let path = uri.path().trim_end_matches('/');
        let api_path = if path.is_empty() { API_PATH } else { path }.to_owned();
        let base_path = api_path.strip_suffix(API_PATH).unwrap_or(&api_path).to_owned();
        Ok(Self { https: scheme == "https", authority, base_path, api_path, key, ca: None })
    }

    /// Reads the keys that say how a server is reached. Relative paths are those of `folder`.
    /// Returns `None` only if an error was reported.
    pub(super) fn read(section: &Section<'_>, folder: &Path) -> Option<Self> {
        let url = section.required_string("url", "\"http://127.0.0.1:8080\"");
        let key = secret(section, "key-env", "key-file", folder).map(Secret::new);
        let ca = section.string("ca-file").and_then(|file| {
            let read = read_regular(&folder.join(file), MAX_CERTIFICATES_BYTES);
            read.inspect_err(|error| {
                section.error_at("ca-file", Code::Unavailable.with(error.to_string()));
            })
            .ok()
        });
        let server = Self::try_new(url?, key).inspect_err(|error| {
            section.error_at("url", error.to_string());
        });
        server.ok().map(|server| Self { ca, ..server })
    }

    /// Returns true if the API has a path of its own, which does not end with `/v1`.
    pub(super) fn has_own_path(&self) -> bool {
        !self.api_path.ends_with(API_PATH)
    }

    /// Returns the URL below which the paths outside the API are.
    pub(super) fn base_url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.base_path)
    }

    /// Returns where requests are sent.
    pub(super) fn target(&self) -> Target {
        let Self { https, authority, base_path, api_path, key, ca: _ } = self.clone();
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

    /// Returns the certificates to trust; `None` without TLS.
    pub(super) fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        self.https.then_some(TrustedRoots { additional: self.ca.as_deref() })
    }
}
