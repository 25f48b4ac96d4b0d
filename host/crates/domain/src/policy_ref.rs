//! Which policy, and which version of it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name and version of a policy, as shown in responses and records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyRef {
    /// Name from its manifest.
    pub name: Arc<str>,
    /// Version from its manifest.
    pub version: Arc<str>,
}

impl PolicyRef {
    /// Creates a reference to a policy.
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.into(), version: version.into() }
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}
