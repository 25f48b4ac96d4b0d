//! Signatures of policies: `policy.sig` in a policy's folder proves that the holder of a key
//! released its component and its manifest.
//!
//! It is an Ed25519 signature, in hexadecimal or base64, of
//!
//! ```text
//!   "pointsman policy v1\n" ‖ SHA-256 of the component ‖ SHA-256 of the manifest
//! ```
//!
//! The first line separates the domain, so that the signature is not valid for anything else. The
//! component is what runs, and the manifest says what it may do: both are signed together, so that
//! neither can be combined with another one. Golden cases are not signed: they can only prevent a
//! version from being loaded, never change what it does, and an operator may add cases without
//! asking the author. The configuration belongs to the operator and is not signed either.
//!
//! Keys are in the formats of OpenSSL. The private key stays with the release process; hosts get
//! the public key:
//!
//! ```text
//!   openssl genpkey -algorithm ed25519 -out private.pem
//!   openssl pkey -in private.pem -pubout -out public.pem
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pem::Pem;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use crate::digest::{hex, unhex};
use crate::files::write_atomic;
use crate::limits::MAX_COMPONENT_BYTES;
use crate::version::manifest::{self, Manifest, ManifestError};

/// The name of the signature in a policy's folder.
pub const FILE: &str = "policy.sig";
/// The domain separator of our signatures.
const DOMAIN: &[u8] = b"pointsman policy v1\n";
/// Length of a public key in bytes.
const KEY_LEN: usize = 32;
/// Length of a signature in bytes.
const SIGNATURE_LEN: usize = 64;
/// The prefix of a public Ed25519 key as SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Maximum length of a key or a signature as text, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Maximum size of a manifest to sign, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// An error in a signature or in a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
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
    Key(KeyError),
    /// Text that is not a signature.
    #[error("invalid signature: expected 64 bytes, hex or base64")]
    Format,
    /// No trusted key is configured.
    #[error("no public key is configured to verify the signature")]
    NoKeys,
    /// A signature by another key, or of other files; the names of the trusted keys.
    #[error("untrusted signature: not made by {0} for this component and manifest")]
    Unknown(String),
}

/// The reason why a text is not a public key.
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

impl SignatureError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PrivateKey | Self::Key(_) => "key_invalid",
            Self::Format => "signature_invalid",
            Self::NoKeys | Self::Unknown(_) => "signature_untrusted",
        }
    }
}

/// An error of signing a policy.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The manifest is unreadable or invalid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
    /// The file is larger than the maximum.
    #[error("{}: file is larger than {max} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The maximum size in bytes.
        max: u64,
    },
    /// The text is not an unencrypted private Ed25519 key.
    #[error(
        "invalid private Ed25519 key: {0}; create one with `openssl genpkey -algorithm ed25519`"
    )]
    Key(PrivateKeyError),
}

/// The reason why a text is not a usable private key.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum PrivateKeyError {
    /// An encrypted key.
    #[error("encrypted; decrypt it with `openssl pkey -in FILE -out FILE`")]
    Encrypted,
    /// A text without a PKCS#8 key in PEM.
    #[error("no PEM section `PRIVATE KEY` (PKCS#8)")]
    NoPem,
    /// A key that the cryptographic library rejected, such as one of another algorithm.
    // ring implements its `Error` only with `std`.
    #[error("{0}")]
    Rejected(ring::error::KeyRejected),
}

/// A public Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Parses a key in PEM as written by OpenSSL, or its 32 bytes in hexadecimal or base64.
    ///
    /// # Errors
    /// If the text is not a public Ed25519 key.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(SignatureError::PrivateKey);
        }
        if text.contains("-----BEGIN") {
            let der = pem_section(text, "PUBLIC KEY").ok_or(SignatureError::Key(KeyError::Pem))?;
            let key =
                der.strip_prefix(&SPKI_PREFIX).ok_or(SignatureError::Key(KeyError::Algorithm))?;
            return key.try_into().map(Self).map_err(|_| SignatureError::Key(KeyError::Length));
        }
        decode(text).map(Self).ok_or(SignatureError::Key(KeyError::Format))
    }
}

