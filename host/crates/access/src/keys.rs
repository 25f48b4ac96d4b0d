//! The keys of the clients: digests, and whom they identify.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::credential::{Offer, offered};
use crate::groups::{Definitions, Grants, Inherited, KeySpec, Resolved, inherit};
use crate::identity::Identity;
use crate::limits::Limits;
use crate::secret::SecretHash;
use crate::tokens::{Claims, TokenError, TokenRefusal, TokenStatus, TokenVerifier};

pub use self::listing::KeysVersion;
pub use self::minute_limits::{LimitOwner, MinuteLimit};

/// The tenant of requests without any credential.
const ANONYMOUS: &str = "anonymous";

/// An API key as the configuration has it.
#[derive(Clone)]
pub struct ApiKey {
    /// The key itself.
    pub secret: String,
    /// The tenant that uses the key.
    pub tenant: String,
    /// The group of the key.
    pub group: Option<String>,
    /// The key may use paths of engines that show or change what clients share; `None` for what
    /// its group may.
    pub engine_admin: Option<bool>,
}

impl ApiKey {
    /// Creates a key without a group.
    pub fn new(secret: &str, tenant: &str) -> Self {
        let (secret, tenant) = (secret.to_owned(), tenant.to_owned());
        Self { secret, tenant, group: None, engine_admin: None }
    }
}

/// A set of keys. It is not changed, but replaced as a whole.
#[derive(Default)]
pub struct KeySet {
    /// By digest. The table is keyed with a random number, and a digest is found or not as a whole:
    /// the time of a lookup tells nothing about how much of a secret is right.
    keys: HashMap<[u8; 32], Entry>,
    /// The keys of other hosts, in the same form. They do not count as keys of clients: a host
    /// without those accepts all clients.
    peers: HashMap<[u8; 32], Entry>,
    /// Groups and tenants.
    resolved: Resolved,
    /// Who sends requests without any credential; `None` if they are refused.
    anonymous: Option<Arc<Identity>>,
    /// Without any key, requests are refused.
    is_closed: bool,
    /// The query of a request may have the key.
    query_key: bool,
}

/// A secret of a key.
struct Entry {
    identity: Arc<Identity>,
    /// When this secret expires; the key may do so before.
    expires: Option<SystemTime>,
}

/// The keys of the clients, which can be replaced. Without any key, all requests are accepted and
/// have no tenant. A clone shares the keys.
#[derive(Clone, Default)]
pub struct Keys {
    set: Arc<ArcSwap<KeySet>>,
    tokens: Option<Arc<TokenVerifier>>,
}

/// A request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthorized {
    /// The request has no key, or an unknown one.
    UnknownKey,
    /// The key, or this secret of it, has expired.
    ExpiredKey,
    /// The request has a token.
    Token(TokenRefusal),
}

/// A group that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown group `{0}`")]
pub struct UnknownGroup(pub String);

impl KeySet {
    /// Creates the set of the keys of a file. If it has none, all requests are refused.
    pub fn from_definitions(definitions: &Definitions) -> Self {
        let mut set =
            Self { resolved: Resolved::new(definitions), is_closed: true, ..Self::default() };
        set.keys.reserve(definitions.keys.len());
        definitions.keys.iter().for_each(|key| set.add_key(key));
        set
    }

    /// Adds a key of a file.
    fn add_key(&mut self, key: &KeySpec) {
        let none = Inherited::default();
        // The reader has refused unknown groups.
        let group = key.group.as_deref().and_then(|group| self.resolved.group(group));
        let group = group.unwrap_or(&none);
        let number = number_of(&format!("key\n{}", key.id));
        let identity = Arc::new(Identity {
            name: key.id.clone(),
            group: key.group.clone(),
            expires: key.expires,
            ..self.identity(
                (&key.tenant, number),
                key.grants.or(&group.grants),
                inherit(&key.limits, &group.limits),
                group,
            )
        });
        for (hash, expires) in &key.hashes {
            let entry = Entry { identity: Arc::clone(&identity), expires: *expires };
            self.keys.insert(hash.0, entry);
        }
    }

    fn identity(
        &self,
        (tenant, key): (&str, u64),
        grants: Grants,
        limits: Limits,
        group: &Inherited,
    ) -> Identity {
        Identity {
            tenant: Some(tenant.to_owned()),
            key,
            rights: grants.into(),
            accounts: self.resolved.accounts(key, limits, &group.shared, tenant),
            weight: self.resolved.weight(tenant),
            ..Identity::default()
        }
    }

