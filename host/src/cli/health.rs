//! Arguments of `pointsman health`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub(crate) struct Health {
    /// What to ask: an http URL, or the Unix socket of a listener as `unix:PATH`. Without a path,
    /// the URL is that of `/health`.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000/health")]
    pub(crate) url: String,
    /// Ask the first listener of this configuration, which must not have TLS.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub(crate) config: Option<PathBuf>,
    /// Maximum number of seconds until the response has arrived.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}
