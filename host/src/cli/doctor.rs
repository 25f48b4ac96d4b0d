//! The command line of `pointsman doctor`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub(crate) struct Doctor {
    /// Configuration file (TOML): also check its budgets, ports, models, policies, programs of
    /// engines, other hosts, the shared store, and the lanes of the host that runs with it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Root of the files of the system; for tests.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) root: PathBuf,
}
