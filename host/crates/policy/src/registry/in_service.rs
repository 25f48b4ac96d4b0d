//! The versions that a host has in service, for programs that repeat its decisions.

use std::path::{Path, PathBuf};

use pointsman_spec::Settings;

use crate::registry::store::{Store, StoreError};
use crate::version::bundle::Bundle;

/// The version of a policy that a host last had in service.
#[derive(Debug)]
pub struct StoredVersion {
    /// The version in the manifest.
    pub version: String,
    /// The digest of component, manifest and settings.
    pub fingerprint: String,
    /// The settings with which it is in service.
    pub settings: Settings,
    /// The folder in the version store. Its files are those of a policy's folder.
    pub dir: PathBuf,
    /// Whether the operator has disabled the policy.
    pub is_disabled: bool,
}

impl StoredVersion {
    /// Finds the active version of a policy in the version store of a host; `None` if it has none.
    ///
    /// # Errors
    /// If the store cannot be read, or its files have been changed.
    pub fn find(store: &Path, policy: &str) -> Result<Option<Self>, StoreError> {
        let store = Store::for_policy(store, policy);
        let slot = store.try_read_slot()?;
        let Some(fingerprint) = slot.active else { return Ok(None) };
        let (bundle, settings) = store.load(&fingerprint)?;
        Ok(Some(Self {
            version: bundle.manifest.version,
            fingerprint,
            settings,
            dir: bundle.dir,
            is_disabled: slot.disabled,
        }))
    }

    /// Returns whether a policy's folder has the files of this version.
    pub fn is_in(&self, dir: &Path) -> bool {
        Bundle::read(dir).is_ok_and(|bundle| bundle.fingerprint(&self.settings) == self.fingerprint)
    }
}

impl std::fmt::Display for StoredVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.version, self.fingerprint.get(..8).unwrap_or_default())
    }
}
