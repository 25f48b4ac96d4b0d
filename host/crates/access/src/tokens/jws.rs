//! The form of a signed token: three parts in base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::algorithm::TokenAlgorithm;
use super::error::TokenError;
use super::jwk::PublicKey;

/// The kinds of tokens (`typ`) that are accepted, in lower case. Tokens for other purposes of the
/// same issuer, such as those of a logout, are not.
const KINDS: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

/// A token in its parts. Nothing of it is proven yet.
#[derive(Debug)]
pub(super) struct Signed<'t> {
    header: Header,
    /// What is signed: header and payload.
    message: &'t str,
    payload: &'t str,
    signature: &'t str,
}

/// What is read of the header. A member that occurs twice is an error. `jwk`, `jku`, `x5u` and
/// `x5c`, by which a token would bring its own key, are not read.
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
    b64: Option<IgnoredAny>,
}

impl<'t> Signed<'t> {
    pub(super) fn parse(token: &'t str) -> Result<Self, TokenError> {
        let mut parts = token.split('.');
        let (Some(first), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form("number of parts"));
        };
        let message = &token[..first.len() + 1 + payload.len()];
        let header: Header = decode(first, "header")?;
        if header.crit.is_some() {
            return Err(TokenError::Header("crit"));
        }
        if header.b64.is_some() {
            return Err(TokenError::Header("b64"));
        }
        let kind = header.typ.as_ref().map(|kind| kind.to_ascii_lowercase());
        if kind.is_some_and(|kind| !KINDS.contains(&kind.as_str())) {
            return Err(TokenError::Header("typ"));
        }
        Ok(Self { header, message, payload, signature })
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// Returns the algorithm of the signature, if it is one of these.
    pub(super) fn algorithm(
        &self,
        accepted: &[TokenAlgorithm],
    ) -> Result<TokenAlgorithm, TokenError> {
        let algorithm = TokenAlgorithm::from_name(&self.header.alg);
        algorithm.filter(|found| accepted.contains(found)).ok_or(TokenError::Algorithm)
    }

    pub(super) fn is_signed_by(&self, key: &PublicKey, algorithm: TokenAlgorithm) -> bool {
        let (message, algorithm) = (self.message.as_bytes(), algorithm.of_library());
        // An error is a signature that is not base64url.
        jsonwebtoken::crypto::verify(self.signature, message, key.key(), algorithm).unwrap_or(false)
    }

    pub(super) fn payload(&self) -> Result<Value, TokenError> {
        decode(self.payload, "payload")
    }
}

fn decode<T: DeserializeOwned>(part: &str, name: &'static str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form(name))?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Form(name))
}
