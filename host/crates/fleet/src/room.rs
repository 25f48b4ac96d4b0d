//! Room in memory: seen to be there before an engine is started, not believed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::LaneStatus;
use crate::footprint::gib;
use crate::memory::{Machine, Pool};

/// Between two looks. Drivers free lazily, and reading takes microseconds.
const LOOK: Duration = Duration::from_millis(50);

/// The memory that a lane is loaded into.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) machine: Arc<Machine>,
    pub(crate) pool: Pool,
    /// Bytes that have to be free.
    pub(crate) need: u64,
    /// Bytes of it that a sleeping engine keeps.
    pub(crate) asleep: u64,
    pub(crate) limit: Duration,
}

impl Room {
    /// Wait until there are `need` bytes; how long that took.
    ///
    /// # Errors
    /// After the limit, with a sentence that names who holds the memory.
    pub(crate) async fn wait(
        &self,
        need: u64,
        status: &watch::Sender<LaneStatus>,
    ) -> Result<Duration, String> {
        let begun = Instant::now();
        loop {
            match self.machine.free(&self.pool) {
                Some(free) if free >= need => return Ok(begun.elapsed()),
                // What cannot be seen cannot be waited for. Said once a load, because it is worth knowing.
                None => {
                    tracing::warn!(
                        "the free memory cannot be read: {}",
                        self.machine.explain(&self.pool)
                    );
                    return Ok(begun.elapsed());
                }
                Some(_) if begun.elapsed() >= self.limit => {
                    return Err(format!(
                        "memory did not become free within {} s: {} are needed, {}",
                        self.limit.as_secs_f32(),
                        gib(need),
                        self.machine.explain(&self.pool)
                    ));
                }
                Some(free) => {
                    let waits = format!("waiting for memory: {} of {} free", gib(free), gib(need));
                    status.send_modify(|status| status.progress = Some(waits));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn free(&self) -> Option<u64> {
        self.machine.free(&self.pool)
    }
}
