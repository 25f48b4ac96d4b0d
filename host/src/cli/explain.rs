//! Arguments of `pointsman explain` and `pointsman decide`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::policy::{HostOptions, HostTarget};

/// One of these is required.
const SOURCES: [&str; 4] = ["config", "socket", "url", "records"];

#[derive(Debug, Clone, Args)]
// `--records` takes the place of a host.
#[command(mut_group("HostAddress", |group| group.required(false)))]
#[command(group(ArgGroup::new("source").args(SOURCES).required(true)))]
#[command(after_help = "\
A host is asked for its recent decisions, then for its records. If no host runs with the
configuration, its records are searched.

Examples:
  pointsman explain 0198f2a1 --config pointsman.toml
  pointsman explain 0198f2a1 --records /var/lib/pointsman/records --json")]
pub(crate) struct Explain {
    /// Id of the request: `X-Request-Id` of its response.
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) target: HostTarget,
    /// Read files of decision records, or folders of them, instead of asking a host.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub(crate) records: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Nothing is sent, counted or learned: policies get copies of their states. A running host decides;
its lanes are as they are now. If no host runs with the configuration, the output says what one
would decide after its start, and what that assumes of the lanes.

Examples:
  pointsman decide request.json --config pointsman.toml --key-id alice
  pointsman decide request.json --config new.toml --offline
  pointsman decide - --endpoint /v1/embeddings --header 'x-team: search' --config pointsman.toml")]
pub(crate) struct Decide {
    /// File with the body of the request, as a client would send it; `-` reads standard input.
    pub(crate) body: PathBuf,
    /// Path or name of the endpoint.
    #[arg(long, value_name = "PATH|NAME", default_value = "/v1/chat/completions")]
    pub(crate) endpoint: String,
    /// A header of the request; may be repeated.
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<String>,
    /// Decide as for a request with the API key of this id. Without it, as for an operator: with
    /// all rights, and without limits.
    #[arg(long, value_name = "ID")]
    pub(crate) key_id: Option<String>,
    /// Ask no host, even if one runs with the configuration.
    #[arg(long, requires = "config")]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) host: HostOptions,
}
