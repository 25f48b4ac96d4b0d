//! How many processes use the store: each of them says now and then that it is there.

use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use crate::connection::{Connection, StoreError};

/// Time between two times at which a process says that it is there.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a process counts as gone that has not said it any more.
const GONE_AFTER: Duration = Duration::from_secs(15);

/// Notes a process, forgets those that are gone, and returns how many there are.
const CODE: &str = "local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 1000)
return redis.call('ZCARD', KEYS[1])";

/// When this process has said last that it is there.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    announced: Option<Instant>,
}

impl Presence {
    /// Says that the process `replica` is there, if it is time for it, and returns the number of
    /// processes. A store that refuses it is asked again later.
    ///
    /// # Errors
    /// If the store fails, or refuses the script.
    pub(crate) async fn announce(
        &mut self,
        connection: &Connection,
        prefix: &str,
        replica: u64,
    ) -> Result<Option<u32>, StoreError> {
        if self.announced.is_some_and(|announced| announced.elapsed() < INTERVAL) {
            return Ok(None);
        }
        self.announced = Some(Instant::now());
        match connection.limited_query(&command(prefix, replica)).await? {
            Value::Int(count) => Ok(u32::try_from(count).ok()),
            _ => Err(StoreError::Reply),
        }
    }
}

/// Returns the command that counts the processes, and changes nothing.
pub(crate) fn count_command(prefix: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg("return redis.call('ZCARD', KEYS[1])").arg(1).arg(key(prefix));
    command
}

fn key(prefix: &str) -> String {
    format!("{{{prefix}:replicas}}")
}

fn command(prefix: &str, replica: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(CODE).arg(1).arg(key(prefix));
    command.arg(format!("{replica:016x}")).arg(GONE_AFTER.as_secs());
    command
}
