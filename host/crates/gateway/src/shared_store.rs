//! What several hosts know together of requests: who executes one, and who keeps a response.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The result of a call, which waits for the store for a bounded time.
pub type SharedCall<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreAway>> + Send + 'a>>;

/// The store does not respond, and what other hosts know is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store that hosts share does not respond")]
pub struct StoreAway;

/// A store that several hosts share. Each call waits for the store, for less than a second.
pub trait SharedStore: fmt::Debug + Send + Sync {
    /// Sets a value that is not there, for this time. Returns the value that is there otherwise.
    fn claim<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> SharedCall<'a, Option<Vec<u8>>>;

    /// Replaces a value by another one, or removes it. Returns false, without effect, if it is
    /// another one by now.
    fn replace<'a>(
        &'a self,
        key: &'a str,
        old: Vec<u8>,
        new: Option<(Vec<u8>, Duration)>,
    ) -> SharedCall<'a, bool>;

    /// Returns a value; `None` if it is not there.
    fn get<'a>(&'a self, key: &'a str) -> SharedCall<'a, Option<Vec<u8>>>;
}

/// The store that hosts share, and the name of this host.
#[derive(Debug, Clone)]
pub struct SharedHosts {
    /// The store.
    pub store: Arc<dyn SharedStore>,
    /// The name by which clients learn which host has what they ask for.
    pub host: Arc<str>,
}

/// Returns the hexadecimal digits of bytes, for a key.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
