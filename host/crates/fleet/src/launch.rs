//! How the process of an engine is started.

use std::path::PathBuf;

/// The address that engines started by the host listen on; they serve the host alone.
pub(crate) const HOST: &str = "127.0.0.1";

/// A program to start, with its arguments and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Program and arguments, with all placeholders replaced.
    pub(crate) command: Vec<String>,
    /// Variables to add to the host's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Variables to remove from the host's environment.
    pub(crate) remove_env: Vec<String>,
    /// Working directory; the host's if `None`.
    pub(crate) directory: Option<PathBuf>,
}
