//! Signatures of policies: `policy.sig` in a policy's folder says that the holder of a key stands for its component and its
//! manifest.
//!
//! It is an ed25519 signature, in hexadecimal or base64, of
//!
//! ```text
//!   "pointsman policy v1\n" ‖ SHA-256 of the component ‖ SHA-256 of the manifest
//! ```
//!
//! The first line keeps a signature from meaning anything elsewhere. The component is what runs, and the manifest says what
//! it may do: both are signed together, so that neither can be used with another one. Golden cases are not signed: they can
//! only keep a policy from service, never change what it does, and an operator adds cases of their own site without asking
//! the author. Nor is the configuration: it is the operator's.
//!
//! Keys are those of OpenSSL. The private key stays where policies are released; hosts are given the public one:
//!
//! ```text
//!   openssl genpkey -algorithm ed25519 -out private.pem
//!   openssl pkey -in private.pem -pubout -out public.pem
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use crate::component::{MOST_BYTES, hex};
use crate::manifest::{self, Manifest, ManifestError};

/// Name of the signature in a policy's folder.
pub const FILE: &str = "policy.sig";
/// What keeps our signatures apart from all others.
const DOMAIN: &[u8] = b"pointsman policy v1\n";
/// Length of a public key.
const KEY: usize = 32;
/// Length of a signature.
const SIGNATURE: usize = 64;
/// What a public ed25519 key begins with as SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// No key and no signature is longer than this as text.
const MOST_TEXT: u64 = 16 << 10;
/// Longest manifest that is signed.
const MOST_MANIFEST: u64 = 1 << 20;

/// Why a signature is not accepted, or a key is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The operator gave the wrong half.
    #[error(
        "it is a private key, and a public one is wanted: `openssl pkey -in FILE -pubout`; keep the private one elsewhere"
    )]
    PrivateKey,
    /// Not a key that we know.
    #[error(
        "it is no public ed25519 key: {0}; make one with `openssl pkey -in private.pem -pubout`"
    )]
    Key(&'static str),
    /// Not a signature.
    #[error("it is no signature: 64 bytes as hexadecimal or base64 are wanted")]
    Format,
    /// There is no key to check with.
    #[error("there is no public key to check it with")]
    NoKeys,
    /// No key fits.
    #[error("it was made by none of the keys {0}, or for another component or manifest")]
    Unknown(String),
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The key is none that we can use.
    #[error(
        "it is no private ed25519 key: {0}; make one with `openssl genpkey -algorithm ed25519`"
    )]
    Key(String),
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY]);

impl PublicKey {
    /// A key as OpenSSL writes it (PEM), or its 32 bytes in hexadecimal or base64.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(SignatureError::PrivateKey);
        }
        if text.contains("-----BEGIN") {
            let der = pem(text, "PUBLIC KEY").ok_or(SignatureError::Key("the PEM is damaged"))?;
            let key =
                der.strip_prefix(&SPKI).ok_or(SignatureError::Key("it is of another algorithm"))?;
            return key
                .try_into()
                .map(Self)
                .map_err(|_| SignatureError::Key("it has the wrong length"));
        }
        bytes(text)
            .map(Self)
            .ok_or(SignatureError::Key("PEM, or 32 bytes as hexadecimal or base64, are wanted"))
    }
}

/// What is signed.
pub fn message(component: &[u8], manifest: &[u8]) -> Vec<u8> {
    [DOMAIN, &Sha256::digest(component)[..], &Sha256::digest(manifest)[..]].concat()
}

/// Which of the keys made this signature of the [`message`].
///
/// # Errors
/// When none did, or the text is no signature.
pub fn verify<'a>(
    keys: &'a [(String, PublicKey)],
    message: &[u8],
    signature: &str,
) -> Result<&'a str, SignatureError> {
    let signature: [u8; SIGNATURE] = bytes(signature).ok_or(SignatureError::Format)?;
    if keys.is_empty() {
        return Err(SignatureError::NoKeys);
    }
    let made_it = |key: &PublicKey| {
        UnparsedPublicKey::new(&ED25519, key.0).verify(message, &signature).is_ok()
    };
    keys.iter().find(|(_, key)| made_it(key)).map(|(name, _)| name.as_str()).ok_or_else(|| {
        let names: Vec<String> = keys.iter().map(|(name, _)| format!("`{name}`")).collect();
        SignatureError::Unknown(names.join(", "))
    })
}

