//! Secrets of keys, and their digests.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

/// The beginning of secrets that the host makes, by which scanners for leaked secrets find them.
const SECRET_PREFIX: &str = "pm_";
/// The beginning of a digest in a keys file.
const HASH_PREFIX: &str = "sha256:";
/// Random bytes of a secret. They cannot be guessed, so that one round of SHA-256 protects them.
const SECRET_BYTES: usize = 32;

/// A secret that was just made.
pub struct NewSecret(String);

/// The digest of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash(pub(crate) [u8; 32]);

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("failed to read random numbers from the system")]
pub struct NoRandomness;

impl NewSecret {
    /// Makes a secret.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// Returns the secret, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the digest of the secret.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of_secret(&self.0)
    }
}

/// Returns a name for a key that has none: random, so that it tells nothing about the secret.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn new_id() -> Result<String, NoRandomness> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(format!("k_{:016x}", u64::from_be_bytes(bytes)))
}

impl SecretHash {
    /// Returns the digest of a secret.
    pub fn of_secret(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Reads a digest as it is in a keys file: `sha256:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(HASH_PREFIX)?.as_bytes();
        let mut digest = [0; 32];
        if digits.len() != 2 * digest.len() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            *byte = u8::try_from(high? << 4 | low?).ok()?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_digests_are_read_as_written() {
        let [one, two] = [0; 2].map(|_| NewSecret::generate().unwrap());
        assert_ne!(one.reveal(), two.reveal());
        assert!(one.reveal().starts_with("pm_") && one.reveal().len() == 46, "{}", one.reveal());
        assert_eq!(format!("{one:?}"), "NewSecret");
        let text = one.hash().to_string();
        assert_eq!(SecretHash::parse(&text), Some(one.hash()));
        assert_eq!(SecretHash::parse(&text.to_uppercase().replace("SHA", "sha")), Some(one.hash()));
        for invalid in ["", "sha256:", &text[7..], &text[..70], &format!("{text}0"), "sha256:é"] {
            assert_eq!(SecretHash::parse(invalid), None, "{invalid}");
        }
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(SecretHash::of_secret("abc").to_string(), known);
    }
}
