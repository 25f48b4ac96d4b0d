//! Arguments of `pointsman state …`.

use clap::{Args, Subcommand};

use crate::cli::policy::HostOptions;

#[derive(Debug, Subcommand)]
pub(crate) enum State {
    /// List the states of all policies, or the entries of one.
    List {
        /// Name of the policy.
        #[arg(long, value_name = "NAME")]
        policy: Option<String>,
        #[command(flatten)]
        host: HostOptions,
    },
    /// Print an entry with its value.
    Get {
        #[command(flatten)]
        entry: Entry,
        #[command(flatten)]
        host: HostOptions,
    },
    /// Remove an entry, or all entries of a policy.
    Clear {
        /// Name of the policy.
        #[arg(long, value_name = "NAME")]
        policy: String,
        /// Key of the entry; without it, all are removed.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        #[command(flatten)]
        host: HostOptions,
    },
}

/// Names an entry.
#[derive(Debug, Args)]
pub(crate) struct Entry {
    /// Name of the policy.
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: String,
    /// Key of the entry.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: String,
}
