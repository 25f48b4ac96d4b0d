//! Arguments of `pointsman key …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Add a key and print its secret, which cannot be shown again.
    New(NewKey),
    /// List the keys, without their secrets.
    List {
        #[command(flatten)]
        file: KeysFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a key: running hosts refuse it from then on.
    Revoke {
        /// Id of the key.
        id: String,
        #[command(flatten)]
        file: KeysFile,
    },
    /// Replace the secret of a key and print the new one.
    Rotate {
        /// Id of the key.
        id: String,
        /// How long the old secret stays valid, for example `24h`; `0s` refuses it now.
        #[arg(long, value_name = "DURATION")]
        grace: String,
        #[command(flatten)]
        file: KeysFile,
    },
}

/// The keys file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeysFile {
    /// Configuration file whose `access.keys` names the keys file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Keys file.
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NewKey {
    /// Tenant of the key.
    #[arg(long)]
    pub(crate) tenant: String,
    /// Group of the key, which the file defines.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Id of the key in the usage, the log and commands; random by default.
    #[arg(long, value_name = "ID")]
    pub(crate) name: Option<String>,
    /// When the key expires: a duration such as `30d`, a date, or a time in UTC.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,
    /// Model that the key may use, with `*` for any text; may be repeated.
    #[arg(long = "model", value_name = "NAME")]
    pub(crate) models: Vec<String>,
    /// Lane that the key may use, with `*` for any text; may be repeated.
    #[arg(long = "lane", value_name = "NAME")]
    pub(crate) lanes: Vec<String>,
    /// Endpoint that the key may use, for example `chat-completions`; may be repeated.
    #[arg(long = "endpoint", value_name = "NAME")]
    pub(crate) endpoints: Vec<String>,
    /// Address on which the key may be used; may be repeated.
    #[arg(long = "listener", value_name = "ADDRESS")]
    pub(crate) listeners: Vec<String>,
    /// Allow paths of engines that show or change what clients share.
    #[arg(long)]
    pub(crate) engine_admin: bool,
    /// Maximum number of requests in any 60 seconds.
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_minute: Option<u32>,
    /// Maximum number of tokens in any 60 seconds.
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_minute: Option<u64>,
    /// Maximum number of requests in flight.
    #[arg(long, value_name = "N")]
    pub(crate) concurrent: Option<u32>,
    /// Maximum number of requests that wait in queues.
    #[arg(long, value_name = "N")]
    pub(crate) queued: Option<u32>,
    #[command(flatten)]
    pub(crate) file: KeysFile,
}
