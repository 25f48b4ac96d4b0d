//! Versions for the validation of a policy: by a host before it uses the policy, and by the tools
//! of its author.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::contract::shared::HostEnv;
use crate::metrics::PolicyMetrics;
use crate::version::Version;
use crate::version::artifact::PolicyArtifact;
use crate::version::bundle::Bundle;
use crate::version::config::VersionConfig;
use crate::version::runtime::Runtime;
use pointsman_spec::Settings;

/// Creates versions that only validation calls, each with its own configuration and state. Their
/// metrics are not exported.
#[derive(Clone)]
pub(crate) struct ValidationInstances<'a> {
    runtime: &'a Arc<Runtime>,
    bundle: &'a Bundle,
    artifact: &'a Arc<PolicyArtifact>,
    settings: Settings,
    metrics: Arc<PolicyMetrics>,
}

impl<'a> ValidationInstances<'a> {
    pub(crate) fn new(
        runtime: &'a Arc<Runtime>,
        bundle: &'a Bundle,
        artifact: &'a Arc<PolicyArtifact>,
        settings: &Settings,
    ) -> Self {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        Self { runtime, bundle, artifact, settings: settings.clone(), metrics }
    }

    pub(crate) fn create(&self, config: &Value, env: impl Into<HostEnv>) -> Version {
        let settings = Settings { config: config.clone(), ..self.settings.clone() };
        let config = VersionConfig::new(self.runtime, self.bundle, &settings);
        Version::new(&self.runtime.engine, self.artifact, Arc::new(config), &self.metrics, env)
    }
}
