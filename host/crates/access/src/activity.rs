//! What keys have done since the start of the process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::accounts::Refusal;
use crate::identity::Identity;
use crate::limits::{AccountId, Limit};

/// Maximum number of keys that are remembered. The one that was used the longest time ago is
/// forgotten for a new one.
const MAX_KEYS: usize = 4096;

/// What keys have done since the start of the process.
#[derive(Debug, Default)]
pub struct KeyActivity {
    keys: Mutex<HashMap<u64, Activity>>,
    changes: AtomicU64,
}

/// What a key has done.
#[derive(Debug, Clone)]
pub struct Activity {
    /// The key, as it was at its last request.
    pub identity: Arc<Identity>,
    /// Requests that were counted on its accounts, or refused by a limit.
    pub requests: u64,
    /// Requests that a limit has refused.
    pub refused: u64,
    /// When its last request was counted, in milliseconds since 1970.
    pub last_used_unix_ms: u64,
    /// The last request that a limit has refused.
    pub last_refusal: Option<LastRefusal>,
}

/// When a request was refused, and by which limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRefusal {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The account that has the limit.
    pub account: AccountId,
    /// The limit.
    pub limit: Limit,
}

impl KeyActivity {
    /// Notes a request. Without effect if the host has no keys.
    pub fn note_request(&self, identity: &Arc<Identity>, unix_ms: u64) {
        if identity.tenant.is_none() {
            return;
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        let mut keys = self.keys.lock();
        if keys.len() >= MAX_KEYS && !keys.contains_key(&identity.key) {
            let oldest = keys.iter().min_by_key(|(_, activity)| activity.last_used_unix_ms);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                keys.remove(&oldest);
            }
        }
        let activity = keys.entry(identity.key).or_insert_with(|| Activity {
            identity: Arc::clone(identity),
            requests: 0,
            refused: 0,
            last_used_unix_ms: 0,
            last_refusal: None,
        });
        activity.requests += 1;
        activity.last_used_unix_ms = activity.last_used_unix_ms.max(unix_ms);
        if !Arc::ptr_eq(&activity.identity, identity) {
            activity.identity = Arc::clone(identity);
        }
    }

    /// Notes that a limit has refused a request that was noted before.
    pub fn note_refusal(&self, identity: &Identity, refusal: &Refusal, unix_ms: u64) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        if let Some(activity) = self.keys.lock().get_mut(&identity.key) {
            activity.refused += 1;
            let (account, limit) = (refusal.account.clone(), refusal.limit);
            activity.last_refusal = Some(LastRefusal { unix_ms, account, limit });
        }
    }

    /// Returns a number that changes with everything that is noted.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Returns what each key has done, by [`Identity::key`].
    pub fn snapshot(&self) -> HashMap<u64, Activity> {
        self.keys.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(key: u64) -> Arc<Identity> {
        Arc::new(Identity { key, tenant: Some("acme".to_owned()), ..Identity::default() })
    }

    #[test]
    fn requests_and_refusals_are_counted_by_key() {
        let activity = KeyActivity::default();
        let refusal = Refusal {
            account: AccountId::Tenant("acme".to_owned()),
            limit: Limit::Concurrent,
            max: 1,
            asked: 1,
            retry_after: None,
        };
        activity.note_refusal(&identity(1), &refusal, 5);
        activity.note_request(&identity(1), 10);
        activity.note_request(&identity(1), 20);
        activity.note_refusal(&identity(1), &refusal, 21);
        let changes = activity.changes();
        activity.note_request(&Arc::default(), 30);
        assert_eq!(activity.changes(), changes, "the host has no keys");
        activity.note_request(&identity(1), 20);
        assert_ne!(activity.changes(), changes);
        let snapshot = activity.snapshot();
        assert_eq!(snapshot.len(), 1, "{snapshot:?}");
        let found = &snapshot[&1];
        assert_eq!((found.requests, found.refused, found.last_used_unix_ms), (3, 1, 20));
        let LastRefusal { unix_ms, account, limit } = found.last_refusal.clone().unwrap();
        assert_eq!((unix_ms, account, limit), (21, refusal.account, Limit::Concurrent));
    }

    #[test]
    fn the_oldest_key_is_forgotten_for_a_new_one() {
        let activity = KeyActivity::default();
        for key in 0..MAX_KEYS as u64 {
            activity.note_request(&identity(key), 1000 + key);
        }
        activity.note_request(&identity(0), 9000);
        activity.note_request(&identity(u64::MAX), 9001);
        let snapshot = activity.snapshot();
        assert_eq!(snapshot.len(), MAX_KEYS);
        assert!(snapshot.contains_key(&0) && snapshot.contains_key(&u64::MAX));
        assert!(!snapshot.contains_key(&1));
    }
}
