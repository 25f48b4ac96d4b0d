//! Errors that keep a policy version from being loaded.
//!
//! The message of an error includes that of its cause, because the status and the log show one
//! text. So the cause is a field and not the `source` as well, which would print it twice in a
//! chain.

use pointsman_files::ReadError;
use pointsman_spec::{OciReference, PolicySpec, SourceProblem};

use crate::contract::track::Track;
use crate::contract::types::PolicyError;
use crate::version::call_error::CallError;
use crate::version::case_error::CaseError;
use crate::version::manifest::{ManifestError, read_error_code};
use crate::version::signature::SignatureError;
use crate::wasm::error::ComponentError;

/// An error that keeps a policy version from being loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The manifest is unreadable or invalid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file of the policy is missing, too large, not a regular file, or cannot be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// The operator requires a signature, and the policy has none.
    #[error("{file}: signature missing; sign the policy with `pointsman policy sign`")]
    SignatureMissing {
        /// The file in which the signature is expected.
        file: String,
    },
    /// The signature is malformed, or was not made by a trusted signer.
    #[error("{file}: {error}")]
    Signature {
        /// The file of the signature.
        file: String,
        /// The verification error.
        error: SignatureError,
    },
    /// The operator only allows later versions.
    #[error("version {version} is older than `min-version` ({min})")]
    VersionTooOld {
        /// The version in the manifest.
        version: String,
        /// The earliest version that is allowed.
        min: String,
    },
    /// The manifest names a policy API that this host does not serve.
    #[error("{file}: unsupported policy API \"{api}\": expected {}", Track::NAMES)]
    UnsupportedApi {
        /// The component.
        file: String,
        /// The API that the manifest names.
        api: String,
    },
    /// The component is invalid, unsupported, above a limit, or cannot be compiled.
    #[error("{file}: {error}")]
    Component {
        /// The component.
        file: String,
        /// The error.
        error: ComponentError,
    },
    /// The component imports an interface that its manifest does not list.
    #[error(
        "{file}: imports interface `{interface}`, which the manifest does not allow; add it to \
         `allow.interfaces`"
    )]
    InterfaceNotAllowed {
        /// The component.
        file: String,
        /// The interface, without package and version.
        interface: String,
    },
    /// The component is not the one that its manifest describes.
    #[error(
        "{file}: SHA-256 mismatch: expected {expected} (manifest), found {found}; rebuild with \
         `cargo xtask guests`, or correct `build.component-sha256`"
    )]
    DigestMismatch {
        /// The component.
        file: String,
        /// The digest in the manifest, in hexadecimal.
        expected: String,
        /// The digest of the file, in hexadecimal.
        found: String,
    },
    /// The policy did not return its description.
    #[error("failed to describe the policy: {0}")]
    Describe(CallError),
    /// An instance could not be created, or `configure` returned an error.
    #[error("failed to configure the policy: {0}")]
    Configure(CallError),
    /// Manifest, component and configuration disagree on name or version.
    #[error("policy identity mismatch: expected {expected}, found {found} (component)")]
    DescriptionMismatch {
        /// Name and version that the manifest and the configuration give.
        expected: String,
        /// Name and version that the component returns.
        found: String,
    },
    /// A golden case is invalid or fails.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// The sample request or the lanes of a benchmark are invalid.
    #[error("invalid benchmark sample: {0}")]
    Sample(serde_json::Error),
    /// The version of a registry is not in the cache of the host.
    #[error(
        "{reference} is not in the cache of this host: {}; start the host once while the registry \
         can be reached, or add a mirror of it",
        .problem.message
    )]
    Source {
        /// What the chain names.
        reference: Box<OciReference>,
        /// Why it was not pulled.
        problem: SourceProblem,
    },
    /// This version was rejected before, and has not changed since.
    #[error("version {version} was rejected: {reason}; change the policy, or promote this version")]
    Rejected {
        /// The beginning of the fingerprint.
        version: String,
        /// The reason of the rejection.
        reason: String,
    },
}

/// A configuration that the policy rejected in `configure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidConfig<'a> {
    /// The key of the configuration, with dots between levels, if the policy names one: its message
    /// then begins with the key and a colon.
    pub key: Option<&'a str>,
    /// The message of the policy.
    pub message: &'a str,
}

impl LoadError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Manifest(error) => error.code(),
            Self::File(error) => read_error_code(error),
            Self::SignatureMissing { .. } => "signature_missing",
            Self::Signature { error, .. } => error.code(),
            Self::VersionTooOld { .. } => "version_too_old",
            Self::UnsupportedApi { .. } => "contract_mismatch",
            Self::Component { error, .. } => error.code(),
            Self::InterfaceNotAllowed { .. } => "import_forbidden",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::Describe(CallError::Fault(fault)) if fault.is_contract_mismatch() => {
                "contract_mismatch"
            }
            Self::Describe(_) => "describe_failed",
            Self::Configure(CallError::Policy(PolicyError::InvalidConfig(_))) => "config_invalid",
            Self::Configure(_) => "configure_failed",
            Self::DescriptionMismatch { .. } => "description_mismatch",
            Self::Case(error) => error.code(),
            Self::Sample(_) => "sample_invalid",
            Self::Source { problem, .. } => problem.code,
            Self::Rejected { .. } => "version_rejected",
        }
    }

    /// Returns the error of a policy whose folder cannot be read: if the host fills the folder and
    /// has not done so, that is the cause.
    pub(crate) fn in_folder(self, policy: &PolicySpec) -> Self {
        let Some(source) = policy.source.as_ref().filter(|_| !policy.dir.exists()) else {
            return self;
        };
        let not_pulled = || SourceProblem {
            code: self.code(),
            message: "the host has not pulled it yet".to_owned(),
        };
        let problem = source.problem.clone().unwrap_or_else(not_pulled);
        Self::Source { reference: Box::new(source.reference.clone()), problem }
    }

    /// Returns the configuration error if the policy rejected its configuration, so that a caller
    /// that knows where the configuration was written can point there.
    pub fn invalid_config(&self) -> Option<InvalidConfig<'_>> {
        let Self::Configure(CallError::Policy(PolicyError::InvalidConfig(message))) = self else {
            return None;
        };
        let is_key = |key: &&str| {
            !key.is_empty()
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let split = message.split_once(": ").filter(|(key, _)| is_key(key));
        Some(match split {
            Some((key, message)) => InvalidConfig { key: Some(key), message },
            None => InvalidConfig { key: None, message },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(message: &str) -> LoadError {
        LoadError::Configure(PolicyError::InvalidConfig(message.to_owned()).into())
    }

    #[test]
    fn invalid_config_returns_the_key_that_the_policy_names() {
        for (text, key, message) in [
            ("limits.per-hour: must be positive", Some("limits.per-hour"), "must be positive"),
            ("there are no keys: add one", None, "there are no keys: add one"),
            ("unknown field `x`", None, "unknown field `x`"),
            (": empty", None, ": empty"),
        ] {
            let error = rejected(text);
            assert_eq!(error.invalid_config(), Some(InvalidConfig { key, message }), "{text}");
            assert_eq!(error.code(), "config_invalid");
        }
        let other = LoadError::Configure(CallError::BreakerOpen);
        assert_eq!((other.invalid_config(), other.code()), (None, "configure_failed"));
    }
}
