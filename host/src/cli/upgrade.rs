//! Arguments of `pointsman upgrade`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::policy::HostOptions;

/// Selects a running host, and its successor.
#[derive(Debug, Clone, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) host: HostOptions,
    /// New program, instead of the file that the host was started from.
    #[arg(long, value_name = "PATH")]
    pub(crate) program: Option<PathBuf>,
    /// Maximum number of seconds until the new process has read the configuration and loaded the
    /// policies.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: Option<u64>,
}
