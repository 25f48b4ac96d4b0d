//! Arguments of `pointsman top`.

use clap::Args;

use crate::cli::policy::HostTarget;

/// What a running host does, in the terminal.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) target: HostTarget,
    /// Print one frame as text, and end.
    #[arg(long)]
    pub(crate) once: bool,
}
