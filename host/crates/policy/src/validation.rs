//! The checks that a policy's folder has to pass before a host, or one of the author's tools, uses
//! it.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::abi::Track;
use crate::bundle::Bundle;
use crate::component::{self, Loaded};
use crate::metrics::PolicyMetrics;
use crate::runtime::Runtime;
use crate::spec::Settings;
use crate::state::State;
use crate::version::{LoadError, Version};

/// Interfaces that a component may import without listing them in `allow.interfaces`.
const FREE_INTERFACES: [&str; 3] = ["types", "request", "fleet"];

/// Scans, compiles and links the component, and checks it against its manifest.
///
/// # Errors
/// If the component is not usable, or not the one that the manifest describes.
pub(crate) fn load_component(runtime: &Runtime, bundle: &Bundle) -> Result<Arc<Loaded>, LoadError> {
    let file = bundle.dir.join(&bundle.manifest.file).display().to_string();
    let Some(track) = Track::from_name(&bundle.manifest.api) else {
        return Err(LoadError::UnsupportedApi { file, api: bundle.manifest.api.clone() });
    };
    let loaded = match component::load(runtime, track, &bundle.component) {
        Ok(loaded) => loaded,
        Err(error) => return Err(LoadError::Component { file, error }),
    };
    let allowed = bundle.manifest.interfaces();
    let is_allowed = |interface: &&String| {
        FREE_INTERFACES.contains(&interface.as_str()) || allowed.contains(interface)
    };
    let forbidden = loaded.imports.iter().find(|interface| !is_allowed(interface));
    // `allow.interfaces` is about our own contract; a middleware has no optional interfaces.
    if let (Some(interface), Track::V0_1) = (forbidden, track) {
        return Err(LoadError::InterfaceNotAllowed { file, interface: interface.clone() });
    }
    let found = &loaded.digest;
    let expected = bundle.manifest.build.as_ref().and_then(|build| build.component_sha256.as_ref());
    if let Some(expected) = expected.filter(|digest| !digest.is_empty() && *digest != found) {
        let (expected, found) = (expected.clone(), found.clone());
        return Err(LoadError::DigestMismatch { file, expected, found });
    }
    Ok(Arc::new(loaded))
}

/// Creates versions that only validation calls, each with its own configuration and state. Their
/// metrics are not exported.
#[derive(Clone)]
pub(crate) struct ValidationInstances<'a> {
    runtime: &'a Arc<Runtime>,
    bundle: &'a Bundle,
    loaded: &'a Arc<Loaded>,
    settings: Settings,
    metrics: Arc<PolicyMetrics>,
}

impl<'a> ValidationInstances<'a> {
    pub(crate) fn new(
        runtime: &'a Arc<Runtime>,
        bundle: &'a Bundle,
        loaded: &'a Arc<Loaded>,
        settings: &Settings,
    ) -> Self {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        Self { runtime, bundle, loaded, settings: settings.clone(), metrics }
    }

    pub(crate) fn create(&self, config: &Value, state: Arc<State>) -> Version {
        let settings = Settings { config: config.clone(), ..self.settings.clone() };
        Version::new(self.runtime, self.bundle, &settings, self.loaded, &self.metrics, state)
    }
}
