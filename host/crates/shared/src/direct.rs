//! Values of which one host is the owner: single commands, for which the caller waits.
//!
//! Replicated values cannot say who came first. These can, at the price of a round trip, which a
//! caller waits for only so long.

use std::time::{Duration, Instant};

use redis::{Cmd, RedisError, Value};
use tokio::sync::Mutex;

use crate::connection::Connection;
use crate::settings::{Settings, SettingsError};

/// Maximum time of a call, with the connection that it may need.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after a failure in which calls fail at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Sets a value that is not there, and returns the one that is.
const CLAIM: &str = "local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false";

/// Replaces or removes a value if it is the expected one.
const REPLACE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2]) end
return 1";

/// Values of which one host is the owner. All calls wait for the store, half a second at most.
#[derive(Debug)]
pub struct Direct {
    settings: Settings,
    /// Maximum time of a call.
    limit: Duration,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    failed_at: Option<Instant>,
}

/// A call has failed: the store is away, or refuses it.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The store did not respond in time.
    #[error("the shared store did not respond within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// A call before this one has failed.
    #[error("the shared store is not available")]
    Away,
    /// The store cannot be connected to, or has refused the command. Contains no credentials.
    #[error("the shared store failed: {0}")]
    Failed(String),
    /// There is more to read than fits into memory.
    #[error("the shared store has more than {0} bytes of that")]
    TooLarge(usize),
    /// The store has replied something else than its commands do.
    #[error("unexpected reply of the shared store")]
    Reply,
}

impl Direct {
    /// Creates the values. Does not connect.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        Self::with_limit(settings, CALL_TIMEOUT)
    }

    /// Creates values of which a call may take as long as `limit`, a second at most.
    pub(crate) fn with_limit(settings: Settings, limit: Duration) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self { settings, limit, link: Mutex::default() })
    }

    /// Returns the prefix of all keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.settings.prefix
    }

    /// Sets a value that is not there, for this time, and returns `None`; returns the value that is
    /// there otherwise.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn claim(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<Option<Vec<u8>>, DirectError> {
        let mut command = self.script(CLAIM, key);
        command.arg(value).arg(millis(ttl));
        Ok(bytes(self.call(&command).await?))
    }

    /// Replaces a value by another one for this time, or removes it. Returns false, without effect,
    /// if the value is not `old`.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn replace(
        &self,
        key: &str,
        old: &[u8],
        new: Option<(&[u8], Duration)>,
    ) -> Result<bool, DirectError> {
        let mut command = self.script(REPLACE, key);
        command.arg(old);
        match new {
            Some((new, ttl)) => command.arg(millis(ttl)).arg(new),
            None => command.arg("").arg(""),
        };
        Ok(self.call(&command).await? == Value::Int(1))
    }

    /// Returns a value; `None` if it is not there.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, DirectError> {
        let mut command = redis::cmd("GET");
        command.arg(self.key(key));
        Ok(bytes(self.call(&command).await?))
    }

    fn script(&self, code: &str, key: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(code).arg(1).arg(self.key(key));
        command
    }

    fn key(&self, key: &str) -> String {
        format!("{}:one:{key}", self.settings.prefix)
    }

    /// Sends a command and waits for its reply.
    pub(crate) async fn call(&self, command: &Cmd) -> Result<Value, DirectError> {
        match tokio::time::timeout(self.limit, self.try_call(command)).await {
            Ok(result) => result,
            Err(_) => {
                // The lock is free: the call that held it was dropped. Others wait as long.
                let mut link = self.link.lock().await;
                *link = Link { connection: None, failed_at: Some(Instant::now()) };
                Err(DirectError::Timeout(self.limit))
            }
        }
    }

    async fn try_call(&self, command: &Cmd) -> Result<Value, DirectError> {
        let connection = {
            let mut link = self.link.lock().await;
            if link.failed_at.is_some_and(|at| at.elapsed() < PAUSE) {
                return Err(DirectError::Away);
            }
            if link.connection.is_none() {
                let opened = Connection::open(&self.settings).await;
                link.failed_at = opened.is_err().then(Instant::now);
                let opened = opened.map_err(|error| DirectError::Failed(error.to_string()))?;
                link.connection = Some(opened);
            }
            link.connection.clone().ok_or(DirectError::Away)?
        };
        let result = connection.query(command).await;
        if let Err(error) = &result
            && !is_refusal(error)
        {
            *self.link.lock().await = Link { connection: None, failed_at: Some(Instant::now()) };
        }
        result.map_err(|error| DirectError::Failed(error.to_string()))
    }
}

/// Returns true if the server works, so that another connection would not help.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("OOM" | "BUSY" | "LOADING"))
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

pub(crate) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 50)
}
