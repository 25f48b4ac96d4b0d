//! Registries, and policies that come from them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::fnv1a_chain;

use crate::oci_reference::{OciReference, OciVersion};

/// A user name and a password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// The name of the user.
    pub username: String,
    /// The password or access token.
    pub password: String,
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredentials").finish_non_exhaustive()
    }
}

/// How a registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// The host, with its port, as in references.
    pub host: String,
    /// Hosts that have the same repositories, and are asked first, in this order.
    pub mirrors: Vec<String>,
    /// PEM of root certificates to trust in addition to the system's.
    pub ca: Option<Vec<u8>>,
    /// Whether the registry is reached without TLS. Registries on this machine always may be.
    pub plain_http: bool,
    /// The host that issues tokens for the registry, if it is another one: only these two get the
    /// credentials.
    pub token_host: Option<String>,
    /// The credentials; `None` for those of Docker's configuration, if there are any.
    pub credentials: Option<RegistryCredentials>,
}

/// Why the version of a source is not in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProblem {
    /// A stable, machine-readable code.
    pub code: &'static str,
    /// What failed, and why.
    pub message: String,
}

/// Where a policy comes from, if its folder is filled by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    /// The artifact.
    pub reference: OciReference,
    /// How often the tag is resolved; `None` for a digest, which never changes.
    pub follow: Option<Duration>,
    /// Why the version is not in the cache, if that is known.
    pub problem: Option<SourceProblem>,
}

impl PolicySource {
    /// Returns the folder of the policy in the cache: for a digest the folder of the artifact, for
    /// a tag a link to one.
    pub fn folder(&self, cache: &Path) -> PathBuf {
        match self.reference.version() {
            OciVersion::Digest(digest) => cache.join("artifacts").join(digest.hex()),
            OciVersion::Tag(_) => {
                let text = self.reference.to_string();
                let hash = fnv1a_chain([text.as_bytes()], text.len(), 1);
                let hash = hash.first().copied().unwrap_or_default();
                cache.join("tags").join(format!("{hash:016x}"))
            }
        }
    }
}
