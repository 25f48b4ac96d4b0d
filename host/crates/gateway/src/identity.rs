//! Authentication: API keys identify tenants.

use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

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

/// Who sent a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The tenant; `None` if the host has no keys.
    pub tenant: Option<String>,
    /// What distinguishes the key from others, also over a restart: the beginning of its SHA-256
    /// digest. Zero if the host has no keys.
    pub key: u64,
    /// As [`ApiKey::engine_admin`]; false if the host has no keys.
    pub engine_admin: bool,
}

/// The API keys of the clients. Without any key, all requests are accepted and have no tenant.
#[derive(Clone, Default)]
pub struct Keys {
    // Digests have the same length, so that the comparison takes the same time for every key.
    keys: Vec<([u8; 32], Identity)>,
}

/// The request has no key, or an unknown one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthorized;

impl Keys {
    /// Creates the set of these keys.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        let entry = |key: ApiKey| {
            let digest: [u8; 32] = Sha256::digest(key.secret.as_bytes()).into();
            let mut id = [0; 8];
            id.copy_from_slice(&digest[..8]);
            let ApiKey { tenant, engine_admin, .. } = key;
            let key = u64::from_be_bytes(id);
            (digest, Identity { tenant: Some(tenant), key, engine_admin })
        };
        Self { keys: keys.into_iter().map(entry).collect() }
    }

    /// Returns true if all requests are accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns who sent a request with these headers.
    ///
    /// # Errors
    /// If there are keys, and the request does not have one of them: as `Authorization: Bearer`,
    /// `x-api-key` or `api-key`.
    pub fn identity(&self, headers: &HeaderMap) -> Result<Identity, Unauthorized> {
        if self.keys.is_empty() {
            return Ok(Identity::default());
        }
        let digest: [u8; 32] = Sha256::digest(offered(headers).as_bytes()).into();
        // Without early exit: the time must not tell which key matches, or how much of it.
        let mut found = Choice::from(0);
        let mut position = 0u32;
        for (index, (known, _)) in (0u32..).zip(&self.keys) {
            let is_same = known.ct_eq(&digest);
            position.conditional_assign(&index, is_same);
            found |= is_same;
        }
        match self.keys.get(position as usize) {
            Some((_, identity)) if bool::from(found) => Ok(identity.clone()),
            _ => Err(Unauthorized),
        }
    }
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

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenants: Vec<&str> =
            self.keys.iter().filter_map(|(_, identity)| identity.tenant.as_deref()).collect();
        f.debug_struct("Keys").field("tenants", &tenants).finish()
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
            let found = keys.identity(&headers).map(|identity| identity.tenant);
            assert_eq!(found, tenant.map(|tenant| tenant.map(str::to_owned)), "{value}");
        }
        assert_eq!(Keys::default().identity(&HeaderMap::new()), Ok(Identity::default()));
        let ids = ["k1", "k2"].map(|secret| {
            let headers = [(AUTHORIZATION, format!("Bearer {secret}").parse().unwrap())];
            keys.identity(&HeaderMap::from_iter(headers)).unwrap().key
        });
        assert!(ids[0] != ids[1] && !ids.contains(&0), "{ids:?}");
    }

    #[test]
    fn debug_output_hides_keys() {
        let keys = Keys::new([ApiKey::new("secret-key", "team")]);
        assert_eq!(format!("{keys:?}"), r#"Keys { tenants: ["team"] }"#);
    }
}
