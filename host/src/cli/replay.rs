//! The `pointsman replay` command line.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0, all decisions agree with the records; 1, some differ or cannot be replayed; 78, the
records or policies cannot be used; 130, interrupted.

Examples:
  pointsman replay records --config pointsman.toml
  pointsman replay records --config pointsman.toml --policy new/policies/cortex
  pointsman replay records/decisions.3.jsonl --policy policies/cortex --max-differences 50
  pointsman replay records --config candidate.toml --json -")]
pub(crate) struct Replay {
    /// Files of decision records, or folders of them.
    #[arg(required = true)]
    pub(crate) records: Vec<PathBuf>,
    /// Policies to replay: folders or components, which replace the policies of the same names.
    /// Without --config, weights and configurations are taken from the records, and all other
    /// policies keep their recorded advice.
    #[arg(long, value_name = "DIR|WASM", num_args = 1..)]
    pub(crate) policy: Vec<String>,
    /// Host configuration whose policy chain is replayed, without its secrets: with the versions
    /// that the host has in service, if its state directory can be read, and with the settings of
    /// the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Maximum number of differing decisions to show.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) max_differences: usize,
    /// Write the report as JSON to this file; `-` writes it to standard output instead of the text.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Maximum number of decisions to replay.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Hide the progress bar.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
