//! Where the store is that several hosts share.

use std::fmt;

/// Where a shared store is. The URLs may contain passwords, and are not part of the debug output.
#[derive(Clone, PartialEq, Eq)]
pub enum SharedAddress {
    /// One server: `redis://`, `rediss://` for TLS, or `unix://`.
    Single(String),
    /// Servers of which a Sentinel names the master.
    Sentinel {
        /// URLs of the Sentinels.
        sentinels: Vec<String>,
        /// Name of the master.
        master: String,
        /// A URL of which the credentials, the database and the use of TLS count for the master.
        node: Option<String>,
    },
    /// Some nodes of a cluster.
    Cluster(Vec<String>),
}

impl fmt::Debug for SharedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Single(..)",
            Self::Sentinel { .. } => "Sentinel(..)",
            Self::Cluster(_) => "Cluster(..)",
        })
    }
}
