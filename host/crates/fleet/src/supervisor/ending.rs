//! The end of an engine: stopping and killing it, and explaining why it ended by itself.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use pointsman_domain::dispatch::EngineEvent;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Engine, Outcome, Supervisor};
use crate::engine_spec::ProcessSpec;
use crate::loading::LoadLog;
use crate::process::{LogTail, SurvivingProcesses, explain};

/// The interval between attempts to end processes that survived SIGKILL.
const KILL_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Number of the engine's last log lines that are quoted in a failure.
const QUOTED_LINES: usize = 3;

/// Why an engine ended: a description for operators, and the value of the metric's `reason` label.
pub(super) struct Failure {
    pub(super) description: String,
    pub(super) reason: String,
}

impl Supervisor {
    /// Stops an engine that is asleep, within the span of its start.
    pub(super) async fn stop_asleep(&self, engine: Engine, spec: &ProcessSpec) {
        let span = engine.span.clone();
        self.stop(engine, spec).instrument(span).await;
    }

    /// Stops an engine gracefully, and returns when none of its processes is left.
    pub(super) async fn stop(&self, engine: Engine, spec: &ProcessSpec) {
        tracing::info!(event = "engine_stopping", "stopping engine");
        let begun = Instant::now();
        self.until_ended(engine.process.stop(spec.stop_grace).await).await;
        tracing::info!(after_s = begun.elapsed().as_secs_f32(), "engine stopped");
        self.links
            .status
            .send_modify(|status| (status.pid, status.port, status.progress) = (None, None, None));
    }

    /// Kills an engine, and returns when none of its processes is left.
    pub(super) async fn kill(&self, engine: Engine) {
        self.until_ended(engine.process.kill().await).await;
        self.links
            .status
            .send_modify(|status| (status.pid, status.port, status.progress) = (None, None, None));
    }

    /// Retries until all processes have ended. Processes that survive SIGKILL are blocked in a
    /// device driver, and their memory is not free before they have ended.
    async fn until_ended(&self, mut ended: Result<(), SurvivingProcesses>) {
        while let Err(survivors) = ended {
            let description = survivors.to_string();
            tracing::error!(error = %description, "failed to end engine");
            self.links.status.send_modify(|status| status.progress = Some(description));
            tokio::time::sleep(KILL_RETRY_INTERVAL).await;
            ended = survivors.retry().await;
        }
    }

    /// Kills the remaining processes of an engine that ended by itself, and returns why it ended.
    pub(super) async fn clean_up(
        &self,
        engine: Engine,
        ended: io::Result<ExitStatus>,
        serving: bool,
    ) -> Failure {
        let (explanation, reason) = match ended {
            Ok(status) => explain(status),
            Err(error) => (format!("failed to wait for it: {error}"), "unknown".to_owned()),
        };
        let description = format!("the engine ended: {explanation}");
        if serving {
            // Before the cleanup, so that no request is sent to the engine while it lasts.
            self.links.reporter.event(EngineEvent::Dying(description.as_str().into()));
        }
        let tail = engine.process.log_tail().clone();
        let log = engine.log.clone();
        self.kill(engine).await;
        // After the kill, which reads the pipes to their end.
        Failure { description: with_log_tail(description, &tail, &log), reason }
    }

    pub(super) fn load_failed(&self, description: String, reason: &str) -> Outcome {
        tracing::error!(
            event = "engine_load_failed",
            reason,
            error = %description,
            "failed to load engine"
        );
        self.shared.metrics.exited(self.lane, reason);
        self.links.reporter.event(EngineEvent::LoadFailed(description.into()));
        Outcome::Ended
    }

    pub(super) fn lost(&self, description: String, reason: &str) -> Outcome {
        tracing::error!(event = "engine_lost", reason, error = %description, "engine lost");
        self.shared.metrics.exited(self.lane, reason);
        self.links.reporter.event(EngineEvent::Lost(description.into()));
        Outcome::Ended
    }
}

/// Appends the cause found in the engine's log, and the end of that log.
pub(super) fn with_log_tail(description: String, tail: &LogTail, log: &LoadLog) -> String {
    let cause = log.fatal().map(|cause| format!("; {cause}")).unwrap_or_default();
    match tail.tail(QUOTED_LINES).join(" | ") {
        lines if lines.is_empty() => format!("{description}{cause}"),
        lines => format!("{description}{cause}; last log lines: {lines}"),
    }
}
