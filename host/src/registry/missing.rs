//! What a program without registries says.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use pointsman_policy::{
    ChainSpec, OciDigest, OciReference, PolicyFiles, RegistrySettings, SourceProblem,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

/// The code of a feature that the program was built without.
const CODE: &str = "feature_missing";

/// The program was built without registries.
#[derive(Debug, thiserror::Error)]
#[error("{MESSAGE} [{CODE}]")]
struct FeatureMissing;

const MESSAGE: &str = "this program was built without registries; build it with \
                       `cargo build --release --features registry`";

/// Sources of policies, of which none is known.
#[derive(Debug)]
pub(crate) struct PolicySources;

impl PolicySources {
    pub(crate) fn new(_registry: &mut Registry) -> Arc<Self> {
        Arc::new(Self)
    }

    /// Notes why the policies of registries are missing.
    #[expect(clippy::unused_self, reason = "as with registries")]
    pub(crate) fn prepare(&self, chain: &mut ChainSpec) {
        note(chain);
    }

    /// Follows no tags.
    pub(crate) async fn follow(&self, _changed: impl Fn()) {
        std::future::pending().await
    }
}

fn note(chain: &mut ChainSpec) {
    let problem = SourceProblem { code: CODE, message: MESSAGE.to_owned() };
    let sources = chain.policies.iter_mut().filter_map(|policy| policy.source.as_mut());
    sources.for_each(|source| source.problem = Some(problem.clone()));
}

pub(crate) fn pull_for_check(chain: &mut ChainSpec) -> Vec<TempDir> {
    note(chain);
    Vec::new()
}

pub(crate) fn fetch(
    _registries: &[RegistrySettings],
    _reference: &OciReference,
    _folder: &Path,
) -> Result<OciDigest> {
    Err(FeatureMissing.into())
}

pub(crate) fn push(
    _registries: &[RegistrySettings],
    _reference: &OciReference,
    _dir: &Path,
    _policy: &PolicyFiles,
) -> Result<OciDigest> {
    Err(FeatureMissing.into())
}
