//! What a policy's folder has to prove to whoever loads it: a host, or its author while there is none.

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

/// Scan, compile and link the component, and see that it is the one that its manifest speaks of.
///
/// # Errors
/// With the file, and what is wrong with it.
pub(crate) fn component(runtime: &Runtime, bundle: &Bundle) -> Result<Arc<Loaded>, LoadError> {
    let file = bundle.dir.join(&bundle.manifest.file).display().to_string();
    let fail = |what: String| LoadError::File { file: file.clone(), what };
    let Some(track) = Track::named(&bundle.manifest.api) else {
        let api = &bundle.manifest.api;
        return Err(fail(format!(
            "it is for policy API {api}, and this host serves {}",
            Track::NAMES
        )));
    };
    let loaded = component::load(runtime, track, &bundle.component);
    let loaded = loaded.map_err(|error| LoadError::Component { file: file.clone(), error })?;
    let allowed = bundle.manifest.interfaces();
    let free = ["types", "request", "fleet"];
    let barred =
        loaded.imports.iter().find(|it| !free.contains(&it.as_str()) && !allowed.contains(it));
    if let (Some(barred), Track::V0_1) = (barred, track) {
        return Err(fail(format!(
            "it imports the interface `{barred}`, which `allow.interfaces` in its manifest does not list"
        )));
    }
    let digest = &loaded.digest;
    let wanted = bundle.manifest.build.as_ref().and_then(|build| build.component_sha256.as_deref());
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty() && wanted != digest) {
        return Err(fail(format!(
            "its SHA-256 is {digest}, and the manifest says {wanted}; build it again with `cargo xtask guests`, or correct `build.component-sha256`"
        )));
    }
    Ok(Arc::new(loaded))
}

/// Makes versions that no request ever sees, each with a configuration and a state of its own. Their figures are nobody's.
#[derive(Clone)]
pub(crate) struct ProofInstances<'a> {
    runtime: &'a Arc<Runtime>,
    bundle: &'a Bundle,
    loaded: &'a Arc<Loaded>,
    settings: Settings,
    metrics: Arc<PolicyMetrics>,
}

impl<'a> ProofInstances<'a> {
    pub(crate) fn new(
        runtime: &'a Arc<Runtime>,
        bundle: &'a Bundle,
        loaded: &'a Arc<Loaded>,
        settings: &Settings,
    ) -> Self {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        Self { runtime, bundle, loaded, settings: settings.clone(), metrics }
    }

    pub(crate) fn make(&self, config: &Value, state: Arc<State>) -> Version {
        let settings = Settings { config: config.clone(), ..self.settings.clone() };
        Version::new(self.runtime, self.bundle, &settings, self.loaded, &self.metrics, state)
    }
}