    /// Adds a key of the configuration.
    ///
    /// # Errors
    /// If its group does not exist.
    pub fn add(&mut self, key: ApiKey) -> Result<(), UnknownGroup> {
        let digest = SecretHash::of_secret(&key.secret).0;
        let id = number(&digest);
        let mut identity = self.member(&key.tenant, key.group.as_deref(), id)?;
        identity.name = format!("env-{:08x}", id >> 32);
        if let Some(engine_admin) = key.engine_admin {
            identity.rights.engine_admin = engine_admin;
        }
        self.add_digest(digest, identity);
        Ok(())
    }

    /// Adds a key by its digest.
    pub fn add_digest(&mut self, digest: [u8; 32], identity: Identity) {
        self.keys.insert(digest, Entry { identity: Arc::new(identity), expires: None });
    }

    /// Accepts requests without any credential, with the rights and limits of a group. They share
    /// one account.
    ///
    /// # Errors
    /// If the group does not exist.
    pub fn accept_anonymous(&mut self, group: &str) -> Result<(), UnknownGroup> {
        let name = ANONYMOUS;
        let identity = self.member(name, Some(group), number_of(name))?;
        self.anonymous = Some(Arc::new(Identity { name: name.to_owned(), ..identity }));
        Ok(())
    }

    /// Checks that a group exists to which tokens without one of their own belong.
    ///
    /// # Errors
    /// If the group does not exist.
    pub fn check_group(&self, group: &str) -> Result<(), UnknownGroup> {
        self.resolved.group(group).map(drop).ok_or_else(|| UnknownGroup(group.to_owned()))
    }

    /// Sets whether the query of a request may have the key.
    pub fn set_query_key(&mut self, is_allowed: bool) {
        self.query_key = is_allowed;
    }

    /// Returns the number of secrets.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Returns the keys, each as its tenant and its name.
    fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let identities = self.keys.values().map(|entry| entry.identity.as_ref());
        identities.filter_map(|key| Some((key.tenant.as_deref()?, key.name.as_str())))
    }

    /// Refuses requests even if there are no keys at all.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Returns true if all requests are accepted, because there are no keys at all.
    pub fn is_open(&self) -> bool {
        !self.is_closed && self.keys.is_empty() && self.anonymous.is_none()
    }

    /// Returns the identity of the bearer of a token that another service has issued, with the
    /// rights and limits of a group; `None` if there is not such a group.
    pub fn identity_for(&self, tenant: &str, group: Option<&str>, name: &str) -> Option<Identity> {
        let identity =
            self.member(tenant, group, number_of(&format!("token\n{tenant}\n{name}"))).ok()?;
        Some(Identity { name: name.to_owned(), ..identity })
    }

    /// Returns the identity of a member of a group, without a name.
    fn member(
        &self,
        tenant: &str,
        group: Option<&str>,
        key: u64,
    ) -> Result<Identity, UnknownGroup> {
        let none = Inherited::default();
        let inherited = match group {
            None => &none,
            Some(name) => self.resolved.group(name).ok_or_else(|| UnknownGroup(name.to_owned()))?,
        };
        let (grants, limits) = (inherited.grants.clone(), inherited.limits.clone());
        let identity = self.identity((tenant, key), grants, limits, inherited);
        Ok(Identity { group: group.map(str::to_owned), ..identity })
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

    fn find(&self, secret: &str, now: SystemTime) -> Result<Arc<Identity>, Unauthorized> {
        let digest = SecretHash::of_secret(secret).0;
        let found = self.keys.get_key_value(&digest).or_else(|| self.peers.get_key_value(&digest));
        let (known, entry) = found.ok_or(Unauthorized::UnknownKey)?;
        if !bool::from(known.ct_eq(&digest)) {
            return Err(Unauthorized::UnknownKey);
        }
        let is_over = |expires: Option<SystemTime>| expires.is_some_and(|expires| expires <= now);
        // Only who has the secret learns that there was such a key.
        match is_over(entry.expires) || is_over(entry.identity.expires) {
            true => Err(Unauthorized::ExpiredKey),
            false => Ok(Arc::clone(&entry.identity)),
        }
    }
}

