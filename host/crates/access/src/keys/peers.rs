//! The keys of other hosts.

use std::sync::Arc;

use http::HeaderMap;
use subtle::ConstantTimeEq as _;

use super::{Entry, KeySet, Keys, number};
use crate::credential::{Offer, offered};
use crate::identity::{Identity, PEER_KEY_PREFIX};
use crate::secret::SecretHash;

impl KeySet {
    /// Adds the key of another host, whose requests are those of the tenant `peer:NAME` unless they
    /// say more.
    pub fn add_peer(&mut self, name: &str, secret: &str) {
        let digest = SecretHash::of_secret(secret).0;
        let tenant = format!("peer:{name}");
        let weight = self.resolved.weight(&tenant);
        let identity = Identity {
            tenant: Some(tenant),
            key: number(&digest),
            name: format!("{PEER_KEY_PREFIX}{name}"),
            weight,
            is_peer: true,
            ..Identity::default()
        };
        self.peers.insert(digest, Entry { identity: Arc::new(identity), expires: None });
    }

    /// Returns the key of another host that a request has.
    pub(super) fn peer(&self, headers: &HeaderMap) -> Option<&Entry> {
        if self.peers.is_empty() {
            return None;
        }
        let Offer::Secret(secret) = offered(headers) else { return None };
        let digest = SecretHash::of_secret(secret).0;
        let (known, entry) = self.peers.get_key_value(&digest)?;
        bool::from(known.ct_eq(&digest)).then_some(entry)
    }
}

impl Keys {
    /// Returns true if a request has the key of another host.
    pub fn is_peer(&self, headers: &HeaderMap) -> bool {
        self.set.load().peer(headers).is_some()
    }

    /// Returns true if the key of another host with this [number](Identity::key) is still in force.
    pub fn has_peer(&self, key: u64) -> bool {
        self.set.load().peers.values().any(|entry| entry.identity.key == key)
    }
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;
    use crate::keys::{ApiKey, Unauthorized};

    fn headers(secret: &str) -> HeaderMap {
        let value = format!("Bearer {secret}").parse().unwrap();
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    #[test]
    fn keys_of_hosts_identify_them_and_do_not_close_an_open_host() {
        for client_key in [None, Some("client")] {
            let mut set = KeySet::default();
            set.add_peer("gpu-2", "peer");
            if let Some(key) = client_key {
                set.add(ApiKey::new(key, "team")).unwrap();
            }
            let keys = Keys::from_set(set);
            let peer = keys.identity(&headers("peer")).unwrap();
            assert!(peer.is_peer && keys.is_peer(&headers("peer")) && keys.has_peer(peer.key));
            assert_eq!(peer.tenant.as_deref(), Some("peer:gpu-2"));
            assert_eq!(peer.peer_name(), Some("gpu-2"));
            assert!(!keys.is_peer(&headers("other")) && !keys.is_peer(&HeaderMap::new()));
            assert_eq!(keys.is_open(), client_key.is_none());
            let other = keys.identity(&headers("other")).map(|identity| identity.is_peer);
            let expected = client_key.map_or(Ok(false), |_| Err(Unauthorized::UnknownKey));
            assert_eq!(other, expected);
            keys.replace(KeySet::default());
            assert!(!keys.has_peer(peer.key));
        }
    }
}
