//! Sleep and wake-up of a lane's engine: connects [`vllm::sleep`](crate::drivers::vllm::sleep) to
//! the lane's connection, memory reservation and canary baseline.

use std::time::Duration;

use tokio::sync::watch;

use crate::drivers::vllm::sleep::{self, Canary, Level, MemoryGauge, SleepError};
use crate::engine_spec::UnloadMode;
use crate::memory_admission::{AdmissionTimeout, MemoryReservation};
use crate::status::LaneStatus;
use crate::upstream_api::UpstreamApi;

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

/// The memory of the lane's group, where it can be measured.
struct PoolGauge<'a>(Option<&'a MemoryReservation>);

impl MemoryGauge for PoolGauge<'_> {
    fn free(&self) -> Option<u64> {
        self.0.and_then(MemoryReservation::free)
    }
}

/// Puts one engine to sleep and wakes it up.
pub(crate) struct Sleeper<'a> {
    pub(crate) api: UpstreamApi<'a>,
    pub(crate) strategy: UnloadMode,
    pub(crate) reservation: Option<&'a MemoryReservation>,
}

impl Sleeper<'_> {
    fn level(&self) -> Level {
        if self.strategy == UnloadMode::SleepLevel2 { Level::Two } else { Level::One }
    }

    /// Puts the engine to sleep.
    ///
    /// # Errors
    /// Returns an error if the engine is not asleep after `timeout`, or still holds its memory.
    pub(crate) async fn sleep(&self, timeout: Duration) -> Result<(), SleepError> {
        let expected = self.reservation.map_or(0, MemoryReservation::freed_by_sleep);
        let gauge = PoolGauge(self.reservation);
        let freed = sleep::sleep(&self.api, &gauge, self.level(), expected, timeout).await?;
        tracing::info!(freed_bytes = freed, "engine is asleep");
        Ok(())
    }

    /// Wakes the engine up and compares its canary output with the baseline.
    ///
    /// # Errors
    /// Returns an error if the memory is not free, the engine does not wake up, or its output
    /// changed.
    pub(crate) async fn wake(
        &self,
        model: &str,
        baseline: Option<&Canary>,
        status: &watch::Sender<LaneStatus>,
    ) -> Result<(), WakeError> {
        let baseline = baseline.ok_or(WakeError::NoBaseline)?;
        if let Some(reservation) = self.reservation {
            // The engine still holds what it kept while asleep.
            reservation.admit(reservation.freed_by_sleep(), status).await?;
        }
        sleep::wake(&self.api, self.level(), model, baseline, WAKE_TIMEOUT).await?;
        tracing::info!("engine is awake");
        Ok(())
    }
}
