//! Public keys of the signers whose policies a host loads.

use crate::encoding::{decode, pem_section};

/// Length of a public key in bytes.
const KEY_LEN: usize = 32;
/// The prefix of a public Ed25519 key as SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The reason why a text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// A private key where a public one is expected.
    #[error(
        "expected a public key, found a private key; extract the public key with `openssl pkey -in \
         FILE -pubout`, and store the private key elsewhere"
    )]
    PrivateKey,
    /// Text that is not a public Ed25519 key.
    #[error(
        "invalid public Ed25519 key: {0}; create one with `openssl pkey -in private.pem -pubout`"
    )]
    Invalid(KeyError),
}

/// What is wrong with the text of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Damaged PEM.
    #[error("damaged PEM")]
    Pem,
    /// A key of another algorithm.
    #[error("key of another algorithm")]
    Algorithm,
    /// A key of the wrong length.
    #[error("wrong key length")]
    Length,
    /// Neither PEM, hexadecimal nor base64.
    #[error("expected PEM, or 32 bytes in hex or base64")]
    Format,
}

/// A public Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Parses a key in PEM as written by OpenSSL, or its 32 bytes in hexadecimal or base64.
    ///
    /// # Errors
    /// If the text is not a public Ed25519 key.
    pub fn parse(text: &str) -> Result<Self, PublicKeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(PublicKeyError::PrivateKey);
        }
        if text.contains("-----BEGIN") {
            let der =
                pem_section(text, "PUBLIC KEY").ok_or(PublicKeyError::Invalid(KeyError::Pem))?;
            let key = der
                .strip_prefix(&SPKI_PREFIX)
                .ok_or(PublicKeyError::Invalid(KeyError::Algorithm))?;
            return key.try_into().map(Self).map_err(|_| PublicKeyError::Invalid(KeyError::Length));
        }
        decode(text).map(Self).ok_or(PublicKeyError::Invalid(KeyError::Format))
    }

    /// Returns the key as it is used by Ed25519.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
