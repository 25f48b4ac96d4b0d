//! Tokens that another service has issued: JSON Web Tokens, as those of OpenID Connect.
//!
//! ```text
//!   Authorization: Bearer HEADER.PAYLOAD.SIGNATURE
//!     ──> seen before, with these keys? ──> form ──> key by `kid` ──> signature ──> claims, times
//! ```
//!
//! A token says with its header how it wants to be checked. It is not believed: the algorithms are
//! those of the configuration, a key is used only with algorithms of its own type, keys inside of
//! tokens and addresses of keys are ignored, and extensions that have to be understood are refused.

mod algorithm;
mod claims;
mod error;
mod jwk;
mod jws;
mod schedule;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use moka::sync::Cache;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use self::algorithm::TokenAlgorithm;
pub use self::claims::{ClaimPath, Claims};
pub use self::error::{TokenError, TokenRefusal};
pub use self::jwk::{KeySetError, MAX_KEY_SET, PublicKeys};
pub use self::schedule::Schedule;

use self::jws::Signed;

/// Maximum size of a token in bytes.
const MAX_TOKEN: usize = 8 << 10;
/// Memory of the tokens whose signatures have been checked, in bytes.
const TOKEN_CACHE: u64 = 16 << 20;
/// Memory of a cached token beside its claims: digest, entry and pointers.
const CACHE_ENTRY: usize = 256;

/// What a token must have, and what its claims mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// The claim `iss`.
    pub issuer: String,
    /// The claim `aud` has one of these.
    pub audiences: Vec<String>,
    /// Algorithms of signatures that are accepted.
    pub algorithms: Vec<TokenAlgorithm>,
    /// How much the clocks of issuer and host may differ.
    pub leeway: Duration,
    /// How long a key set is used after it was fetched.
    pub grace: Duration,
    /// The claim with the tenant.
    pub tenant_claim: ClaimPath,
    /// The claim with the group, or a list of groups; `None` if tokens name no group.
    pub group_claim: Option<ClaimPath>,
    /// The tenant of tokens without the claim.
    pub default_tenant: Option<String>,
    /// The group of tokens that name no known group.
    pub default_group: Option<String>,
}

/// Checks tokens with the keys of the issuer, which are replaced while it is used.
pub struct TokenVerifier {
    settings: TokenSettings,
    current: ArcSwapOption<Current>,
    /// Called when a token has a key that is not in the set, or there is no set.
    on_unknown_key: Box<dyn Fn() + Send + Sync>,
    /// Why the last fetch of the keys failed.
    problem: ArcSwapOption<String>,
    refused: AtomicU64,
}

/// The keys in use, and what was checked with them.
#[derive(Debug, Clone)]
struct Current {
    keys: PublicKeys,
    fetched: SystemTime,
    /// By digest of the token. It belongs to the keys: when one of them goes, so does the cache.
    checked: Cache<[u8; 32], Arc<Claims>>,
}

/// The state of the keys, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenStatus {
    /// The issuer.
    pub issuer: String,
    /// Number of keys; zero before the first key set.
    pub keys: usize,
    /// Age of the key set in seconds.
    pub age_s: Option<u64>,
    /// True if tokens can be checked: there is a key set, and it is not older than the grace time.
    pub usable: bool,
    /// Why the last fetch of the keys failed, if it did.
    pub problem: Option<String>,
    /// Tokens that were refused since the start.
    pub refused: u64,
}

impl TokenVerifier {
    /// Creates a verifier without keys. `on_unknown_key` is called by requests, often if many of
    /// them have bad tokens, and must not block.
    pub fn new(settings: TokenSettings, on_unknown_key: Box<dyn Fn() + Send + Sync>) -> Self {
        let (current, problem) = (ArcSwapOption::empty(), ArcSwapOption::empty());
        Self { settings, current, on_unknown_key, problem, refused: AtomicU64::new(0) }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &TokenSettings {
        &self.settings
    }

    /// Returns true if a credential has the form of a token, so that it is refused as one.
    pub fn is_token(credential: &str) -> bool {
        // The second is the beginning of every JSON object in base64url.
        credential.bytes().filter(|byte| *byte == b'.').count() == 2
            || credential.starts_with("eyJ")
    }

    /// Replaces the keys, which were fetched at this time.
    pub fn replace(&self, keys: PublicKeys, fetched: SystemTime) {
        let old = self.current.load();
        let checked = match &*old {
            Some(old) if keys.has_all_of(&old.keys) => old.checked.clone(),
            Some(_) | None => cache(),
        };
        self.current.store(Some(Arc::new(Current { keys, fetched, checked })));
        self.problem.store(None);
    }

    /// Notes why the keys cannot be fetched, for the status. Those that are there stay in use.
    pub fn set_problem(&self, problem: String) {
        self.problem.store(Some(Arc::new(problem)));
    }

    /// Returns the claims of a token.
    ///
    /// # Errors
    /// If the token is not valid now, or cannot be checked.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Arc<Claims>, TokenError> {
        let verified = self.check(token, now);
        if let Err(error) = &verified {
            self.refused.fetch_add(1, Ordering::Relaxed);
            if matches!(error, TokenError::UnknownKey | TokenError::NoKeys) {
                (self.on_unknown_key)();
            }
        }
        verified
    }

    fn check(&self, token: &str, now: SystemTime) -> Result<Arc<Claims>, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLarge);
        }
        let current = self.current.load();
        let usable = current.as_ref().filter(|current| self.is_usable(current, now));
        let current = usable.ok_or(TokenError::NoKeys)?;
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let claims = match current.checked.get(&digest) {
            Some(claims) => claims,
            None => {
                let signed = Signed::parse(token)?;
                let algorithm = signed.algorithm(&self.settings.algorithms)?;
                let key = current.keys.find(signed.key_id(), algorithm)?;
                if !signed.is_signed_by(key, algorithm) {
                    return Err(TokenError::Signature);
                }
                let claims = Arc::new(Claims::read(&signed.payload()?, &self.settings)?);
                // Before the times are checked: one that is valid later is not parsed again.
                current.checked.insert(digest, Arc::clone(&claims));
                claims
            }
        };
        claims.check_times(now, self.settings.leeway)?;
        Ok(claims)
    }

    fn is_usable(&self, current: &Current, now: SystemTime) -> bool {
        age(current.fetched, now) <= self.settings.grace
    }

    /// Returns the state of the keys.
    pub fn status(&self, now: SystemTime) -> TokenStatus {
        let current = self.current.load();
        let current = current.as_ref();
        TokenStatus {
            issuer: self.settings.issuer.clone(),
            keys: current.map_or(0, |current| current.keys.len()),
            age_s: current.map(|current| age(current.fetched, now).as_secs()),
            usable: current.is_some_and(|current| self.is_usable(current, now)),
            problem: self.problem.load().as_deref().cloned(),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Returns the age of a key set; zero if the clock was set back since it was fetched.
fn age(fetched: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(fetched).unwrap_or_default()
}

fn cache() -> Cache<[u8; 32], Arc<Claims>> {
    let weigh = |_: &[u8; 32], claims: &Arc<Claims>| {
        u32::try_from(claims.size() + CACHE_ENTRY).unwrap_or(u32::MAX)
    };
    Cache::builder().weigher(weigh).max_capacity(TOKEN_CACHE).build()
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
