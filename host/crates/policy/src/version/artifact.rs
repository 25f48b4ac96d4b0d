//! A policy's component with its manifest: checked, compiled and linked. It does not depend on the
//! operator's settings, so all versions of the same files share it.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;

use crate::contract::guest::{Instance, Linked};
use crate::contract::host_state::HostState;
use crate::contract::track::Track;
use crate::contract::types::Hooks;
use crate::digest::sha256_hex;
use crate::version::bundle::Bundle;
use crate::version::error::LoadError;
use crate::version::manifest::Manifest;
use crate::version::runtime::Runtime;
use crate::wasm::caching_compiler::Compiled;
use crate::wasm::error::ComponentError;
use crate::wasm::scan;

/// Interfaces that a component may import without listing them in `allow.interfaces`.
const FREE_INTERFACES: [&str; 3] = ["types", "request", "fleet"];

/// A linked component, and its manifest.
pub(crate) struct PolicyArtifact {
    manifest: Manifest,
    linked: Linked,
    digest: String,
    /// Keeps the compiled code in the cache.
    _compiled: Compiled,
}

impl PolicyArtifact {
    /// Scans, compiles and links the component, and checks it against its manifest.
    ///
    /// # Errors
    /// If the component is not usable, or not the one that the manifest describes.
    pub(crate) fn load(runtime: &Runtime, bundle: &Bundle) -> Result<Arc<Self>, LoadError> {
        let manifest = &bundle.manifest;
        let file = bundle.dir.join(&manifest.file).display().to_string();
        let Some(track) = Track::from_name(&manifest.api) else {
            return Err(LoadError::UnsupportedApi { file, api: manifest.api.clone() });
        };
        let (artifact, imports) = match Self::link(runtime, track, bundle) {
            Ok(linked) => linked,
            Err(error) => return Err(LoadError::Component { file, error }),
        };
        let allowed = manifest.interfaces();
        let is_allowed = |interface: &&String| {
            FREE_INTERFACES.contains(&interface.as_str()) || allowed.contains(interface)
        };
        let forbidden = imports.iter().find(|interface| !is_allowed(interface));
        // `allow.interfaces` is about our own contract; a middleware has no optional interfaces.
        if let (Some(interface), Track::V0_1) = (forbidden, track) {
            return Err(LoadError::InterfaceNotAllowed { file, interface: interface.clone() });
        }
        let found = &artifact.digest;
        let expected = manifest.build.as_ref().and_then(|build| build.component_sha256.as_ref());
        if let Some(expected) = expected.filter(|digest| !digest.is_empty() && *digest != found) {
            let (expected, found) = (expected.clone(), found.clone());
            return Err(LoadError::DigestMismatch { file, expected, found });
        }
        Ok(Arc::new(artifact))
    }

    /// Scans, compiles (or takes from the cache), and links a component. Also returns the
    /// interfaces that it imports, without package and version.
    fn link(
        runtime: &Runtime,
        track: Track,
        bundle: &Bundle,
    ) -> Result<(Self, Vec<String>), ComponentError> {
        let digest = sha256_hex(&bundle.component);
        // Even if the code is in the cache: the rules may have changed since it was compiled.
        let shape = scan::scan(&bundle.component, track.rules())?;
        tracing::debug!(?shape, digest, "scanned component");
        let engine = &runtime.engine;
        let compiled = runtime.compiler.compile(engine, &bundle.component, &digest)?;
        let linked = runtime.linkers.link(track, &compiled);
        let linked = linked.map_err(|error| ComponentError::Types(Arc::new(error)))?;
        let manifest = bundle.manifest.clone();
        Ok((Self { manifest, linked, digest, _compiled: compiled }, shape.imports))
    }

    /// Returns the manifest.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the SHA-256 of the component, in hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the optional hooks that the component exports.
    pub(crate) fn hooks(&self) -> Hooks {
        self.linked.hooks()
    }

    /// Returns the interval of `on-tick`; `None` without that hook, or if the manifest sets none.
    pub(crate) fn tick_interval(&self) -> Option<Duration> {
        self.manifest.hooks.tick.filter(|interval| self.hooks().on_tick && !interval.is_zero())
    }

    /// Creates an instance in `store`, which is not configured yet.
    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Instance> {
        self.linked.instantiate(store)
    }
}
