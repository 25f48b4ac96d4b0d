//! The keys of the clients: digests, and whom they identify.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::credential::{Offer, offered};
use crate::identity::Identity;
use crate::rights::Rights;
use crate::tokens::{Claims, TokenError, TokenRefusal, TokenStatus, TokenVerifier};

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
    tokens: Option<Arc<TokenVerifier>>,
}

/// The request has no credential, or one that is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthorized {
    /// It has no key, or an unknown one.
    UnknownKey,
    /// It has a token.
    Token(TokenRefusal),
}

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

    /// Returns the identity of the bearer of a valid token.
    fn of_claims(&self, claims: &Claims) -> Option<Identity> {
        let tenant = claims.tenant.as_deref()?;
        let of_group = |group: Option<&str>| self.identity_for(tenant, group, &claims.name);
        let identity = match claims.needs_group {
            true => claims.groups.iter().find_map(|group| of_group(Some(group))),
            false => of_group(None),
        };
        Some(Identity { expires: Some(claims.expires), ..identity? })
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
        Self { set: Arc::new(ArcSwap::from_pointee(set)), tokens: None }
    }

    /// Accepts tokens as well. No request is accepted without a key or a token then.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Arc<TokenVerifier>) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Returns the state of the keys of the issuer of tokens; `None` if tokens are not accepted.
    pub fn token_status(&self) -> Option<TokenStatus> {
        Some(self.tokens.as_ref()?.status(SystemTime::now()))
    }

    /// Replaces all keys. The next request is checked with the new ones.
    pub fn replace(&self, set: KeySet) {
        self.set.store(Arc::new(set));
    }

    /// Returns true if all requests are accepted.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_none() && self.set.load().keys.is_empty()
    }

    /// Returns who sent a request with these headers.
    ///
    /// # Errors
    /// If there are keys, and the request does not have one of them: as `Authorization: Bearer`,
    /// `x-api-key` or `api-key`. The same if tokens are accepted, and the request has no valid one.
    pub fn identity(&self, headers: &HeaderMap) -> Result<Arc<Identity>, Unauthorized> {
        let set = self.set.load();
        if self.tokens.is_none() && set.keys.is_empty() {
            return Ok(Arc::default());
        }
        match offered(headers) {
            Offer::Secret(secret) => self.identity_of(&set, secret, SystemTime::now()),
            Offer::None | Offer::Other => Err(Unauthorized::UnknownKey),
        }
    }

    fn identity_of(
        &self,
        set: &KeySet,
        secret: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Unauthorized> {
        if let Some(identity) = set.find(secret, now) {
            return Ok(identity);
        }
        match &self.tokens {
            Some(tokens) if TokenVerifier::is_token(secret) => {
                let claims = tokens.verify(secret, now);
                let identity = claims.and_then(|claims| {
                    set.of_claims(&claims).map(Arc::new).ok_or(TokenError::NotAllowed)
                });
                identity.map_err(|error| {
                    tracing::info!(event = "token_refused", %error, "token refused");
                    Unauthorized::Token(error.refusal())
                })
            }
            Some(_) | None => Err(Unauthorized::UnknownKey),
        }
    }
}

/// Returns the number of a key: the beginning of a digest.
fn number(digest: &[u8; 32]) -> u64 {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(beginning)
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
mod token_tests;

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

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
            ("authorization", "Bearer k3", Err(Unauthorized::UnknownKey)),
            ("authorization", "Basic k1", Err(Unauthorized::UnknownKey)),
            ("authorization", "k1", Err(Unauthorized::UnknownKey)),
            ("authorization", "Bearer ", Err(Unauthorized::UnknownKey)),
            ("x-api-key", "Bearer k1", Err(Unauthorized::UnknownKey)),
            ("x-other", "k1", Err(Unauthorized::UnknownKey)),
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
