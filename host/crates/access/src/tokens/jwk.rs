//! The public keys of an issuer: a JSON Web Key Set.

use std::fmt;

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;

use super::algorithm::{KeyType, TokenAlgorithm};
use super::error::TokenError;

/// Maximum size of a key set in bytes.
pub const MAX_KEY_SET: usize = 256 << 10;
/// Maximum number of keys of a set.
const MAX_KEYS: usize = 64;

/// A key set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// It exceeds the maximum size.
    #[error("the key set exceeds {} bytes", MAX_KEY_SET)]
    TooLarge,
    /// It is not a JSON Web Key Set.
    #[error("not a JSON Web Key Set: {0}")]
    Json(#[from] serde_json::Error),
    /// It has too many keys.
    #[error("the key set has more than {} keys", MAX_KEYS)]
    TooManyKeys,
    /// It has no key for an algorithm that is accepted.
    #[error("the key set has no key for signatures with one of the accepted algorithms")]
    NoUsableKey,
}

/// The public keys of an issuer.
#[derive(Debug, Clone)]
pub struct PublicKeys {
    keys: Vec<PublicKey>,
}

/// One of them.
#[derive(Clone)]
pub(super) struct PublicKey {
    id: Option<String>,
    key_type: KeyType,
    /// The only algorithm that the key is for, if its issuer says so.
    algorithm: Option<TokenAlgorithm>,
    /// The numbers of the key, as in the set: the same ones are the same key.
    numbers: [Option<String>; 4],
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// A key as it is written. Further members are ignored.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl PublicKeys {
    /// Reads a key set. Keys for other purposes and of unknown types are left out.
    ///
    /// # Errors
    /// If it has no key for one of the algorithms, or exceeds a limit.
    pub fn parse(text: &[u8], algorithms: &[TokenAlgorithm]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET {
            return Err(KeySetError::TooLarge);
        }
        let Set { keys } = serde_json::from_slice(text)?;
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooManyKeys);
        }
        // One by one, so that a key of an unknown form does not hide the others.
        let keys =
            keys.into_iter().filter_map(|key| PublicKey::new(serde_json::from_value(key).ok()?));
        let keys: Vec<PublicKey> =
            keys.filter(|key| algorithms.iter().any(|algorithm| key.is_for(*algorithm))).collect();
        if keys.is_empty() { Err(KeySetError::NoUsableKey) } else { Ok(Self { keys }) }
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns true if there is no key. A set that was parsed has one.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns true if all keys of the other set are in this one, under the same ids.
    pub(crate) fn has_all_of(&self, other: &Self) -> bool {
        other.keys.iter().all(|key| self.keys.iter().any(|own| own.is_same_as(key)))
    }

    /// Returns the key with this id, or the only one for the algorithm if the token has no id.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: TokenAlgorithm,
    ) -> Result<&PublicKey, TokenError> {
        let mut keys = self.keys.iter().filter(|key| key.is_for(algorithm));
        match id {
            Some(id) => {
                keys.find(|key| key.id.as_deref() == Some(id)).ok_or(TokenError::UnknownKey)
            }
            // All keys in turn would multiply the work that a bad token makes.
            None => match (keys.next(), keys.next()) {
                (Some(key), None) => Ok(key),
                (Some(_), Some(_)) => Err(TokenError::NoKeyId),
                (None, _) => Err(TokenError::UnknownKey),
            },
        }
    }
}

impl PublicKey {
    /// Returns `None` if it is not a public key for signatures of a known type.
    fn new(jwk: Jwk) -> Option<Self> {
        let Jwk { kty, kid: id, usage, key_ops, alg, crv, n, e, x, y } = jwk;
        let is_for_signatures = usage.is_none_or(|usage| usage == "sig")
            && key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !is_for_signatures {
            return None;
        }
        let text = |number: &Option<String>| number.clone();
        let (key_type, key) = match (kty.as_str(), crv.as_deref()) {
            ("RSA", _) => {
                (KeyType::Rsa, DecodingKey::from_rsa_components(&text(&n)?, &text(&e)?).ok()?)
            }
            ("EC", Some("P-256")) => {
                (KeyType::P256, DecodingKey::from_ec_components(&text(&x)?, &text(&y)?).ok()?)
            }
            ("EC", Some("P-384")) => {
                (KeyType::P384, DecodingKey::from_ec_components(&text(&x)?, &text(&y)?).ok()?)
            }
            ("OKP", Some("Ed25519")) => {
                (KeyType::Ed25519, DecodingKey::from_ed_components(&text(&x)?).ok()?)
            }
            _ => return None,
        };
        let algorithm = match alg {
            // A key for an algorithm that the host does not have cannot be used.
            Some(name) => Some(TokenAlgorithm::from_name(&name)?),
            None => None,
        };
        Some(Self { id, key_type, algorithm, numbers: [n, e, x, y], key })
    }

    fn is_for(&self, algorithm: TokenAlgorithm) -> bool {
        self.key_type == algorithm.key_type() && self.algorithm.is_none_or(|own| own == algorithm)
    }

    fn is_same_as(&self, other: &Self) -> bool {
        (&self.id, self.key_type, self.algorithm, &self.numbers)
            == (&other.id, other.key_type, other.algorithm, &other.numbers)
    }

    pub(super) fn key(&self) -> &DecodingKey {
        &self.key
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("id", &self.id)
            .field("key_type", &self.key_type)
            .finish_non_exhaustive()
    }
}
