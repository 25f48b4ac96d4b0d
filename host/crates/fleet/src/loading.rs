//! What an engine's log tells while it loads: how far it is, what it measured, and what it died of.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::LaneStatus;
use crate::vllm::{Loading, Measured, Phase, fatal, measure, read};

/// Reads an engine's lines from its start until it serves. Cloning gives another handle to the same one.
#[derive(Debug, Clone)]
pub(crate) struct LoadLog {
    read: Arc<Mutex<Read>>,
    status: watch::Sender<LaneStatus>,
}

#[derive(Debug, Default)]
struct Read {
    furthest: Option<(Phase, Option<u8>)>,
    measured: Measured,
    fatal: Option<String>,
    ready: bool,
}

impl LoadLog {
    pub(crate) fn new(status: watch::Sender<LaneStatus>) -> Self {
        Self { read: Arc::default(), status }
    }

    /// The engine wrote a line.
    pub(crate) fn line(&self, line: &str) {
        let mut read_so_far = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read_so_far.fatal.is_none() {
            // The first one is the cause; what follows is its consequences.
            read_so_far.fatal = fatal(line);
        }
        if read_so_far.ready {
            // From here on a line may quote a request.
            return;
        }
        measure(line, &mut read_so_far.measured);
        let Some(Loading { phase, percent, detail }) = read(line) else { return };
        // Bars begin anew for each part of a phase; what is shown never goes back.
        let place = (phase, percent);
        if read_so_far.furthest.is_some_and(|furthest| place <= furthest) {
            return;
        }
        read_so_far.furthest = Some(place);
        let percent = percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
        let progress = format!("{}{percent}{detail}", phase.label());
        drop(read_so_far);
        self.status.send_modify(|status| status.progress = Some(progress));
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Option<String> {
        self.status.borrow().progress.clone()
    }

    /// It serves.
    pub(crate) fn ready(&self) {
        let mut read_so_far = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read_so_far.ready = true;
        // What went wrong on the way here is not what it will die of.
        read_so_far.fatal = None;
        let measured = read_so_far.measured;
        drop(read_so_far);
        self.status.send_modify(|status| {
            status.progress = None;
            status.weights_bytes = measured.weights_bytes;
            status.kv_bytes = measured.kv_bytes;
            status.kv_tokens = measured.kv_tokens;
        });
    }

    /// What it died of, as far as its lines tell.
    pub(crate) fn fatal(&self) -> Option<String> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).fatal.clone()
    }
}
