//! Chains and policies of commands: those that are named on the command line, and those of a
//! configuration that are only checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use pointsman_files::{read_regular, read_regular_text};
use pointsman_policy::{
    Allocator, ChainSpec, Compiler, MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES, PolicyMetrics,
    PolicySpec, Runtime, RuntimeSettings,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use crate::facts;
use pointsman_config::Config;

/// Chains by name, and the temporary folders that they refer to.
#[derive(Debug)]
pub(crate) struct Chains {
    chains: Vec<(String, ChainSpec)>,
    // Removed on drop, after the chains were loaded.
    _folders: Vec<TempDir>,
}

impl Chains {
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, &ChainSpec)> {
        self.chains.iter().map(|(name, chain)| (name.as_str(), chain))
    }
}

/// Returns what loads policies as a host does, to check them: no policy is loaded yet. `cache` has
/// compiled components.
///
/// # Errors
/// If the runtime of policies cannot be started.
pub(crate) fn to_check(cache: Option<PathBuf>) -> Result<Arc<pointsman_policy::Policies>> {
    let settings = RuntimeSettings {
        cache_dir: cache,
        compiler: Compiler::this_program(),
        allocator: Allocator::OnDemand,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let metrics = PolicyMetrics::register(&mut Registry::default());
    let runtime = Runtime::new(settings)?;
    Ok(pointsman_policy::Policies::new(&runtime, &metrics, Box::new(facts::from_case))?)
}

/// Resolves each argument to a chain: the scenario's with one policy replaced, the chain of a host
/// configuration, or an empty one (`none`).
pub(crate) fn named(arguments: &[String], scenario: &ChainSpec) -> Result<Chains> {
    let (mut chains, mut folders) = (Vec::new(), Vec::new());
    for argument in arguments {
        let path = Path::new(argument);
        let extension = path.extension().and_then(|extension| extension.to_str());
        let chain = match extension {
            _ if argument == "none" => ChainSpec { policies: Vec::new(), ..scenario.clone() },
            Some("toml") => Config::load_without_secrets(path, &[])?.policies.chain,
            _ => {
                let policy = policy(path, scenario, &mut folders)?;
                with(scenario, &policy.name, &policy.dir)
            }
        };
        // Folders such as `.` have no name of their own.
        let name = match path.file_name() {
            None => std::fs::canonicalize(path)
                .ok()
                .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned())),
            Some(_) => None,
        };
        chains.push((name.unwrap_or_else(|| argument.clone()), chain));
    }
    Ok(Chains { chains, _folders: folders })
}

/// Policies, and the temporary folders that they refer to.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) list: Vec<PolicySpec>,
    // Removed on drop, after the policies were loaded.
    _folders: Vec<TempDir>,
}

/// Resolves each argument, a policy folder or a component, to a policy with default settings. A
/// component without a manifest uses that of the policy in `chain` that it replaces.
pub(crate) fn policies(arguments: &[String], chain: &ChainSpec) -> Result<Policies> {
    let mut folders = Vec::new();
    let policy = |argument: &String| policy(Path::new(argument), chain, &mut folders);
    let list = arguments.iter().map(policy).collect::<Result<_>>()?;
    Ok(Policies { list, _folders: folders })
}

fn policy(path: &Path, chain: &ChainSpec, folders: &mut Vec<TempDir>) -> Result<PolicySpec> {
    if path.extension().is_none_or(|extension| extension != "wasm") {
        return Ok(PolicySpec::new(&name_in(&path.join("policy.toml"))?, path.to_owned()));
    }
    let (folder, name) = folder_for(path, chain)?;
    let policy = PolicySpec::new(&name, folder.path().to_owned());
    folders.push(folder);
    Ok(policy)
}

/// Returns the chain with the policy of this name replaced; only this policy if the chain has none
/// of that name.
fn with(chain: &ChainSpec, name: &str, dir: &Path) -> ChainSpec {
    let mut chain = chain.clone();
    match chain.policies.iter_mut().find(|policy| policy.name == name) {
        Some(policy) => policy.dir = dir.to_owned(),
        None => chain.policies = vec![PolicySpec::new(name, dir.to_owned())],
    }
    chain
}

/// Reads the name from a policy's manifest.
fn name_in(manifest: &Path) -> Result<String> {
    let table = read_manifest(manifest)?;
    let name = table.get("name").and_then(toml::Value::as_str);
    name.map(str::to_owned).with_context(|| format!("{}: missing `name`", manifest.display()))
}

fn read_manifest(manifest: &Path) -> Result<toml::Table> {
    let text = read_regular_text(manifest, MAX_MANIFEST_BYTES).context(
        "expected a policy folder, a component (.wasm), a configuration (.toml) or `none`",
    )?;
    text.parse().with_context(|| manifest.display().to_string())
}

/// Creates a temporary policy folder for a component, with the manifest next to the component or
/// else that of the policy in the chain that it replaces.
fn folder_for(component: &Path, scenario: &ChainSpec) -> Result<(TempDir, String)> {
    let beside = component.parent().unwrap_or(Path::new("")).join("policy.toml");
    let manifest = if beside.exists() { beside } else { manifest_in(component, scenario)? };
    let mut table = read_manifest(&manifest)?;
    // The section describes how the replaced component was built.
    table.remove("build");
    table.insert("file".to_owned(), "policy.wasm".into());
    let folder = TempDir::new().context("failed to create a temporary folder")?;
    let bytes = read_regular(component, MAX_COMPONENT_BYTES)?;
    fs::write(folder.path().join("policy.wasm"), bytes)
        .context("failed to write the temporary folder")?;
    fs::write(folder.path().join("policy.toml"), table.to_string())
        .context("failed to write the temporary folder")?;
    let name = name_in(&folder.path().join("policy.toml"))?;
    Ok((folder, name))
}

fn manifest_in(component: &Path, scenario: &ChainSpec) -> Result<PathBuf> {
    let stem = component.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let named = scenario.policies.iter().find(|policy| stem.starts_with(policy.name.as_str()));
    let only = (scenario.policies.len() == 1).then(|| scenario.policies.first()).flatten();
    match named.or(only) {
        Some(policy) => Ok(policy.dir.join("policy.toml")),
        None => bail!(
            "{}: cannot tell which policy this component replaces: no policy.toml next to it, and \
             its file \
             name does not begin with the name of a policy in the chain",
            component.display()
        ),
    }
}
