//! The recorder of decisions, which a reload turns on and off and changes.

use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_record::{RecordMetrics, Recorder, Settings, StartError, Writer};
use prometheus_client::registry::Registry;

/// The writer of records, if there was a need for one. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    metrics: Arc<RecordMetrics>,
    writer: Arc<Mutex<Option<Writer>>>,
}

impl Records {
    /// Registers the metrics. Nothing is recorded yet.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self { metrics: RecordMetrics::register(registry), writer: Arc::default() }
    }

    /// Applies the settings, and returns what accepts records; `None` if they are off.
    ///
    /// # Errors
    /// If the folder cannot be used or the thread cannot be started. Nothing has changed then.
    pub(crate) fn apply(&self, settings: Option<Settings>) -> Result<Option<Recorder>, StartError> {
        let Some(settings) = settings else { return Ok(None) };
        let mut writer = self.writer.lock();
        if let Some(writer) = &*writer {
            return writer.reconfigure(settings).map(Some);
        }
        let (recorder, started) = Recorder::start(settings, Arc::clone(&self.metrics))?;
        *writer = Some(started);
        Ok(Some(recorder))
    }

    /// Returns the writer for the end of the host.
    pub(crate) fn take_writer(&self) -> Option<Writer> {
        self.writer.lock().take()
    }
}
