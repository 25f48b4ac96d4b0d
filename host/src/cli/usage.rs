//! Arguments of `pointsman usage`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::policy::HostTarget;

/// Selects usage, and how it is printed.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Times are in UTC and are rounded to hours. Hours that are older than 35 days are added up to days.
With --config, the store is read if the host is not running, but not for --all-hosts.")]
pub(crate) struct Usage {
    #[command(flatten)]
    pub(crate) target: HostTarget,
    /// First day, or hour: 2026-11-01 or 2026-11-01T10:00:00Z. Default: the beginning of the month.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// End, which is not included. Default: now.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Columns to add up by: tenant, key, model, lane, one of hour, day or month, and host with
    /// --all-hosts.
    #[arg(long, value_name = "COLUMN,…", default_value = "tenant")]
    pub(crate) by: String,
    /// Only this tenant.
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Option<String>,
    /// Report the usage of all hosts that share a store (`[shared-state]`).
    #[arg(long, conflicts_with = "with")]
    pub(crate) all_hosts: bool,
    /// Add the report of another host, as `pointsman usage --format json` prints it there for the
    /// same time and columns. Can be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) with: Vec<PathBuf>,
    /// Output format.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// How usage is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// Comma-separated values (RFC 4180).
    Csv,
    /// One JSON object.
    Json,
}
