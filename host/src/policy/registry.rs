//! `pointsman policy push`, `pull` and `verify`: policies in OCI registries.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use pointsman_config::{Config, default_cache};
use pointsman_files::place_folder;
use pointsman_policy::{ChainSpec, OciDigest, OciReference, PolicyFiles, PolicySpec};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::author::{cannot_load, cannot_load_copy};
use super::install;
use super::progress::with_progress;
use crate::cli::policy::RegistryOptions;
use crate::output::print;
use crate::registry;

/// Pushes a policy.
pub(super) fn push(dir: &Path, reference: &OciReference, options: &RegistryOptions) -> Result<()> {
    let chain = chain(options)?;
    let policy = PolicyFiles::read(dir).map_err(cannot_load(dir))?;
    let push = || registry::push(&chain.registries, reference, dir, &policy);
    let digest = with_progress("pushing", push)?;
    let text = format!("{reference}: pushed {} {}\n", policy.name, policy.version);
    report(options, &result(reference, &digest, &policy), text, reference, &digest)
}

/// Pulls a policy into a new folder, which appears as a whole.
pub(super) fn pull(reference: &OciReference, dir: &Path, options: &RegistryOptions) -> Result<()> {
    let chain = chain(options)?;
    if dir.symlink_metadata().is_ok() {
        bail!("{} exists; name a new folder", dir.display());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let failed = || format!("failed to create {}", dir.display());
    let new = tempfile::Builder::new().prefix(".pull-").tempdir_in(parent).with_context(failed)?;
    let fetch = || registry::fetch(&chain.registries, reference, new.path());
    let digest = with_progress("pulling", fetch)?;
    let shown = Path::new(reference.repository());
    let policy = PolicyFiles::read(new.path()).map_err(cannot_load_copy(new.path(), shown))?;
    fs::set_permissions(new.path(), Permissions::from_mode(0o755)).with_context(failed)?;
    // If another process has created the folder meanwhile, its content is removed with `new`.
    if place_folder(new.path(), dir).with_context(failed)? {
        place_folder(new.path(), dir).with_context(failed)?;
        bail!("{} exists; name a new folder", dir.display());
    }
    let text = format!("{}: pulled {} {}\n", dir.display(), policy.name, policy.version);
    report(options, &result(reference, &digest, &policy), text, reference, &digest)
}

/// Verifies a policy. If the configuration has it in its chain, its settings there count.
pub(super) fn verify(reference: &OciReference, options: &RegistryOptions) -> Result<()> {
    let mut chain = chain(options)?;
    let folder = TempDir::new().context("failed to create a temporary folder")?;
    let fetch = || registry::fetch(&chain.registries, reference, folder.path());
    let digest = with_progress("pulling", fetch)?;
    let shown = Path::new(reference.repository());
    let cannot_load = || cannot_load_copy(folder.path(), shown);
    let policy = PolicyFiles::read(folder.path()).map_err(cannot_load())?;
    let known = chain.policies.drain(..).find(|known| known.name == policy.name);
    let spec = known.unwrap_or_else(|| PolicySpec::new(&policy.name, folder.path().to_owned()));
    let spec = PolicySpec { dir: folder.path().to_owned(), source: None, ..spec };
    let is_signed = !chain.signers.is_empty();
    let chain = ChainSpec { policies: vec![spec], store: None, ..chain };
    let load = || install::load(default_cache(), chain);
    let version = with_progress("verifying", load)?.map_err(cannot_load())?;
    let mut value = result(reference, &digest, &policy);
    value["fingerprint"] = version.split('@').next_back().unwrap_or_default().into();
    value["signature"] = if is_signed { "verified" } else { "not checked" }.into();
    let signature = match is_signed {
        true => "signature verified",
        false => "signature not checked, because no signers are configured",
    };
    let text = format!("{reference}: OK: {} {version}, {signature}\n", policy.name);
    report(options, &value, text, reference, &digest)
}

/// Returns the chain of the configuration, with the registries and signers, or an empty one.
fn chain(options: &RegistryOptions) -> Result<ChainSpec> {
    match &options.config {
        Some(file) => {
            let chain = Config::load_without_secrets(file, &[])?.policies.chain;
            Ok(ChainSpec { registries: Config::registries(file)?, ..chain })
        }
        None => Ok(ChainSpec::default()),
    }
}

fn result(reference: &OciReference, digest: &OciDigest, policy: &PolicyFiles) -> Value {
    json!({
        "reference": reference.to_string(),
        "digest": digest.to_string(),
        "source": reference.with_digest(digest.clone()).to_string(),
        "name": policy.name,
        "version": policy.version,
    })
}

/// Prints a result, with the reference by digest that a chain may have.
fn report(
    options: &RegistryOptions,
    value: &Value,
    text: String,
    reference: &OciReference,
    digest: &OciDigest,
) -> Result<()> {
    match options.json {
        true => print(&format!("{value:#}\n")),
        false => print(&format!("{text}  {}\n", reference.with_digest(digest.clone()))),
    }
}
