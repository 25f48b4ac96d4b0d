//! The commands for policies on traffic that nobody waits for.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0, the objectives are met in every seed, by the scenario as it stands (with --compare by all chains, with --sweep by all
values); 1, they are not; 78, the scenario or a policy cannot be used.

Examples:
  pointsman simulate day.toml --html day.html
  pointsman simulate day.toml --compare policies/mine new/policy.wasm
  pointsman simulate day.toml --sweep policies.cortex.config.patience-ms=10000,30000,60000
  pointsman simulate day.toml --set fleet.set.switching.min_residency=2.0 --seeds 20")]
pub(crate) struct Simulate {
    /// The scenario (TOML): fleet, policies, traffic, failures, objectives.
    pub(crate) scenario: PathBuf,
    /// Run the same traffic through these chains, and compare them with the first: each is a policy's folder or component, which
    /// takes the place of the policy of its name in the scenario's chain; a host's configuration, for its chain; or `none`.
    #[arg(long, value_name = "CHAIN", num_args = 1.., conflicts_with = "sweep")]
    pub(crate) compare: Vec<String>,
    /// Run the scenario with each of these values of one of its keys.
    #[arg(long, value_name = "KEY=VALUE,VALUE,…")]
    pub(crate) sweep: Option<String>,
    /// Change a key of the scenario, before all else.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Run with so many seeds, from 1, instead of the scenario's.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) seeds: Option<u64>,
    /// Leave the scenario's variants out.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Write a report with plots here: one file, which needs no other.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write all figures here as JSON; `-` is standard output, in the place of the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the plots into this folder as SVG files.
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Write what happens in the first run here, one line of JSON each: decisions, slots, ends, engines and switches.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Runs at the same time; all processors where not given.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Show no progress.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
