//! The log of an engine: its progress and the memory it reports while it loads, and the cause of a
//! failure.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::drivers::vllm::{Loading, Measurement, Phase, measure, message, read};
use crate::failures::{Certainty, FailureKind, quote, recognise};
use crate::footprint::format_size;
use crate::memory_estimate::MemoryEstimate;
use crate::status::LaneStatus;

/// A reader of an engine's log lines from its start until it serves. Clones share the same state.
#[derive(Debug, Clone)]
pub(crate) struct LoadLog {
    state: Arc<Mutex<LoadState>>,
    status: watch::Sender<LaneStatus>,
}

#[derive(Debug, Default)]
struct LoadState {
    furthest: Option<(Phase, Option<u8>)>,
    measured: Measurement,
    /// What was computed from the model's files, until it has been compared.
    estimate: Option<MemoryEstimate>,
    cause: Option<Cause>,
    ready: bool,
}

/// The cause of an engine's end, as its log shows it.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    pub(crate) kind: &'static FailureKind,
    pub(crate) certainty: Certainty,
    /// The line, as it is quoted.
    pub(crate) line: String,
    found: Instant,
}

/// How long before its end a serving engine logs the cause. An older line may be the text of a
/// request.
const MAX_CAUSE_AGE: Duration = Duration::from_secs(30);

impl LoadLog {
    pub(crate) fn new(status: watch::Sender<LaneStatus>) -> Self {
        Self { state: Arc::default(), status }
    }

    /// Compares what the engine reports with an estimate.
    pub(crate) fn with_estimate(self, estimate: Option<MemoryEstimate>) -> Self {
        self.state.lock().estimate = estimate;
        self
    }

    /// Takes over what an engine has reported to an earlier host.
    pub(crate) fn resume(&self, measured: Measurement) {
        self.state.lock().measured = measured;
    }

    /// Reads one line of the engine's log.
    pub(crate) fn line(&self, line: &str) {
        let mut state = self.state.lock();
        state.note_cause(line);
        if state.ready {
            // Lines of a serving engine may quote requests.
            return;
        }
        let device = state.measured.device;
        measure(line, &mut state.measured);
        if state.measured.device != device {
            // Now, because an engine that reports it may be about to give up.
            let device = state.measured.device;
            self.status.send_modify(|status| status.device = Some(device));
        }
        let Some(Loading { phase, percent, detail }) = read(line) else { return };
        // Progress bars restart for each part of a phase; the status never goes back.
        let position = (phase, percent);
        if state.furthest.is_some_and(|furthest| position <= furthest) {
            return;
        }
        state.furthest = Some(position);
        let percent = percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
        let progress = format!("{}{percent}{detail}", phase.label());
        drop(state);
        self.status.send_modify(|status| status.progress = Some(progress));
    }

    /// Returns the progress of the load.
    pub(crate) fn progress(&self) -> Option<String> {
        self.status.borrow().progress.clone()
    }

    /// Records that the engine serves, and publishes the memory that it reported.
    pub(crate) fn ready(&self) {
        let mut state = self.state.lock();
        state.ready = true;
        // An error before this point did not prevent the engine from loading, so it will not be the
        // cause of a later end.
        state.cause = None;
        let measured = std::mem::take(&mut state.measured).completed();
        state.measured = measured.clone();
        let estimate = state.estimate.take();
        drop(state);
        let reported = [measured.weights_bytes, measured.kv_bytes, measured.compute_bytes];
        self.status.send_modify(|status| {
            status.progress = None;
            [status.weights_bytes, status.kv_bytes, status.compute_bytes] = reported;
            status.kv_tokens = measured.kv_tokens;
            status.estimate = estimate.or(status.estimate);
        });
        if let Some(found) = estimate.and_then(|estimate| estimate.compare(reported))
            && found.is_off()
        {
            tracing::warn!(
                event = "memory_estimate_off",
                estimated_bytes = found.estimated,
                reported_bytes = found.reported,
                percent = found.percent(),
                "the engine reports {} of memory for what was estimated as {}; set the lane's \
                 `memory` if the difference persists",
                format_size(found.reported),
                format_size(found.estimated)
            );
        }
    }

    /// Returns true if the engine has served.
    pub(crate) fn has_served(&self) -> bool {
        self.state.lock().ready
    }

    /// Returns the cause of the engine's end, if its log contains one.
    pub(crate) fn cause(&self) -> Option<Cause> {
        let state = self.state.lock();
        let is_current = |cause: &&Cause| !state.ready || cause.found.elapsed() <= MAX_CAUSE_AGE;
        state.cause.as_ref().filter(is_current).cloned()
    }
}

impl LoadState {
    /// Notes the cause that a line shows. The first line with a sign counts, and those after it are
    /// consequences; a hint counts until there is a sign.
    fn note_cause(&mut self, line: &str) {
        let is_current = |cause: &&Cause| !self.ready || cause.found.elapsed() <= MAX_CAUSE_AGE;
        let known = self.cause.as_ref().filter(is_current).map(|cause| cause.certainty);
        if known == Some(Certainty::Sign) {
            return;
        }
        let line = message(line);
        if let Some((kind, certainty)) = recognise(line)
            && known.is_none_or(|known| certainty > known)
        {
            self.cause = Some(Cause { kind, certainty, line: quote(line), found: Instant::now() });
        }
    }
}

#[cfg(test)]
mod tests;
