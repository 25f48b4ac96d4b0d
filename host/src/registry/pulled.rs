//! Single policies that commands push and pull.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;

use anyhow::{Context as _, Result};
use pointsman_files::{read_regular, read_regular_text};
use pointsman_policy::{
    ChainSpec, Interfaces, MAX_COMPONENT_BYTES, OciDigest, OciReference, PolicyFiles,
    RegistrySettings, SourceProblem,
};
use pointsman_registry::{Artifact, Client, DockerConfig, RegistryError};
use tempfile::TempDir;

/// Maximum size of a text of a policy in bytes, as for a host.
const MAX_TEXT_BYTES: u64 = 8 << 20;

/// Pulls a policy into a folder, which has to exist, and returns its digest.
pub(crate) fn fetch(
    registries: &[RegistrySettings],
    reference: &OciReference,
    folder: &Path,
) -> Result<OciDigest> {
    let client = client(registries).map_err(coded)?;
    let pulled = block_on(client.pull(reference))?;
    let pulled = pulled.map_err(coded).with_context(|| reference.to_string())?;
    let failed = || format!("failed to write into {}", folder.display());
    pulled.artifact.write(folder).with_context(failed)?;
    Ok(pulled.digest)
}

/// Pushes the files of a policy that a host loads, and returns the digest.
pub(crate) fn push(
    registries: &[RegistrySettings],
    reference: &OciReference,
    dir: &Path,
    policy: &PolicyFiles,
) -> Result<OciDigest> {
    let component = read_regular(&dir.join(&policy.component), MAX_COMPONENT_BYTES)?;
    let mut files = BTreeMap::new();
    for file in policy.files.iter().filter(|file| **file != policy.component) {
        let text = read_regular_text(&dir.join(file), MAX_TEXT_BYTES)?;
        files.insert(file.to_string_lossy().into_owned(), text);
    }
    let Interfaces { imports, exports } = Interfaces::read(&component);
    let artifact = Artifact {
        name: policy.name.clone(),
        version: policy.version.clone(),
        component_name: policy.component.to_string_lossy().into_owned(),
        component: component.into(),
        files,
        imports,
        exports,
    };
    let client = client(registries).map_err(coded)?;
    let pushed = block_on(client.push(reference, &artifact))?;
    pushed.map_err(coded).with_context(|| reference.to_string())
}

/// Pulls the policies of a chain that come from registries, as far as they are not in the cache,
/// into temporary folders: a running host must not load what is only checked.
pub(crate) fn pull_for_check(chain: &mut ChainSpec) -> Vec<TempDir> {
    let (registries, mut folders) = (chain.registries.clone(), Vec::new());
    for policy in &mut chain.policies {
        let Some(source) = &mut policy.source else { continue };
        if source.reference.digest().is_some() && policy.dir.is_dir() {
            continue;
        }
        match pull_to_check(&registries, &source.reference) {
            Ok(folder) => {
                folder.path().clone_into(&mut policy.dir);
                folders.push(folder);
            }
            Err(problem) => source.problem = Some(problem),
        }
    }
    folders
}

fn pull_to_check(
    registries: &[RegistrySettings],
    reference: &OciReference,
) -> Result<TempDir, SourceProblem> {
    let unusable = |error: &dyn std::fmt::Display| SourceProblem {
        code: "unavailable",
        message: error.to_string(),
    };
    let folder = TempDir::new().map_err(|error| unusable(&error))?;
    let client = client(registries).map_err(|error| problem(&error))?;
    let pulled = block_on(client.pull(reference)).map_err(|error| unusable(&error))?;
    let pulled = pulled.map_err(|error| problem(&error))?;
    pulled.artifact.write(folder.path()).map_err(|error| unusable(&error))?;
    Ok(folder)
}

/// Returns the client of these registries, with the credentials of Docker.
pub(super) fn client(registries: &[RegistrySettings]) -> Result<Client, RegistryError> {
    Ok(Client::new(registries, DockerConfig::load()?))
}

pub(super) fn problem(error: &RegistryError) -> SourceProblem {
    SourceProblem { code: error.code(), message: error.to_string() }
}

/// Adds the code to the text of an error.
fn coded(error: RegistryError) -> anyhow::Error {
    let code = error.code();
    anyhow::Error::msg(format!("{error} [{code}]"))
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("failed to start the async runtime")?.block_on(future))
}
