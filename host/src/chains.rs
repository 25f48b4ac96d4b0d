//! Chains and policies that a command line names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use pointsman_policy::{ChainSpec, PolicySpec};
use tempfile::TempDir;

use crate::config::Config;

/// Chains by name, and the folders that hold what is only there for them.
#[derive(Debug)]
pub(crate) struct Chains {
    chains: Vec<(String, ChainSpec)>,
    // Gone when the chains have been read.
    _folders: Vec<TempDir>,
}

impl Chains {
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, &ChainSpec)> {
        self.chains.iter().map(|(name, chain)| (name.as_str(), chain))
    }
}

/// The chain of each argument: `scenario` with one policy that is another, that of a host's configuration, or nobody's.
pub(crate) fn named(arguments: &[String], scenario: &ChainSpec) -> Result<Chains> {
    let (mut chains, mut folders) = (Vec::new(), Vec::new());
    for argument in arguments {
        let path = Path::new(argument);
        let extension = path.extension().and_then(|extension| extension.to_str());
        let chain = match extension {
            _ if argument == "none" => ChainSpec { policies: Vec::new(), ..scenario.clone() },
            Some("toml") => Config::load_over(path, &[])?.policies.chain,
            _ => {
                let policy = policy(path, scenario, &mut folders)?;
                with(scenario, &policy.name, &policy.dir)
            }
        };
        chains.push((argument.clone(), chain));
    }
    Ok(Chains { chains, _folders: folders })
}

/// Policies, and the folders that hold what is only there for them.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) list: Vec<PolicySpec>,
    // Gone when the policies have been read.
    _folders: Vec<TempDir>,
}

/// The policy of each argument, which is a folder or a component, with all defaults. Components may have the manifests of those
/// whose place in `chain` they take.
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

/// The chain with this policy in the place of the one of its name; alone, where there is none.
fn with(chain: &ChainSpec, name: &str, dir: &Path) -> ChainSpec {
    let mut chain = chain.clone();
    match chain.policies.iter_mut().find(|policy| policy.name == name) {
        Some(policy) => policy.dir = dir.to_owned(),
        None => chain.policies = vec![PolicySpec::new(name, dir.to_owned())],
    }
    chain
}

/// The name in a policy's manifest.
fn name_in(manifest: &Path) -> Result<String> {
    let table = read_manifest(manifest)?;
    let name = table.get("name").and_then(toml::Value::as_str);
    name.map(str::to_owned).with_context(|| format!("{}: there is no `name`", manifest.display()))
}

fn read_manifest(manifest: &Path) -> Result<toml::Table> {
    let text = fs::read_to_string(manifest).with_context(|| {
        format!("{} cannot be read; name a policy's folder, its component (.wasm), a configuration (.toml), or `none`", manifest.display())
    })?;
    text.parse().with_context(|| manifest.display().to_string())
}

/// A folder for a component that has none: with the manifest beside it, or else that of the chain's policy whose place it
/// takes.
fn folder_for(component: &Path, scenario: &ChainSpec) -> Result<(TempDir, String)> {
    let beside = component.parent().unwrap_or(Path::new("")).join("policy.toml");
    let manifest = if beside.exists() { beside } else { manifest_in(component, scenario)? };
    let mut table = read_manifest(&manifest)?;
    // It says how another component was built.
    table.remove("build");
    table.insert("file".to_owned(), "policy.wasm".into());
    let folder = TempDir::new().context("there is no room for a temporary folder")?;
    fs::copy(component, folder.path().join("policy.wasm"))
        .with_context(|| format!("{} cannot be read", component.display()))?;
    fs::write(folder.path().join("policy.toml"), table.to_string())
        .context("the temporary folder cannot be written")?;
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
            "{}: there is no policy.toml beside it, and its name begins with that of no policy of the chain, so nobody \
             knows in whose place it is to be",
            component.display()
        ),
    }
}
