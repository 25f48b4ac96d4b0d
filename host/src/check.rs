//! `pointsman check`: reports every error that `serve` would find before it listens.

mod report;

use std::fmt;

use anyhow::Result;
use pointsman_fleet::Machine;
use pointsman_policy::{
    Allocator, ChainSpec, Change, Compiler, Policies, PolicyMetrics, Runtime, RuntimeSettings,
};
use prometheus_client::registry::Registry;

use crate::cli::Check;
use crate::config::Config;
use crate::facts;

/// The errors of policies that cannot be loaded.
#[derive(Debug)]
pub(crate) struct InvalidPolicies(Vec<String>);

impl fmt::Display for InvalidPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for InvalidPolicies {}

/// Checks a configuration and prints a summary of it.
pub(crate) fn check(check: &Check) -> Result<()> {
    let config = Config::load(&check.config)?;
    let settings = RuntimeSettings {
        cache_dir: config.policies.cache.clone(),
        compiler: Compiler::this_program(),
        allocator: Allocator::OnDemand,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let metrics = PolicyMetrics::register(&mut Registry::default());
    let chain = Policies::new(&Runtime::new(settings)?, &metrics, Box::new(facts::from_case))?;
    // Without the store: `check` validates what is in the folders, not what a running host has
    // active.
    let spec = ChainSpec { store: None, ..config.policies.chain.clone() };
    let failed = |(name, change)| match change {
        Change::Failed(error) => Some(format!("policy `{name}`: {error}")),
        _ => None,
    };
    let failures: Vec<String> = chain.apply(spec).into_iter().filter_map(failed).collect();
    if !failures.is_empty() {
        return Err(InvalidPolicies(failures).into());
    }
    let policies: Vec<String> = chain
        .status()
        .into_iter()
        .map(|policy| format!("{}@{}", policy.name, policy.version))
        .collect();
    let lines = report::lines(&config, &Machine::new(config.fleet.machine.clone()), &environment());
    #[expect(clippy::print_stdout, reason = "the output of the command")]
    {
        println!("{}: OK", check.config.display());
        println!(
            "  policies: {}",
            if policies.is_empty() {
                "none (built-in routing)".to_owned()
            } else {
                policies.join(", ")
            }
        );
        lines.iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}

/// Returns the environment that engines inherit, without values that are not UTF-8.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        name.into_string().ok().zip(value.into_string().ok())
    };
    std::env::vars_os().filter_map(text).collect()
}
