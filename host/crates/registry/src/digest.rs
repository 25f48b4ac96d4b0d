//! Digests of what registries send.

use pointsman_spec::OciDigest;
use sha2::{Digest as _, Sha256};

/// Returns the digest of `bytes`.
pub fn digest(bytes: &[u8]) -> OciDigest {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    match format!("sha256:{hex}").parse() {
        Ok(digest) => digest,
        // 64 digits in lower case.
        Err(error) => unreachable!("{error}"),
    }
}
