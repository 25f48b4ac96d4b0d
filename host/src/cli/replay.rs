//! The command for decisions that were recorded.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0, everything is as in the records; 1, something is otherwise, or cannot be known; 78, records or policies cannot be
used; 130, interrupted.

Examples:
  pointsman replay records --config pointsman.toml
  pointsman replay records --config pointsman.toml --policy new/policies/cortex
  pointsman replay records/decisions.3.jsonl --policy policies/cortex --differences 50
  pointsman replay records --config candidate.toml --json -")]
pub(crate) struct Replay {
    /// Files of decision records, or folders of them.
    #[arg(required = true)]
    pub(crate) records: Vec<PathBuf>,
    /// Ask these, each a policy's folder or its component, in the place of the policies of their names. Without --config, their
    /// weights and configurations are those of the records, and all others say what they said then.
    #[arg(long, value_name = "DIR|WASM", num_args = 1..)]
    pub(crate) policy: Vec<String>,
    /// Ask the chain of this configuration of a host.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Show so many decisions with something that is otherwise.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) differences: usize,
    /// Write all figures here as JSON; `-` is standard output, in the place of the text.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Stop after so many decisions.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit: Option<u64>,
    /// Show no progress.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
