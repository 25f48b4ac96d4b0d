//! The end of an engine: stopping and killing it, and explaining why it ended by itself.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use pointsman_domain::dispatch::{EngineEvent, Problem};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Engine, Outcome, Supervisor};
use crate::drivers::vllm::message;
use crate::engine_spec::ProcessSpec;
use crate::failures::{Certainty, FailureKind, quote};
use crate::loading::{Cause, LoadLog};
use crate::process::{Explanation, LogTail, SurvivingProcesses, explain};

/// The interval between attempts to end processes that survived SIGKILL.
const KILL_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Number of the engine's last log lines that are quoted in a failure.
const QUOTED_LINES: usize = 3;

/// Why an engine ended, and the value of the metric's `reason` label.
pub(super) struct Failure {
    pub(super) problem: Problem,
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
        let explanation = match ended {
            Ok(status) => explain(status),
            Err(error) => Explanation {
                text: format!("failed to wait for it: {error}"),
                reason: "unknown".to_owned(),
                code: "engine_ended",
            },
        };
        if serving {
            // Before the cleanup, so that no request is sent to the engine while it lasts.
            self.links.reporter.event(EngineEvent::Dying(problem(&explanation, None)));
        }
        let tail = engine.process.log_tail().clone();
        let log = engine.log.clone();
        self.kill(engine).await;
        // After the kill, which reads the pipes to their end.
        let problem = problem(&explanation, log.cause().as_ref());
        Failure { problem: with_log(problem, &tail, &log), reason: explanation.reason }
    }

    pub(super) fn load_failed(&self, problem: Problem, reason: &str) -> Outcome {
        tracing::error!(
            event = "engine_load_failed",
            reason,
            code = problem.code(),
            error = %problem,
            "failed to load engine"
        );
        self.shared.metrics.exited(self.lane, reason);
        self.links.reporter.event(EngineEvent::LoadFailed(problem));
        Outcome::Ended
    }

    pub(super) fn lost(&self, problem: Problem, reason: &str) -> Outcome {
        let code = problem.code();
        tracing::error!(event = "engine_lost", reason, code, error = %problem, "engine lost");
        self.shared.metrics.exited(self.lane, reason);
        self.links.reporter.event(EngineEvent::Lost(problem));
        Outcome::Ended
    }
}

/// Returns the problem of an engine that ended by itself. A sign in its log says more than its exit
/// status, and a hint more than a status that says nothing.
fn problem(explanation: &Explanation, cause: Option<&Cause>) -> Problem {
    let Explanation { text, code, .. } = explanation;
    // Only the first part, because what follows repeats or guesses the cause.
    let status = text.split(':').next().unwrap_or_default();
    match cause {
        Some(cause) if cause.certainty == Certainty::Sign || *code == "engine_ended" => {
            cause.kind.problem_because(&format!("{} ({status})", cause.kind.cause))
        }
        Some(_) | None => {
            let kind = FailureKind::with_code(code);
            kind.problem_because(&format!("the engine ended: {text}"))
        }
    }
}

/// Adds the end of the engine's log, and the line that shows the cause. Clients do not see the log
/// of an engine that has served, because it may quote requests.
pub(super) fn with_log(problem: Problem, tail: &LogTail, log: &LoadLog) -> Problem {
    let mut lines: Vec<String> =
        tail.tail(QUOTED_LINES).iter().map(|line| quote(message(line))).collect();
    if let Some(Cause { line, .. }) = log.cause()
        && !lines.contains(&line)
    {
        lines.insert(0, line);
    }
    let text = format!("log: {}", lines.join(" | "));
    match lines.is_empty() {
        true => problem,
        false if log.has_served() => problem.with_details(text),
        false => problem.with_log(text),
    }
}
