//! Copies a policy into the folder from which a running host loads it.

use std::path::Path;

use anyhow::{Context as _, Result};
use pointsman_files::{read_regular, write_atomic};
use pointsman_policy::{ChainSpec, MAX_COMPONENT_BYTES, Workbench};

/// Copies the files that a host loads, each of them atomically. Files that are the same stay, so
/// that a host does not load the policy again. Returns what to print.
pub(super) fn install(bench: &Workbench, chain: &ChainSpec) -> Result<String> {
    let name = bench.name();
    let link = chain.policies.iter().find(|link| link.name == name);
    let to = &link
        .with_context(|| {
            format!("--install: no policy `{name}` in the chain of the configuration")
        })?
        .dir;
    let is_same_folder = || -> Option<bool> {
        Some(std::fs::canonicalize(to).ok()? == std::fs::canonicalize(bench.dir()).ok()?)
    };
    if is_same_folder() == Some(true) {
        return Ok(format!("{}: the host loads this folder itself\n", to.display()));
    }
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let mut copied = 0;
    for file in bench.files() {
        copied += usize::from(copy(&bench.dir().join(&file), &to.join(&file))?);
    }
    Ok(format!("{}: installed; files changed: {copied}\n", to.display()))
}

/// Copies a file, unless the copy has this content already.
fn copy(from: &Path, to: &Path) -> Result<bool> {
    let bytes = read_regular(from, MAX_COMPONENT_BYTES)?;
    if read_regular(to, MAX_COMPONENT_BYTES).is_ok_and(|before| before == bytes) {
        return Ok(false);
    }
    write_atomic(to, &bytes, 0o644)?;
    Ok(true)
}
