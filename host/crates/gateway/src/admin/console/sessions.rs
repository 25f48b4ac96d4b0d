//! Sessions of the console: what an operator gets for the admin token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use parking_lot::Mutex;
use pointsman_access::{NewSecret, NoRandomness, SecretHash};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Name of the cookie.
pub(super) const COOKIE: &str = "pointsman-session";
/// Maximum number of sessions; the oldest one ends for a new one.
const MAX_SESSIONS: usize = 32;
/// How long a session lasts.
pub(super) const LIFETIME: Duration = Duration::from_secs(43200);

/// The sessions of a listener.
#[derive(Debug, Default)]
pub(in crate::admin) struct Sessions {
    /// By the digests of their secrets: the time of a lookup tells nothing about a secret.
    table: Mutex<HashMap<SecretHash, Arc<Session>>>,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    /// What requests that change something have to carry besides the cookie.
    csrf: String,
    /// The name that the operator gave.
    pub(super) operator: Arc<str>,
    /// Tells sessions apart in the log; not a secret.
    pub(super) label: String,
    pub(super) expires: Instant,
    /// Cancelled when the session ends early.
    pub(super) end: CancellationToken,
}

impl Session {
    /// Returns the token that requests which change something have to carry.
    pub(super) fn csrf(&self) -> &str {
        &self.csrf
    }

    /// Returns true if this is the token of the session.
    pub(super) fn has_csrf(&self, given: &[u8]) -> bool {
        self.csrf.as_bytes().ct_eq(given).into()
    }
}

impl Sessions {
    /// Creates a session, and returns the secret for its cookie.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub(super) fn begin(&self, operator: Arc<str>) -> Result<NewSecret, NoRandomness> {
        let (secret, csrf) = (NewSecret::generate()?, NewSecret::generate()?);
        let session = Session {
            csrf: csrf.reveal().to_owned(),
            operator,
            // The end of such an id is random.
            label: Uuid::now_v7().simple().to_string()[24..].to_owned(),
            expires: Instant::now() + LIFETIME,
            end: CancellationToken::new(),
        };
        let mut table = self.table.lock();
        table.retain(|_, session| session.expires > Instant::now());
        if table.len() >= MAX_SESSIONS {
            let oldest = table.iter().min_by_key(|(_, session)| session.expires);
            if let Some(ended) = oldest.map(|(hash, _)| *hash).and_then(|hash| table.remove(&hash))
            {
                ended.end.cancel();
            }
        }
        table.insert(secret.hash(), Arc::new(session));
        Ok(secret)
    }

    /// Returns the session of a request.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<Arc<Session>> {
        let table = self.table.lock();
        let session = hashes(headers).find_map(|hash| table.get(&hash))?;
        (session.expires > Instant::now()).then(|| Arc::clone(session))
    }

    /// Ends the session of a request. Its event streams end, too.
    pub(super) fn end(&self, headers: &HeaderMap) {
        let mut table = self.table.lock();
        for hash in hashes(headers) {
            if let Some(session) = table.remove(&hash) {
                session.end.cancel();
            }
        }
    }
}

/// Returns the digests of the session cookies of a request: usually one.
fn hashes(headers: &HeaderMap) -> impl Iterator<Item = SecretHash> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
    let secrets = pairs.filter(|(name, _)| name.trim() == COOKIE).map(|(_, secret)| secret.trim());
    // More than one is of other hosts on the same machine, whose ports do not tell cookies apart.
    secrets.take(4).map(SecretHash::of_secret)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn cookie(secret: &str) -> HeaderMap {
        let value = format!("other=1; {COOKIE}={secret}; {COOKIE}2=x");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&value).unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_end_by_age_by_number_and_by_logout() {
        let sessions = Sessions::default();
        let first = sessions.begin("ann".into()).unwrap();
        let found = sessions.find(&cookie(first.reveal())).unwrap();
        assert_eq!(&*found.operator, "ann");
        assert!(found.has_csrf(found.csrf().as_bytes()));
        assert!(!found.has_csrf(b"") && !found.has_csrf(first.reveal().as_bytes()));
        assert!(sessions.find(&cookie("pm_guess")).is_none());
        assert!(sessions.find(&HeaderMap::new()).is_none());

        tokio::time::advance(Duration::from_secs(1)).await;
        let second = sessions.begin("ben".into()).unwrap();
        for _ in 0..MAX_SESSIONS - 1 {
            sessions.begin("more".into()).unwrap();
        }
        assert!(found.end.is_cancelled() && sessions.find(&cookie(first.reveal())).is_none());
        let found = sessions.find(&cookie(second.reveal())).unwrap();
        sessions.end(&cookie(second.reveal()));
        assert!(found.end.is_cancelled() && sessions.find(&cookie(second.reveal())).is_none());

        let third = sessions.begin("cid".into()).unwrap();
        tokio::time::advance(LIFETIME - Duration::from_secs(1)).await;
        assert!(sessions.find(&cookie(third.reveal())).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sessions.find(&cookie(third.reveal())).is_none());
    }
}
