//! References to policies in OCI registries.

use std::fmt;
use std::str::FromStr;

/// The scheme of references.
const SCHEME: &str = "oci://";
/// Maximum length of a host with its port, in bytes.
const MAX_HOST: usize = 255;
/// Maximum length of a repository in bytes.
const MAX_REPOSITORY: usize = 255;
/// Maximum length of a tag in bytes.
const MAX_TAG: usize = 128;
/// Digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// The SHA-256 of a blob or manifest in a registry: `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OciDigest(String);

impl OciDigest {
    /// Returns the hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or_default()
    }
}

impl FromStr for OciDigest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let digits = text.strip_prefix("sha256:").ok_or(ReferenceError::Digest)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() == DIGEST_DIGITS && digits.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Digest)
        }
    }
}

impl fmt::Display for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The version of a reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OciVersion {
    /// A name that the registry may move to another artifact.
    Tag(String),
    /// One artifact, which never changes.
    Digest(OciDigest),
}

/// A reference to an artifact: `oci://HOST[:PORT]/REPOSITORY`, and `:TAG`, `@sha256:DIGEST` or
/// both, of which the digest counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OciReference {
    host: String,
    repository: String,
    version: OciVersion,
}

/// What is wrong with the text of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It does not begin with the scheme.
    #[error("expected oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:DIGEST")]
    Scheme,
    /// The host is missing or has characters that are not allowed.
    #[error("invalid host: expected for example \"registry.example.org\" or \"127.0.0.1:5000\"")]
    Host,
    /// The repository is missing or has characters that are not allowed.
    #[error("invalid repository: expected lower-case names such as \"team/policy\"")]
    Repository,
    /// There is neither a tag nor a digest.
    #[error("missing version: add `:TAG` or `@sha256:DIGEST`")]
    Version,
    /// The tag is too long or has characters that are not allowed.
    #[error("invalid tag: expected at most 128 letters, digits, `.`, `_` and `-`")]
    Tag,
    /// The digest is not a SHA-256.
    #[error("invalid digest: expected `sha256:` and 64 hexadecimal digits in lower case")]
    Digest,
}

impl OciReference {
    /// Returns true for a text that is meant as a reference, valid or not.
    pub fn is_reference(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Returns the host, with its port if the text has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository, without the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, or the digest.
    pub fn version(&self) -> &OciVersion {
        &self.version
    }

    /// Returns the digest, unless the reference is a tag.
    pub fn digest(&self) -> Option<&OciDigest> {
        match &self.version {
            OciVersion::Tag(_) => None,
            OciVersion::Digest(digest) => Some(digest),
        }
    }

    /// Returns the reference to this artifact of the same repository.
    #[must_use]
    pub fn with_digest(&self, digest: OciDigest) -> Self {
        Self { version: OciVersion::Digest(digest), ..self.clone() }
    }
}

impl FromStr for OciReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let rest = text.strip_prefix(SCHEME).ok_or(ReferenceError::Scheme)?;
        let (host, path) = rest.split_once('/').ok_or(ReferenceError::Repository)?;
        if !is_registry_host(host) {
            return Err(ReferenceError::Host);
        }
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest.parse::<OciDigest>()?)),
            None => (path, None),
        };
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_repository(repository) {
            return Err(ReferenceError::Repository);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag);
        }
        let version = match (tag, digest) {
            (_, Some(digest)) => OciVersion::Digest(digest),
            (Some(tag), None) => OciVersion::Tag(tag.to_owned()),
            (None, None) => return Err(ReferenceError::Version),
        };
        Ok(Self { host: host.to_owned(), repository: repository.to_owned(), version })
    }
}

impl fmt::Display for OciReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, repository, version } = self;
        match version {
            OciVersion::Tag(tag) => write!(f, "{SCHEME}{host}/{repository}:{tag}"),
            OciVersion::Digest(digest) => write!(f, "{SCHEME}{host}/{repository}@{digest}"),
        }
    }
}

/// Returns true for the host of a registry: a name or an address in lower case, and a port.
pub fn is_registry_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<http::uri::Authority>() else { return false };
    let has_port = authority.host().len() < text.len();
    let is_plain =
        |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b".-:[]".contains(&byte);
    text.len() <= MAX_HOST
        && !authority.host().is_empty()
        && (!has_port || authority.port_u16().is_some())
        && text.bytes().all(is_plain)
}

/// Returns true for names of lower-case letters and digits that are separated by `/`, each with
/// single `.`, one or two `_`, or `-` inside.
fn is_repository(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_inner = |byte: u8| b"._-".contains(&byte);
        let bytes = name.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
        let is_known =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_inner(byte);
        bytes.iter().all(|byte| is_known(*byte))
            && !is_inner(*first)
            && !is_inner(*last)
            && !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"]
                .iter()
                .any(|pair| name.contains(pair))
    };
    text.len() <= MAX_REPOSITORY && text.split('/').all(is_name)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || b".-".contains(&byte))
}

#[cfg(test)]
mod tests;