/// Sign the policy in a folder with a private key as OpenSSL writes it (PKCS#8 PEM): write `policy.sig`, in one step, beside
/// the manifest. Gives the file.
///
/// # Errors
/// When the policy cannot be read, the key is none, or the file cannot be written.
pub fn sign(dir: &Path, private_key: &str) -> Result<PathBuf, SignError> {
    let key = parse_private(private_key)?;
    let manifest = read(&dir.join(manifest::FILE), MOST_MANIFEST)?;
    let component = read(&dir.join(Manifest::load(dir)?.file), MOST_BYTES)?;
    let signature = hex(key.sign(&message(&component, &manifest)).as_ref());
    let file = dir.join(FILE);
    let new = dir.join(format!(".{FILE}.{}.new", std::process::id()));
    let written = write_whole(&new, &file, &signature);
    if let Err(error) = written {
        // What is there of it is no use to anybody.
        drop(fs::remove_file(&new));
        return Err(SignError::File { file, error });
    }
    Ok(file)
}

fn parse_private(text: &str) -> Result<Ed25519KeyPair, SignError> {
    let refuse = |why: &str| SignError::Key(why.to_owned());
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(refuse("it is encrypted; decrypt it with `openssl pkey -in FILE -out FILE`"));
    }
    let der =
        pem(text, "PRIVATE KEY").ok_or_else(|| refuse("no PEM with a `PRIVATE KEY` (PKCS#8)"))?;
    // OpenSSL leaves out the public half, which therefore cannot be compared.
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|error| refuse(&error.to_string()))
}

fn read(file: &Path, most: u64) -> Result<Vec<u8>, SignError> {
    let content = (|| {
        let mut content = Vec::new();
        File::open(file)?.take(most + 1).read_to_end(&mut content)?;
        if content.len() as u64 > most {
            return Err(io::Error::other(format!(
                "it is longer than {most} bytes, which are the limit"
            )));
        }
        Ok(content)
    })();
    content.map_err(|error| SignError::File { file: file.to_owned(), error })
}

fn write_whole(new: &Path, file: &Path, signature: &str) -> io::Result<()> {
    let mut content = File::options().write(true).create_new(true).open(new)?;
    writeln!(content, "{signature}")?;
    content.sync_all()?;
    fs::rename(new, file)
}

/// The first section with this label of a PEM file.
fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (content, _) = rest.split_once(&format!("-----END {label}-----"))?;
    base64(content)
}

/// So many bytes in hexadecimal or base64.
fn bytes<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let text = text.trim();
    // Which of the two it is, its length says.
    let bytes = if text.len() == 2 * LENGTH { unhex(text) } else { base64(text) };
    bytes?.try_into().ok()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
        .collect()
}

/// Base64 with its padding (RFC 4648, section 4), which lines may break.
fn base64(text: &str) -> Option<Vec<u8>> {
    if text.len() as u64 > MOST_TEXT {
        return None;
    }
    let letters: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let padding = letters.iter().rev().take_while(|letter| **letter == b'=').count();
    if !letters.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let value = |letter: u8| {
        Some(u32::from(match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let letters = &letters[..letters.len() - padding];
    let mut decoded = Vec::with_capacity(letters.len() * 3 / 4);
    for group in letters.chunks(4) {
        let mut bits = 0;
        for letter in group {
            bits = bits << 6 | value(*letter)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, whole @ ..] = bits.to_be_bytes();
        let (bytes, rest) = whole.split_at(group.len() - 1);
        // Bits that are no part of any byte have to be zero: one signature, one text.
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        decoded.extend(bytes);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests;
