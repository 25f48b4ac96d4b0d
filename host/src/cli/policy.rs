//! `pointsman policy …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// List the policies of the running host.
    List(Asked),
    /// Show all there is to know of one.
    Show(OfOne),
    /// Go back to an earlier version.
    Rollback {
        #[command(flatten)]
        of: OfOne,
        /// To this one, instead of the one before.
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
    },
    /// Let the version that is on trial decide from now on.
    Promote {
        #[command(flatten)]
        of: OfOne,
        /// Which version it has to be.
        version: Option<String>,
    },
    /// Leave a policy out until it is enabled again.
    Disable(OfOne),
    /// Ask a policy again that was disabled.
    Enable(OfOne),
    /// Have the host look for changed files now.
    Reload(Asked),
}

/// A policy of a host.
#[derive(Debug, Clone, Args)]
pub(crate) struct OfOne {
    /// Its name.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

/// Which host is asked, and how its answer is shown.
#[derive(Debug, Clone, Args)]
pub(crate) struct Asked {
    #[command(flatten)]
    pub(crate) at: At,
    /// The environment variable that holds the token for `--url`.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) token_env: Option<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the host is.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct At {
    /// The host that serves this configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The host at this socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The host at this address, such as http://127.0.0.1:9101.
    #[arg(long, value_name = "URL", requires = "token_env")]
    pub(crate) url: Option<http::Uri>,
}
