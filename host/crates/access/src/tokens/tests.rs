//! Tests of tokens: with valid ones, and with all kinds of bad ones.

mod claims;
mod hostile;
pub(crate) mod issuer;
mod keys;

use std::sync::atomic::AtomicUsize;
use std::time::UNIX_EPOCH;

use super::*;

/// The time of the tests in seconds since 1970.
const NOW_S: u64 = 1_800_000_000;

fn now() -> SystemTime {
    after(0)
}

/// Returns the time so many seconds after that of the tests.
fn after(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S + seconds)
}

/// A verifier, and how often it has asked for new keys.
struct Tested {
    verifier: TokenVerifier,
    wanted: Arc<AtomicUsize>,
}

impl Tested {
    fn new(settings: TokenSettings, keys: PublicKeys) -> Self {
        let wanted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&wanted);
        let on_unknown_key = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let verifier = TokenVerifier::new(settings, Box::new(on_unknown_key));
        verifier.replace(keys, now());
        Self { verifier, wanted }
    }

    fn verify(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        self.verifier.verify(token, now())
    }

    fn wanted(&self) -> usize {
        self.wanted.load(Ordering::Relaxed)
    }
}
