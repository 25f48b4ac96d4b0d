//! Which keys there are.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use super::{KeySet, Keys};
use crate::identity::Identity;

/// Which keys there are: equal to another version until the keys are replaced.
#[derive(Clone)]
pub struct KeysVersion(Weak<KeySet>);

impl PartialEq for KeysVersion {
    fn eq(&self, other: &Self) -> bool {
        // The address is not used again while there is a weak pointer to it.
        Weak::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for KeysVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeysVersion")
    }
}

impl Keys {
    /// Returns the version of the keys.
    pub fn version(&self) -> KeysVersion {
        KeysVersion(Arc::downgrade(&self.set.load()))
    }

    /// Returns the identity of each key, in no order; also of keys that have expired, and that of
    /// requests without any credential.
    pub fn identities(&self) -> Vec<Arc<Identity>> {
        let set = self.set.load();
        let identities = set.keys.values().map(|entry| &entry.identity).chain(&set.anonymous);
        // A key may have several secrets.
        let by_key: HashMap<u64, &Arc<Identity>> =
            identities.map(|identity| (identity.key, identity)).collect();
        by_key.into_values().cloned().collect()
    }

    /// Returns the identity that the bearer of a token has now, from an earlier one; `None` if it
    /// is the identity of a key, or tokens are not accepted.
    pub fn current_bearer(&self, earlier: &Identity) -> Option<Identity> {
        self.tokens.as_ref()?;
        let (tenant, group) = (earlier.tenant.as_deref()?, earlier.group.as_deref());
        let current = self.set.load().identity_for(tenant, group, &earlier.name)?;
        let is_bearer = current.key == earlier.key;
        is_bearer.then_some(Identity { expires: earlier.expires, ..current })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_changes_when_the_keys_are_replaced() {
        let keys = Keys::default();
        let first = keys.version();
        assert_eq!(first, keys.version());
        keys.replace(KeySet::default());
        assert_ne!(first, keys.version());
    }
}
