//! Arguments of `pointsman reload`.

use clap::Args;

use crate::cli::policy::HostOptions;

/// Selects a running host, and whether it reloads.
#[derive(Debug, Clone, Args)]
pub(crate) struct Reload {
    #[command(flatten)]
    pub(crate) host: HostOptions,
    /// Only show what would change.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
