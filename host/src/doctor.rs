//! `pointsman doctor`: checks whether a system can run engines, and says what to do.
//!
//! Each check reads files of the system below a root, and returns findings: a fact, a verdict, and
//! what to do.

mod access;
mod config;
mod engines;
mod expected;
mod finding;
mod gpu;
mod host;
mod memory;
mod peers;
mod shared_state;
mod system;
mod targets;
mod variables;
mod version;

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use pointsman_config::Config;

use self::expected::Expected;
use self::finding::Finding;
use self::system::System;
use crate::cli::doctor::Doctor;
use crate::output::print;

/// Checks the system, and the configuration if there is one, and prints the findings. The exit code
/// is 1 if there is a problem.
///
/// # Errors
/// If the findings cannot be printed.
pub(crate) fn doctor(options: &Doctor) -> Result<ExitCode> {
    let system = System::read(&options.root);
    let findings = examine(&system, options.config.as_deref())?;
    let text = match options.json {
        true => format!("{:#}\n", finding::to_json(&findings)),
        false => finding::to_text(&findings),
    };
    print(&text)?;
    let is_good = !finding::has_problem(&findings);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(system: &System, file: Option<&Path>) -> Result<Vec<Finding>> {
    let loaded = file.map(|file| (file, Config::load(file)));
    let config = match &loaded {
        Some((_, Ok(config))) => Some(config),
        Some((_, Err(_))) | None => None,
    };
    let expected = config.map(|config| Expected::new(config, &system.environment));
    let mut findings = of_system(system, &expected.unwrap_or_default(), SystemTime::now());
    match loaded {
        None => findings.push(engines::leftovers(system, None)),
        Some((file, Ok(config))) => findings.extend(of_config(system, file, &config)?),
        // One for each error.
        Some((_, Err(error))) => {
            findings.extend(error.to_string().lines().map(|line| config::invalid(line.to_owned())));
        }
    }
    Ok(findings)
}

/// Returns the findings about a system.
fn of_system(system: &System, expected: &Expected, now: SystemTime) -> Vec<Finding> {
    let mut findings = gpu::check(system, expected);
    findings.extend(access::check(system));
    findings.extend(variables::check(system, expected));
    findings.extend(memory::check(system, expected));
    findings.extend(host::check(system, expected, now));
    findings
}

/// Returns the findings about a configuration on a system.
fn of_config(system: &System, file: &Path, config: &Config) -> Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let status = runtime.block_on(engines::running(config));
    let mut findings = config::validity(system, file, config);
    findings.push(config::ports(system, config, status.is_some()));
    findings.extend(config::folders(system, config));
    findings.extend(config::models(system, config));
    findings.extend(runtime.block_on(engines::programs(system, config)));
    findings.extend(runtime.block_on(peers::check(config)));
    findings.extend(runtime.block_on(shared_state::check(config.shared_state.as_ref())));
    findings.extend(engines::lanes(status.as_ref()));
    findings.push(engines::leftovers(system, status.as_ref()));
    Ok(findings)
}

#[cfg(test)]
mod tests;
