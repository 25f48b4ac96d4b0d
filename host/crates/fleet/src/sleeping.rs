//! Sleep and wake of an engine, with what the supervisor has: its connection, its memory, its first words.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::driver::Target;
use crate::room::Room;
use crate::spec::SwitchStrategy;
use crate::supervisor::Supervisor;
use crate::upstream::Upstream;
use crate::vllm::sleep::{self, Calls, Gauge, Level};

/// Longest time to wake up: published figures are 0.3 to 6 s, and those of big models that read their weights again more.
const WAKE_LIMIT: Duration = Duration::from_secs(60);

/// Calls to an engine.
pub(crate) struct Calling<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) target: &'a Target,
}

impl Calls for Calling<'_> {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let answer = self.upstream.call(self.target, method, path, body, limit).await;
        answer.map_err(|error| error.to_string())
    }
}

/// Memory of the lane's group, where it can be measured.
struct Measuring<'a>(Option<&'a Room>);

impl Gauge for Measuring<'_> {
    fn free(&self) -> Option<u64> {
        self.0.and_then(Room::free)
    }
}

fn level(strategy: SwitchStrategy) -> Level {
    if strategy == SwitchStrategy::SleepTwo { Level::Two } else { Level::One }
}

/// Put the engine to sleep.
///
/// # Errors
/// When it does not sleep after `limit`, or its memory is still held.
pub(crate) async fn sleep(
    target: &Arc<Target>,
    of: &Supervisor,
    limit: Duration,
) -> Result<(), String> {
    let calls = Calling { upstream: &of.upstream, target };
    let expected = of.room.as_ref().map_or(0, |room| room.need.saturating_sub(room.asleep));
    let level = level(of.driver.strategy());
    let slept = sleep::sleep(&calls, &Measuring(of.room.as_ref()), level, expected, limit).await;
    let freed = slept.map_err(|error| error.to_string())?;
    tracing::info!(lane = of.name, ?freed, "the engine sleeps");
    Ok(())
}

/// Wake it, and compare what it says with what it said at first.
pub(crate) async fn wake(target: &Arc<Target>, of: &Supervisor) -> Result<(), String> {
    let Some(canary) = &of.canary else {
        return Err("there is nothing to compare its answer with".to_owned());
    };
    if let Some(room) = &of.room {
        // What it held in its sleep it has already.
        room.wait(room.need.saturating_sub(room.asleep), &of.status).await?;
    }
    let calls = Calling { upstream: &of.upstream, target };
    let level = level(of.driver.strategy());
    let woken = sleep::wake(&calls, level, of.driver.model(&of.name), canary, WAKE_LIMIT).await;
    woken.map_err(|error| error.to_string())?;
    tracing::info!(lane = of.name, "the engine is awake");
    Ok(())
}
