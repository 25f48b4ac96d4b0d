//! Which keys there are.

use std::collections::HashMap;
use std::sync::Arc;

use super::Keys;
use crate::identity::Identity;

impl Keys {
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
