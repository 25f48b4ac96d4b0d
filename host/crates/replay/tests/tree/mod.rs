//! The policies of this repository, for several tests.

use std::path::Path;

use pointsman_policy::{ChainSpec, PolicySpec};
use serde_json::Value;

/// A Monday in November 2026, at noon UTC, in milliseconds since the Unix epoch.
pub(crate) const NOON: u64 = 1_794_830_400_000;

pub(crate) fn policy(name: &str, config: Value) -> PolicySpec {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../policies").join(name);
    let mut spec = PolicySpec::new(name, dir);
    spec.settings.config = config;
    spec
}

pub(crate) fn chain(policies: Vec<PolicySpec>) -> ChainSpec {
    ChainSpec { policies, ..ChainSpec::default() }
}
