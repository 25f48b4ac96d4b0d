//! Arguments of `pointsman top`.

use clap::Args;

use crate::cli::policy::HostAddress;

/// What a running host does, in the terminal.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) address: HostAddress,
    /// Environment variable with the token for `--url`.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) token_env: Option<String>,
    /// Print one frame as text, and end.
    #[arg(long)]
    pub(crate) once: bool,
}
