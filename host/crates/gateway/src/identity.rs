//! Authentication: API keys identify tenants.

use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// The API keys of the clients. Without any key, all requests are accepted and have no tenant.
#[derive(Clone, Default)]
pub struct Keys {
    // Digests have the same length, so that the comparison takes the same time for every key.
    keys: Vec<([u8; 32], String)>,
}

/// The request has no key, or an unknown one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthorized;

impl Keys {
    /// Creates the set from pairs of key and tenant.
    pub fn new(keys: impl IntoIterator<Item = (String, String)>) -> Self {
        let digest =
            |(key, tenant): (String, String)| (Sha256::digest(key.as_bytes()).into(), tenant);
        Self { keys: keys.into_iter().map(digest).collect() }
    }

    /// Returns true if all requests are accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the tenant of a request with these headers.
    ///
    /// # Errors
    /// If there are keys, and the request does not have one of them as `Authorization: Bearer`.
    pub fn tenant(&self, headers: &HeaderMap) -> Result<Option<String>, Unauthorized> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let offered =
            headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (scheme, key) = offered.split_once(' ').unwrap_or(("", ""));
        let digest: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        // Without early exit: the time must not tell which key matches, or how much of it.
        let mut found = Choice::from(0);
        let mut position = 0u32;
        for (index, (known, _)) in (0u32..).zip(&self.keys) {
            let is_same = known.ct_eq(&digest);
            position.conditional_assign(&index, is_same);
            found |= is_same;
        }
        match self.keys.get(position as usize) {
            Some((_, tenant)) if bool::from(found) && scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(tenant.clone()))
            }
            _ => Err(Unauthorized),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenants: Vec<&str> = self.keys.iter().map(|(_, tenant)| tenant.as_str()).collect();
        f.debug_struct("Keys").field("tenants", &tenants).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_identify_tenants() {
        let keys = Keys::new([("k1".into(), "a".into()), ("k2".into(), "b".into())]);
        for (header, tenant) in [
            (Some("Bearer k1"), Ok(Some("a"))),
            (Some("bearer k2"), Ok(Some("b"))),
            (Some("Bearer  k2 "), Ok(Some("b"))),
            (Some("Bearer k3"), Err(Unauthorized)),
            (Some("Basic k1"), Err(Unauthorized)),
            (Some("k1"), Err(Unauthorized)),
            (Some("Bearer "), Err(Unauthorized)),
            (None, Err(Unauthorized)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            assert_eq!(
                keys.tenant(&headers),
                tenant.map(|tenant| tenant.map(str::to_owned)),
                "{header:?}"
            );
        }
        assert_eq!(Keys::default().tenant(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn debug_output_hides_keys() {
        let keys = Keys::new([("secret-key".into(), "team".into())]);
        assert_eq!(format!("{keys:?}"), r#"Keys { tenants: ["team"] }"#);
    }
}
