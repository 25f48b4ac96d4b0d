//! The keys of the clients: digests, and whom they identify.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::identity::Identity;
use crate::rights::Rights;

/// Headers by which clients send a key without a scheme: Anthropic's and Azure's libraries.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// An API key as the configuration has it.
#[derive(Clone)]
pub struct ApiKey {
    /// The key itself.
    pub secret: String,
    /// The tenant that uses the key.
    pub tenant: String,
    /// The key may use paths of engines that show or change what clients share.
    pub engine_admin: bool,
}

impl ApiKey {
    /// Creates a key without further rights.
    pub fn new(secret: &str, tenant: &str) -> Self {
        Self { secret: secret.to_owned(), tenant: tenant.to_owned(), engine_admin: false }
    }
}

/// A set of keys. It is not changed, but replaced as a whole.
#[derive(Default)]
pub struct KeySet {
    /// By digest. The table is keyed with a random number, and a digest is found or not as a whole:
    /// the time of a lookup tells nothing about how much of a secret is right.
    keys: HashMap<[u8; 32], Arc<Identity>>,
}

/// The keys of the clients, which can be replaced. Without any key, all requests are accepted and
/// have no tenant. A clone shares the keys.
#[derive(Clone, Default)]
pub struct Keys {
    set: Arc<ArcSwap<KeySet>>,
}

/// The request has no key, or an unknown one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthorized;

impl KeySet {
    /// Adds a key of the configuration.
    pub fn add(&mut self, key: ApiKey) {
        let digest: [u8; 32] = Sha256::digest(key.secret.as_bytes()).into();
        let id = number(&digest);
        let rights = Rights { engine_admin: key.engine_admin, ..Rights::default() };
        let identity = Identity {
            tenant: Some(key.tenant),
            key: id,
            name: format!("env-{:08x}", id >> 32),
            rights,
            ..Identity::default()
        };
        self.add_digest(digest, identity);
    }

    /// Adds a key by its digest.
    pub fn add_digest(&mut self, digest: [u8; 32], identity: Identity) {
        self.keys.insert(digest, Arc::new(identity));
    }

    /// Returns the identity of the bearer of a token that another service has issued, with the
    /// rights and limits of a group; `None` if there is not such a group.
    pub fn identity_for(&self, tenant: &str, group: Option<&str>, name: &str) -> Option<Identity> {
        if group.is_some() {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(format!("{tenant}\n{name}").as_bytes()).into();
        Some(Identity {
            tenant: Some(tenant.to_owned()),
            key: number(&digest),
            name: name.to_owned(),
            ..Identity::default()
        })
    }

    fn find(&self, secret: &str, now: SystemTime) -> Option<Arc<Identity>> {
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let (known, identity) = self.keys.get_key_value(&digest)?;
        let is_known = bool::from(known.ct_eq(&digest));
        let is_valid = identity.expires.is_none_or(|expires| now < expires);
        (is_known && is_valid).then(|| Arc::clone(identity))
    }
}

impl Keys {
    /// Creates the set of these keys.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        let mut set = KeySet::default();
        keys.into_iter().for_each(|key| set.add(key));
        Self { set: Arc::new(ArcSwap::from_pointee(set)) }
    }

    /// Replaces all keys. The next request is checked with the new ones.
    pub fn replace(&self, set: KeySet) {
        self.set.store(Arc::new(set));
    }

    /// Returns true if all requests are accepted.
    pub fn is_empty(&self) -> bool {
        self.set.load().keys.is_empty()
    }

    /// Returns who sent a request with these headers.
    ///
    /// # Errors
    /// If there are keys, and the request does not have one of them: as `Authorization: Bearer`,
    /// `x-api-key` or `api-key`.
    pub fn identity(&self, headers: &HeaderMap) -> Result<Arc<Identity>, Unauthorized> {
        let set = self.set.load();
        if set.keys.is_empty() {
            return Ok(Arc::default());
        }
        set.find(offered(headers), SystemTime::now()).ok_or(Unauthorized)
    }
}

/// Returns the number of a key: the beginning of a digest.
fn number(digest: &[u8; 32]) -> u64 {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(beginning)
}

/// Returns the key that a request has; empty for none.
fn offered(headers: &HeaderMap) -> &str {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let key = bearer.or_else(|| KEY_HEADERS.into_iter().find_map(text));
    key.unwrap_or_default().trim()
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tenants: Vec<&str> =
            self.keys.values().filter_map(|identity| identity.tenant.as_deref()).collect();
        tenants.sort_unstable();
        f.debug_struct("KeySet").field("tenants", &tenants).finish()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set.load().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_identify_tenants() {
        let keys = Keys::new([ApiKey::new("k1", "a"), ApiKey::new("k2", "b")]);
        for (name, value, tenant) in [
            ("authorization", "Bearer k1", Ok(Some("a"))),
            ("authorization", "bearer k2", Ok(Some("b"))),
            ("authorization", "Bearer  k2 ", Ok(Some("b"))),
            ("x-api-key", "k1", Ok(Some("a"))),
            ("api-key", " k2", Ok(Some("b"))),
            ("authorization", "Bearer k3", Err(Unauthorized)),
            ("authorization", "Basic k1", Err(Unauthorized)),
            ("authorization", "k1", Err(Unauthorized)),
            ("authorization", "Bearer ", Err(Unauthorized)),
            ("x-api-key", "Bearer k1", Err(Unauthorized)),
            ("x-other", "k1", Err(Unauthorized)),
        ] {
            let name = http::HeaderName::from_static(name);
            let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
            let found = keys.identity(&headers).map(|identity| identity.tenant.clone());
            assert_eq!(found, tenant.map(|tenant| tenant.map(str::to_owned)), "{value}");
        }
        assert_eq!(Keys::default().identity(&HeaderMap::new()), Ok(Arc::default()));
        let ids = ["k1", "k2"].map(|secret| {
            let headers = [(AUTHORIZATION, format!("Bearer {secret}").parse().unwrap())];
            keys.identity(&HeaderMap::from_iter(headers)).unwrap().key
        });
        assert!(ids[0] != ids[1] && !ids.contains(&0), "{ids:?}");
    }

    #[test]
    fn debug_output_hides_keys() {
        let keys = Keys::new([ApiKey::new("secret-key", "team")]);
        assert_eq!(format!("{keys:?}"), r#"KeySet { tenants: ["team"] }"#);
    }
}
