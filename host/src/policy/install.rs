//! `pointsman policy install`: puts a verified version of a policy into the folder from which a
//! host loads it.

mod archive;
mod exchange;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use http::Method;
use pointsman_config::Config;
use pointsman_files::{read_regular, write_atomic};
use pointsman_policy::{
    ChainSpec, Change, LoadError, MAX_COMPONENT_BYTES, OciReference, PolicyFiles, PolicySpec,
};
use serde_json::Value;
use tempfile::TempDir;

use super::author::cannot_load_copy;
use super::client::ClientError;
use super::progress::with_progress;
use crate::cli::policy::{HostAddress, HostOptions, HostTarget, Install};
use crate::output::print;
use crate::{chains, registry};

/// Runs the command.
pub(super) fn install(options: &Install) -> Result<ExitCode> {
    let config = Config::load_without_secrets(&options.config, &[])?;
    let unpacked = match options.source.to_str() {
        Some(text) if OciReference::is_reference(text) => Some(pull(&options.config, text)?),
        _ if options.source.is_dir() => None,
        _ => Some(unpack(&options.source)?),
    };
    let source = unpacked.as_ref().map_or(options.source.as_path(), TempDir::path);
    let PolicyFiles { name, files, .. } =
        PolicyFiles::read(source).map_err(cannot_load_copy(source, &options.source))?;
    let links = &config.policies.chain.policies;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let file = options.config.display();
        bail!("no policy `{name}` in the chain of {file}; add a [[policies.chain]] with this name");
    };
    if let Some(source) = &link.source {
        let reference = &source.reference;
        bail!("policy `{name}` comes from {reference}; push the version there instead");
    }
    // A link to the folder stays, and leads to the new version.
    let target = fs::canonicalize(&link.dir).unwrap_or_else(|_| link.dir.clone());
    if fs::canonicalize(source).is_ok_and(|source| source == target) {
        bail!("{}: the host loads this folder itself", target.display());
    }
    let staged = stage(source, &files, &target)?;
    let version = with_progress("verifying", || verify(&config, link, staged.path()))?
        .map_err(cannot_load_copy(staged.path(), &options.source))?;
    let staged = staged.keep();
    let exchanged = exchange::exchange(&staged, &target, &files);
    if exchanged.is_err() {
        // The folder is not in use; if it stays, it only takes disk space.
        fs::remove_dir_all(&staged).ok();
    }
    exchanged?;
    print(&format!("{}: installed {name} {version}\n", target.display()))?;
    if options.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    verdict(options, &name, &version)
}

/// Pulls a policy from a registry into a temporary folder.
fn pull(config: &Path, text: &str) -> Result<TempDir> {
    let reference: OciReference = text.parse().with_context(|| text.to_owned())?;
    let registries = Config::registries(config)?;
    let folder = TempDir::new().context("failed to create a temporary folder")?;
    with_progress("pulling", || registry::fetch(&registries, &reference, folder.path()))?;
    Ok(folder)
}

/// Unpacks an archive into a temporary folder.
fn unpack(file: &Path) -> Result<TempDir> {
    let folder = TempDir::new().context("failed to create a temporary folder")?;
    let bytes = read_regular(file, archive::MAX_ARCHIVE_BYTES)?;
    let files = archive::policy_files(&bytes).map_err(|error| {
        let code = error.code();
        anyhow::Error::new(error)
            .context(format!("{}: cannot be unpacked [{code}]", file.display()))
    })?;
    for (name, content) in files {
        write_atomic(&folder.path().join(name), &content, 0o644)?;
    }
    Ok(folder)
}

/// Copies the files that a host loads into a new folder next to `target`.
fn stage(source: &Path, files: &[PathBuf], target: &Path) -> Result<TempDir> {
    let parent = target.parent().unwrap_or(Path::new("."));
    let failed = || format!("failed to create a folder in {}", parent.display());
    fs::create_dir_all(parent).with_context(failed)?;
    let staged = tempfile::Builder::new().prefix(".install-").tempdir_in(parent);
    let staged = staged.with_context(failed)?;
    for file in files {
        let content = read_regular(&source.join(file), MAX_COMPONENT_BYTES)?;
        write_atomic(&staged.path().join(file), &content, 0o644)?;
    }
    // Temporary folders are private, and the host may be another user.
    fs::set_permissions(staged.path(), Permissions::from_mode(0o755)).with_context(failed)?;
    Ok(staged)
}

/// Checks a version as the host does before it activates one: limits, signature, minimum version,
/// the operator's settings, and golden cases. Returns the version with its fingerprint.
fn verify(config: &Config, link: &PolicySpec, staged: &Path) -> Result<Result<String, LoadError>> {
    let policy = PolicySpec { dir: staged.to_owned(), ..link.clone() };
    let chain = ChainSpec { policies: vec![policy], store: None, ..config.policies.chain.clone() };
    load(config.policies.cache.clone(), chain)
}

/// Loads the policy of a chain. Returns the version with its fingerprint.
pub(super) fn load(cache: Option<PathBuf>, chain: ChainSpec) -> Result<Result<String, LoadError>> {
    let policies = chains::to_check(cache)?;
    for (_, change) in policies.apply(chain) {
        match change {
            Change::Failed(error) => return Ok(Err(error)),
            Change::Active(version) | Change::Candidate(version) => return Ok(Ok(version)),
            Change::Unchanged | Change::Removed => {}
        }
    }
    bail!("internal error: the policy was not loaded")
}

/// Has a running host load the version, and reports what became of it.
fn verdict(options: &Install, name: &str, version: &str) -> Result<ExitCode> {
    let address = HostAddress { config: Some(options.config.clone()), socket: None, url: None };
    let host = HostOptions { target: HostTarget { address, token_env: None }, json: false };
    let reload = || super::call(&host, Method::POST, "/reload", None);
    let mut response = match with_progress("waiting for the host", reload) {
        Ok(response) => response,
        Err(error) => match error.downcast_ref() {
            Some(ClientError::NotRunning { .. } | ClientError::AdminDisabled(_)) => {
                print(&format!("{error}; the version is loaded when the host starts or looks\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            _ => return Err(error),
        },
    };
    if let Some(error) = response["error"].as_str() {
        bail!("the host did not reload, because its configuration is invalid: {error}");
    }
    let policies = response["policies"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let Some(policy) = policies.into_iter().find(|policy| policy["name"] == name) else {
        bail!("the host does not have the policy `{name}` in its chain");
    };
    let is_version = |value: &Value| value.as_str() == Some(version);
    let is_loaded = is_version(&policy["version"]) || is_version(&policy["candidate"]["version"]);
    print(&super::table::list(std::slice::from_ref(&policy)))?;
    if is_loaded {
        return Ok(ExitCode::SUCCESS);
    }
    let error = &policy["error"];
    match (error["message"].as_str(), error["code"].as_str()) {
        (Some(message), Some(code)) => bail!("the host refused {version}: {message} [{code}]"),
        _ => bail!("the host did not take up {version}; does it run with this configuration?"),
    }
}
