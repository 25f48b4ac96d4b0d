//! Arguments of `pointsman explain` and `pointsman decide`.

use std::path::PathBuf;

use clap::Args;

use super::policy::{HostAddress, HostOptions};

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  pointsman explain 0198f2a1 --config pointsman.toml
  pointsman explain 0198f2a1 --records /var/lib/pointsman/records --json")]
pub(crate) struct Explain {
    /// Id of the request: `X-Request-Id` of its response.
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Environment variable with the token for `--url`.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) token_env: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the request is looked for.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// Ask the host that runs with this configuration: its recent decisions, then its records.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Ask the host at this socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Ask the host at this URL, for example http://127.0.0.1:9101.
    #[arg(long, value_name = "URL", requires = "token_env")]
    pub(crate) url: Option<http::Uri>,
    /// Read files of decision records, or folders of them.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub(crate) records: Vec<PathBuf>,
}

impl Source {
    /// Returns the address of the running host; without meaning if records are read.
    pub(crate) fn address(&self) -> HostAddress {
        let Self { config, socket, url, records: _ } = self.clone();
        HostAddress { config, socket, url }
    }
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Nothing is sent, counted or learned: policies get copies of their states. A running host decides;
its lanes are as they are now.

Examples:
  pointsman decide request.json --config pointsman.toml --key-id alice
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
    #[command(flatten)]
    pub(crate) host: HostOptions,
}
