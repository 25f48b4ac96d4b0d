//! The end of a request in the log.

use std::time::Duration;

use pointsman_domain::{AttemptResult, RequestResult};

use super::{Failure, RequestTracker};
use crate::label_values::outcome_label;

impl RequestTracker {
    /// Returns the status that the client got; `None` if the response has not begun.
    pub(super) fn sent_status(&self) -> Option<u16> {
        self.flow.ttft()?;
        self.flow.attempts().last().map(|attempt| attempt.status)
    }

    /// Logs the end of the request as one event.
    pub(super) fn log_end(
        &self,
        result: RequestResult,
        last: AttemptResult,
        total: Duration,
        failure: Option<&Failure<'_>>,
    ) {
        // The tracker may be dropped outside the span, for example when a connection is closed.
        let _entered = self.span.enter();
        let status = failure.and_then(|failure| failure.status).or(self.sent_status());
        let usage = self.flow.usage();
        let error = failure.map(|failure| failure.error.to_string());
        let cause = failure.and_then(|failure| failure.abort_cause);
        let failed = if cause.is_some() { "response_aborted" } else { "request_failed" };
        macro_rules! log {
            ($level:ident, $event:expr, $message:literal) => {
                tracing::$level!(
                    event = $event,
                    status = status,
                    outcome = outcome_label(result),
                    result = last.label(),
                    duration_ms = millis(total),
                    ttft_ms = self.flow.ttft().map(millis),
                    attempts = self.flow.attempt_count(),
                    // Without a prompt, the engine has reported nothing.
                    prompt_tokens = usage.map(|usage| usage.prompt).filter(|prompt| *prompt > 0),
                    cached_tokens = usage.map(|usage| usage.cached),
                    output_tokens = usage.map(|usage| usage.output),
                    code = failure.and_then(|failure| failure.code),
                    // A string, so that the text format quotes it: it may contain client input.
                    error = error.as_deref(),
                    cause,
                    guards = self.guard.names().as_deref(),
                    $message
                )
            };
        }
        match failure {
            None => log!(info, "request_finished", "request finished"),
            Some(failure) if failure.is_severe => log!(warn, failed, "request failed"),
            Some(_) => log!(info, failed, "request failed"),
        }
    }
}

/// Converts to whole milliseconds. Saturates, because the log needs no more than `u64`.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
