//! Sleep and wake-up of a lane's engine: connects [`vllm::sleep`](crate::vllm::sleep) to the
//! supervisor's connection, memory reservation and canary baseline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::driver::Target;
use crate::memory_admission::{AdmissionTimeout, MemoryReservation};
use crate::spec::UnloadMode;
use crate::supervisor::Supervisor;
use crate::upstream::{EngineError, Upstream};
use crate::vllm::sleep::{self, EngineApi, Level, MemoryGauge, SleepError};

/// The maximum time to wake up. Published times are 0.3 to 6 s; large models that read their
/// weights again need more.
const WAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason why an engine could not be woken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WakeError {
    /// The engine's output cannot be verified, because the first canary was never recorded.
    #[error("missing canary baseline: the engine's output cannot be verified")]
    NoBaseline,
    /// The memory is not free.
    #[error(transparent)]
    Memory(#[from] AdmissionTimeout),
    /// The engine failed to wake up, or its output changed.
    #[error(transparent)]
    Engine(#[from] SleepError),
}

/// An [`EngineApi`] over a lane's upstream connection.
pub(crate) struct UpstreamApi<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) target: &'a Target,
}

impl EngineApi for UpstreamApi<'_> {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        self.upstream.call(self.target, method, path, body, timeout).await
    }
}

/// The memory of the lane's group, where it can be measured.
struct PoolGauge<'a>(Option<&'a MemoryReservation>);

impl MemoryGauge for PoolGauge<'_> {
    fn free(&self) -> Option<u64> {
        self.0.and_then(MemoryReservation::free)
    }
}

fn level(strategy: UnloadMode) -> Level {
    if strategy == UnloadMode::SleepLevel2 { Level::Two } else { Level::One }
}

/// Puts the engine to sleep.
///
/// # Errors
/// Returns an error if the engine is not asleep after `timeout`, or still holds its memory.
pub(crate) async fn sleep(
    target: &Arc<Target>,
    supervisor: &Supervisor,
    timeout: Duration,
) -> Result<(), SleepError> {
    let api = UpstreamApi { upstream: &supervisor.upstream, target };
    let reservation = supervisor.reservation.as_ref();
    let expected = reservation.map_or(0, MemoryReservation::freed_by_sleep);
    let level = level(supervisor.driver.strategy());
    let freed = sleep::sleep(&api, &PoolGauge(reservation), level, expected, timeout).await?;
    tracing::info!(freed_bytes = freed, "engine is asleep");
    Ok(())
}

/// Wakes the engine up and compares its canary output with the baseline.
///
/// # Errors
/// Returns an error if the memory is not free, the engine does not wake up, or its output changed.
pub(crate) async fn wake(target: &Arc<Target>, supervisor: &Supervisor) -> Result<(), WakeError> {
    let baseline = supervisor.canary_baseline.as_ref().ok_or(WakeError::NoBaseline)?;
    if let Some(reservation) = &supervisor.reservation {
        // The engine still holds what it kept while asleep.
        reservation.admit(reservation.freed_by_sleep(), &supervisor.status).await?;
    }
    let api = UpstreamApi { upstream: &supervisor.upstream, target };
    let level = level(supervisor.driver.strategy());
    let model = supervisor.driver.model(&supervisor.name);
    sleep::wake(&api, level, model, baseline, WAKE_TIMEOUT).await?;
    tracing::info!("engine is awake");
    Ok(())
}
