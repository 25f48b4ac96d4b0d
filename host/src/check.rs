//! `pointsman check`: reports every error that `serve` would find before it listens.

mod report;
mod reported;

use std::fmt;
use std::path::Path;

use anyhow::Result;
use pointsman_fleet::Machine;
use pointsman_policy::{ChainSpec, Change, InvalidConfig, LoadError, Policies};

use crate::cli::Check;
use crate::key_source::KeySource;
use crate::output::print;
use crate::{chains, guards, listeners, registry, reload_command, shared_state, tokens};
use pointsman_config::Config;

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
    let keys = KeySource::load(&check.config, &config)?;
    listeners::read_tls(&check.config, &config.server.listeners)?;
    let tokens = tokens::describe(config.tokens.as_ref(), config.fleet.state_dir.as_deref())?;
    let limits = keys.keys().minute_limits();
    let shared = shared_state::describe(config.shared_state.as_ref(), &limits)?;
    let chain = chains::to_check(config.policies.cache.clone())?;
    let hide = |text| config.variables.iter().fold(text, |text, found| found.hide_in(text));
    let failures: Vec<String> =
        load_policies(&check.config, &config, &chain).into_iter().map(hide).collect();
    if !failures.is_empty() {
        return Err(InvalidPolicies(failures).into());
    }
    let policies: Vec<String> = chain
        .status()
        .into_iter()
        .map(|policy| format!("{}@{}", policy.name, policy.version))
        .collect();
    let lines = report::lines(&config, &Machine::new(config.fleet.machine.clone()), &environment());
    let policies = match policies.is_empty() {
        true => "none (built-in routing)".to_owned(),
        false => policies.join(", "),
    };
    let on_failure = config.policies.chain.policies.iter().map(|policy| {
        let (on_error, on_open) = (policy.on_error, policy.on_open.unwrap_or(policy.on_error));
        let (on_error, on_open) = (on_error.name(), on_open.name());
        format!("policy {}: on-error = \"{on_error}\", on-open = \"{on_open}\"", policy.name)
    });
    let keys_line = keys.keys_file().map(|file| format!("keys: {}", file.display()));
    let guards = guards::warnings(&config).into_iter().chain(guards::unknown_names(&config, &keys));
    let guards = guards.map(|warning| format!("warning: {warning}"));
    let lines = on_failure.chain(keys_line).chain(tokens).chain(shared).chain(guards).chain(lines);
    let lines = lines.chain(report::variables(&config.variables));
    let lines: String = lines.map(|line| format!("  {}\n", hide(line))).collect();
    if !check.json {
        print(&format!("{}: OK\n  policies: {policies}\n{lines}", check.config.display()))?;
    }
    match &check.against {
        Some(running) => reload_command::against(check, running),
        None => Ok(()),
    }
}

/// Returns the errors of a configuration that has been read: those of its keys file, of its
/// certificates and of its policies.
///
/// # Errors
/// If the runtime of policies cannot be started.
pub(crate) fn errors(file: &Path, config: &Config) -> Result<Vec<String>> {
    let keys = KeySource::load(file, config).err().map(|error| error.to_string());
    let tls = listeners::read_tls(file, &config.server.listeners);
    let tls = tls.err().map(|error| error.to_string());
    let tokens = tokens::describe(config.tokens.as_ref(), config.fleet.state_dir.as_deref());
    let tokens = tokens.err().map(|error| format!("{error:#}"));
    let shared = shared_state::describe(config.shared_state.as_ref(), &[]);
    let shared = shared.err().map(|error| format!("{error:#}"));
    let mut errors: Vec<String> = [keys, tls, tokens, shared].into_iter().flatten().collect();
    let chain = chains::to_check(config.policies.cache.clone())?;
    errors.extend(load_policies(file, config, &chain));
    Ok(errors)
}

/// Returns the warnings about a configuration on this machine, each with its group or lane.
pub(crate) fn warnings(config: &Config, machine: &Machine) -> Vec<String> {
    let mut place = String::new();
    let mut warnings = guards::warnings(config);
    for line in report::lines(config, machine, &environment()) {
        match line.trim_start().strip_prefix("warning: ") {
            Some(warning) if line.starts_with(' ') => warnings.push(format!("{place}: {warning}")),
            Some(warning) => warnings.push(warning.to_owned()),
            None if line.starts_with(' ') => {}
            None => place = line.split(':').next().unwrap_or_default().to_owned(),
        }
    }
    warnings
}

/// Loads the policies of a configuration; returns why some cannot be loaded.
fn load_policies(file: &Path, config: &Config, chain: &Policies) -> Vec<String> {
    // Without the store: `check` validates what is in the folders, not what a running host has
    // active.
    let spec = ChainSpec { store: None, ..config.policies.chain.clone() };
    load_chain(file, config, chain, spec)
}

/// Loads a chain of a configuration; returns why some of its policies cannot be loaded.
pub(crate) fn load_chain(
    file: &Path,
    config: &Config,
    chain: &Policies,
    mut spec: ChainSpec,
) -> Vec<String> {
    let _pulled = registry::pull_for_check(&mut spec);
    let failed = |(name, change): (String, Change)| match change {
        Change::Failed(error) => Some(describe(file, config, &name, &error)),
        Change::Active(_) | Change::Candidate(_) | Change::Unchanged | Change::Removed => None,
    };
    chain.apply(spec).into_iter().filter_map(failed).collect()
}

/// Describes why a policy cannot be loaded, in the form of all other errors of a configuration:
/// `FILE:LINE: KEY: MESSAGE [CODE]`.
fn describe(file: &Path, config: &Config, name: &str, error: &LoadError) -> String {
    let code = error.code();
    let mut locations = config.policies.locations.iter();
    let location = locations.find(|(other, _)| other == name).map(|(_, location)| location);
    let Some(location) = location else {
        return format!("{}: policy `{name}`: {error} [{code}]", file.display());
    };
    let (location, key, message) = match error.invalid_config() {
        // The policy names the key within its `config`.
        Some(InvalidConfig { key: Some(key), message }) => (
            &location.config,
            format!("{}.{key}", location.config.key()),
            format!("policy `{name}`: {message}"),
        ),
        Some(InvalidConfig { key: None, message }) => (
            &location.config,
            location.config.key().to_owned(),
            format!("policy `{name}`: {message}"),
        ),
        None => {
            (&location.entry, location.entry.key().to_owned(), format!("policy `{name}`: {error}"))
        }
    };
    format!("{}:{}: {key}: {message} [{code}]", file.display(), location.line())
}

/// Returns the environment that engines inherit, without values that are not UTF-8.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        name.into_string().ok().zip(value.into_string().ok())
    };
    std::env::vars_os().filter_map(text).collect()
}
