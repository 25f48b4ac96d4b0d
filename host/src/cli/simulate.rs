//! The `pointsman simulate` command line.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0, every seed of the scenario meets the objectives (with --compare and --sweep: every
seed of every chain or value); 1, an objective is not met; 78, the scenario or a policy cannot be
used.

Examples:
  pointsman simulate day.toml --html day.html
  pointsman simulate day.toml --compare policies/mine new/policy.wasm
  pointsman simulate day.toml --sweep policies.cortex.config.patience-ms=10000,30000,60000
  pointsman simulate day.toml --set fleet.set.switching.min-residency=2.0 --seeds 20")]
pub(crate) struct Simulate {
    /// Scenario (TOML): fleet, policies, traffic, failures and objectives.
    pub(crate) scenario: PathBuf,
    /// Policy chains to compare on the same traffic; the first one is the baseline, and a single
    /// one is compared with the scenario's own chain. Each is the
    /// folder or component of a policy that replaces the one of the same name in the scenario's
    /// chain, a host configuration whose chain is used, or `none`.
    #[arg(long, value_name = "CHAIN", num_args = 1.., conflicts_with = "sweep")]
    pub(crate) compare: Vec<String>,
    /// Run the scenario with each of these values of a key.
    #[arg(long, value_name = "KEY=VALUE,VALUE,…")]
    pub(crate) sweep: Option<String>,
    /// Set a key of the scenario; applied before --compare and --sweep.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Number of seeds to run (1..N), overriding the scenario.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) seeds: Option<u64>,
    /// Skip the scenario's variants.
    #[arg(long)]
    pub(crate) no_variants: bool,
    /// Write a self-contained HTML report with plots to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the report as JSON to this file; `-` writes it to standard output instead of the
    /// tables.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the plots as SVG files to this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the events of the first run to this file as JSON lines: decisions, granted slots,
    /// ended requests, engine states and switches.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Number of runs at a time [default: number of CPUs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Hide the progress bar.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
