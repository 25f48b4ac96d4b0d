//! Arguments of `pointsman lane …`.

use clap::{Args, Subcommand};

use crate::cli::policy::HostOptions;

#[derive(Debug, Subcommand)]
pub(crate) enum Lane {
    /// List the lanes of a running host.
    List(HostOptions),
    /// Load a lane, and wait until it serves; ends a hold and a drain.
    Load {
        #[command(flatten)]
        target: LaneTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let the requests of a lane finish, and stop its engine.
    Unload {
        #[command(flatten)]
        target: LaneTarget,
        /// Keep the lane unloaded until it is loaded by hand; without it, the next request loads
        /// it again.
        #[arg(long)]
        hold: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Send a lane no more requests; its engine stays loaded.
    Drain {
        #[command(flatten)]
        target: LaneTarget,
        /// End the drain.
        #[arg(long)]
        undo: bool,
    },
    /// Let the requests of a lane finish, and replace its engine.
    Restart {
        #[command(flatten)]
        target: LaneTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Print the last lines of a lane's engine.
    Logs {
        #[command(flatten)]
        target: LaneTarget,
        /// Number of lines.
        #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
        lines: usize,
        /// Print new lines as the engine writes them.
        #[arg(long, short)]
        follow: bool,
    },
}

/// Names a lane of a running host.
#[derive(Debug, Args)]
pub(crate) struct LaneTarget {
    /// Name of the lane.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) host: HostOptions,
}

/// Selects when a command ends.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Return as soon as the command has begun.
    #[arg(long)]
    pub(crate) no_wait: bool,
}