impl Keys {
    /// Creates the set of these keys. They have no groups.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        let mut set = KeySet::default();
        for key in keys {
            set.add(ApiKey { group: None, ..key }).ok(); // Fails only for groups.
        }
        Self::from_set(set)
    }

    /// Creates the handle of a set.
    pub fn from_set(set: KeySet) -> Self {
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

    /// Replaces all keys. The next request is checked with the new ones. Returns the keys that are
    /// gone, each as its tenant and its name.
    pub fn replace(&self, set: KeySet) -> Vec<(String, String)> {
        let set = Arc::new(set);
        let earlier = self.set.swap(Arc::clone(&set));
        let kept: HashSet<(&str, &str)> = set.names().collect();
        let gone: HashSet<(&str, &str)> =
            earlier.names().filter(|key| !kept.contains(key)).collect();
        gone.into_iter().map(|(tenant, name)| (tenant.to_owned(), name.to_owned())).collect()
    }

    /// Returns true if all requests are accepted, because there are no keys at all.
    pub fn is_open(&self) -> bool {
        self.tokens.is_none() && self.set.load().is_open()
    }

    /// Returns true if the query of a request may have the key.
    pub fn allows_query_key(&self) -> bool {
        self.set.load().query_key
    }

    /// Returns true if a key has this tenant.
    pub fn has_tenant(&self, tenant: &str) -> bool {
        let set = self.set.load();
        let mut identities = set.keys.values().map(|entry| &entry.identity).chain(&set.anonymous);
        identities.any(|identity| identity.tenant.as_deref() == Some(tenant))
    }

    /// Returns the identity of the key with this name, which is never a part of the secret; `None`
    /// if there is no such key. That of requests without any credential has a name as well.
    ///
    /// # Errors
    /// If the key has expired.
    pub fn named(&self, name: &str) -> Result<Option<Arc<Identity>>, Unauthorized> {
        let set = self.set.load();
        let mut identities = set.keys.values().map(|entry| &entry.identity).chain(&set.anonymous);
        let Some(found) = identities.find(|identity| identity.name == name) else {
            return Ok(None);
        };
        match found.expires.is_some_and(|expires| expires <= SystemTime::now()) {
            true => Err(Unauthorized::ExpiredKey),
            false => Ok(Some(Arc::clone(found))),
        }
    }

    /// Returns true if there is a group with this name.
    pub fn has_group(&self, group: &str) -> bool {
        self.set.load().check_group(group).is_ok()
    }

    /// Returns who sent a request with these headers.
    ///
    /// # Errors
    /// If there are keys, and the request does not have one of them: as `Authorization: Bearer`,
    /// `x-api-key` or `api-key`. The same if tokens are accepted, and the request has no valid one.
    pub fn identity(&self, headers: &HeaderMap) -> Result<Arc<Identity>, Unauthorized> {
        let set = self.set.load();
        if self.tokens.is_none() && set.is_open() {
            let peer = set.peer(headers);
            return Ok(peer.map_or_else(Arc::default, |peer| Arc::clone(&peer.identity)));
        }
        match offered(headers) {
            Offer::None => set.anonymous.clone().ok_or(Unauthorized::UnknownKey),
            Offer::Secret(secret) => self.identity_of(&set, secret, SystemTime::now()),
            Offer::Other => Err(Unauthorized::UnknownKey),
        }
    }

    fn identity_of(
        &self,
        set: &KeySet,
        secret: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Unauthorized> {
        let found = set.find(secret, now);
        match &self.tokens {
            Some(tokens)
                if found == Err(Unauthorized::UnknownKey) && TokenVerifier::is_token(secret) =>
            {
                let claims = tokens.verify(secret, now);
                let identity = claims.and_then(|claims| {
                    set.of_claims(&claims).map(Arc::new).ok_or(TokenError::NotAllowed)
                });
                identity.map_err(|error| {
                    tracing::info!(event = "token_refused", %error, "token refused");
                    Unauthorized::Token(error.refusal())
                })
            }
            Some(_) | None => found,
        }
    }
}

/// Returns the number of a key: the beginning of a digest.
fn number(digest: &[u8; 32]) -> u64 {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(beginning)
}

/// Returns the number of a key by a text that does not change.
fn number_of(text: &str) -> u64 {
    number(&Sha256::digest(text.as_bytes()).into())
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tenants: Vec<&str> =
            self.keys.values().filter_map(|entry| entry.identity.tenant.as_deref()).collect();
        tenants.sort_unstable();
        f.debug_struct("KeySet").field("tenants", &tenants).finish()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set.load().fmt(f)
    }
}

mod listing;
mod minute_limits;
mod peers;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod token_tests;
