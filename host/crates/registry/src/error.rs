//! Errors of registries and artifacts.

use std::time::Duration;

use http::StatusCode;
use pointsman_spec::OciDigest;

use crate::layout::LayoutError;

/// An artifact that could not be pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry cannot be reached, or broke off.
    #[error("registry {host} cannot be reached: {cause}")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// What happened.
        cause: String,
    },
    /// The registry did not respond completely in time.
    #[error("registry {host} did not respond completely within {} s", .timeout.as_secs_f32())]
    Timeout {
        /// The host that was asked.
        host: String,
        /// The time that it had.
        timeout: Duration,
    },
    /// The registry has no such repository, tag or digest, or hides it.
    #[error("registry {host} has no {what}")]
    Missing {
        /// The host that was asked.
        host: String,
        /// What it was asked for.
        what: String,
    },
    /// The registry does not accept the credentials, or wants some.
    #[error(
        "registry {host} denies access: {status}; set `username-env` and `password-env` in its \
         [[registries]], or run `docker login {host}`"
    )]
    Denied {
        /// The host that was asked.
        host: String,
        /// The status of its response.
        status: StatusCode,
    },
    /// The registry returned another status than expected.
    #[error("registry {host} returned {status} to a request for {what}")]
    Status {
        /// The host that was asked.
        host: String,
        /// What it was asked for.
        what: String,
        /// The status of its response.
        status: StatusCode,
    },
    /// A header or a body of the registry cannot be understood.
    #[error("invalid response of registry {host}: {cause}")]
    Response {
        /// The host that was asked.
        host: String,
        /// What is wrong.
        cause: String,
    },
    /// The registry leads to where requests must not go.
    #[error("registry {host} redirects to {target}, which is not allowed")]
    Redirect {
        /// The host that was asked.
        host: String,
        /// Where it leads.
        target: String,
    },
    /// The registry wants the credentials to be sent to another host.
    #[error(
        "registry {host} wants its credentials to be sent to {target}; if that is right, set \
         `token-host = \"{target}\"` in its [[registries]]"
    )]
    TokenHost {
        /// The registry.
        host: String,
        /// The host that would get the credentials.
        target: String,
    },
    /// A response, or what it announces, exceeds a limit.
    #[error("{what} exceeds {max} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The maximum size.
        max: usize,
    },
    /// The bytes are not those of the digest.
    #[error("{what}: SHA-256 mismatch: expected {expected}, found {found}")]
    Digest {
        /// What has another digest.
        what: &'static str,
        /// The digest that was asked for.
        expected: OciDigest,
        /// The digest of what was sent.
        found: OciDigest,
    },
    /// The artifact is not a policy.
    #[error("not the artifact of a policy: {0}")]
    Layout(#[from] LayoutError),
    /// The credentials of Docker cannot be read.
    #[error("{0}")]
    Credentials(String),
}

impl RegistryError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "registry_unreachable",
            Self::Timeout { .. } => "registry_timeout",
            Self::Missing { .. } => "artifact_missing",
            Self::Denied { .. } => "registry_denied",
            Self::Status { .. } | Self::Response { .. } => "registry_response_invalid",
            Self::Redirect { .. } => "registry_redirect_forbidden",
            Self::TokenHost { .. } => "registry_token_host_forbidden",
            Self::TooLarge { .. } => "artifact_too_large",
            Self::Digest { .. } => "digest_mismatch",
            Self::Layout(_) => "artifact_invalid",
            Self::Credentials(_) => "registry_credentials_invalid",
        }
    }

    /// Returns true if the same artifact cannot succeed later: its bytes have been verified and are
    /// not a policy.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Layout(_))
    }
}
