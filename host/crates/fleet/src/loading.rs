//! The log of a loading engine: its progress, the memory it reports, and the cause of a failure.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::drivers::vllm::{Loading, Measurement, Phase, fatal, measure, read};
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
    fatal: Option<String>,
    ready: bool,
}

impl LoadLog {
    pub(crate) fn new(status: watch::Sender<LaneStatus>) -> Self {
        Self { state: Arc::default(), status }
    }

    /// Reads one line of the engine's log.
    pub(crate) fn line(&self, line: &str) {
        let mut state = self.state.lock();
        if state.fatal.is_none() {
            // The first fatal line is the cause; those after it are consequences.
            state.fatal = fatal(line);
        }
        if state.ready {
            // Lines of a serving engine may quote requests.
            return;
        }
        measure(line, &mut state.measured);
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
        state.fatal = None;
        let measured = state.measured;
        drop(state);
        self.status.send_modify(|status| {
            status.progress = None;
            status.weights_bytes = measured.weights_bytes;
            status.kv_bytes = measured.kv_bytes;
            status.kv_tokens = measured.kv_tokens;
        });
    }

    /// Returns the cause of the engine's end, if its log contains one.
    pub(crate) fn fatal(&self) -> Option<String> {
        self.state.lock().fatal.clone()
    }
}
