//! Where an engine is that the host does not run.

use crate::engine_spec::Secret;

/// Where an engine is that the host does not run, and what requests to it have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAddress {
    /// Host and port.
    pub authority: String,
    /// Connections have TLS.
    pub https: bool,
    /// Prefix of every path outside the API.
    pub base_path: String,
    /// The path of the API, which takes the place of `/v1`.
    pub api_path: String,
    /// The key that requests carry.
    pub key: Option<Secret>,
    /// Requests carry their priority.
    pub priorities: bool,
}