/// Returns the message that is signed for a component and a manifest.
pub fn message(component: &[u8], manifest: &[u8]) -> Vec<u8> {
    [DOMAIN, &Sha256::digest(component)[..], &Sha256::digest(manifest)[..]].concat()
}

/// Returns the name of the key that made this signature of the [`message`].
///
/// # Errors
/// If the text is not a signature, or none of the keys made it.
pub fn verify<'a>(
    keys: &'a [(String, PublicKey)],
    message: &[u8],
    signature: &str,
) -> Result<&'a str, SignatureError> {
    let signature: [u8; SIGNATURE_LEN] = decode(signature).ok_or(SignatureError::Format)?;
    if keys.is_empty() {
        return Err(SignatureError::NoKeys);
    }
    let is_by = |key: &PublicKey| {
        UnparsedPublicKey::new(&ED25519, key.0).verify(message, &signature).is_ok()
    };
    keys.iter().find(|(_, key)| is_by(key)).map(|(name, _)| name.as_str()).ok_or_else(|| {
        let names: Vec<String> = keys.iter().map(|(name, _)| format!("`{name}`")).collect();
        SignatureError::Unknown(names.join(", "))
    })
}

/// Signs the policy in `dir` with a private key in PEM (PKCS#8) as written by OpenSSL. Writes
/// `policy.sig` atomically beside the manifest, and returns its path.
///
/// # Errors
/// If the policy cannot be read, the key is invalid, or the file cannot be written.
pub fn sign(dir: &Path, private_key: &str) -> Result<PathBuf, SignError> {
    let key = parse_private(private_key)?;
    let manifest = read(&dir.join(manifest::FILE), MAX_MANIFEST_BYTES)?;
    let component = read(&dir.join(Manifest::load(dir)?.file), MAX_COMPONENT_BYTES)?;
    let signature = hex(key.sign(&message(&component, &manifest)).as_ref());
    let file = dir.join(FILE);
    // Readable for everyone: it is released with the policy.
    if let Err(error) = write_atomic(&file, format!("{signature}\n").as_bytes(), 0o666) {
        return Err(SignError::File { file, error });
    }
    Ok(file)
}

fn parse_private(text: &str) -> Result<Ed25519KeyPair, SignError> {
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(SignError::Key(PrivateKeyError::Encrypted));
    }
    let der = pem_section(text, "PRIVATE KEY").ok_or(SignError::Key(PrivateKeyError::NoPem))?;
    // "Maybe unchecked": OpenSSL omits the public key, so it cannot be checked against the private
    // one.
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
        .map_err(|error| SignError::Key(PrivateKeyError::Rejected(error)))
}

fn read(file: &Path, max: u64) -> Result<Vec<u8>, SignError> {
    let mut content = Vec::new();
    // One byte more than the maximum, to see that there is more.
    let read = File::open(file).and_then(|opened| opened.take(max + 1).read_to_end(&mut content));
    match read {
        Err(error) => Err(SignError::File { file: file.to_owned(), error }),
        Ok(_) if content.len() as u64 > max => {
            Err(SignError::TooLarge { file: file.to_owned(), max })
        }
        Ok(_) => Ok(content),
    }
}

/// Returns the content of the first section with this label in a PEM file.
fn pem_section(text: &str, label: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let sections = pem::parse_many(text).ok()?;
    sections.into_iter().find(|section| section.tag() == label).map(Pem::into_contents)
}

/// Decodes exactly `LENGTH` bytes in hexadecimal or base64 (RFC 4648, section 4).
fn decode<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let text = text.trim();
    // The two encodings of the same number of bytes differ in length.
    let bytes = if text.len() == 2 * LENGTH { unhex(text) } else { decode_base64(text) };
    bytes?.try_into().ok()
}

/// Decodes base64 with padding. Line breaks are allowed; otherwise every value has one text only.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).ok()
}

#[cfg(test)]
mod tests;
