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

use std::io;
use std::path::{Path, PathBuf};

use pointsman_files::{ReadError, read_regular, write_atomic};
use pointsman_spec::PublicKey;
use pointsman_spec::encoding::{decode, pem_section};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::limits::{MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES};
use crate::version::manifest::{self, Manifest, ManifestError};

/// The name of the signature in a policy's folder.
pub const FILE: &str = "policy.sig";
/// The domain separator of our signatures.
const DOMAIN: &[u8] = b"pointsman policy v1\n";
/// Length of a signature in bytes.
const SIGNATURE_LEN: usize = 64;

/// An error in a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
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

impl SignatureError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
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
    /// A file cannot be read, or is larger than the maximum.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The signature cannot be written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The error of the file system.
        error: io::Error,
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
        UnparsedPublicKey::new(&ED25519, key.as_bytes()).verify(message, &signature).is_ok()
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
    let manifest = read_regular(&dir.join(manifest::FILE), MAX_MANIFEST_BYTES)?;
    let component = read_regular(&dir.join(Manifest::load(dir)?.file), MAX_COMPONENT_BYTES)?;
    let signature = hex(key.sign(&message(&component, &manifest)).as_ref());
    let file = dir.join(FILE);
    // Readable for everyone: it is released with the policy.
    if let Err(error) = write_atomic(&file, format!("{signature}\n").as_bytes(), 0o666) {
        return Err(SignError::File { file, error: error.into() });
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

#[cfg(test)]
mod tests;
