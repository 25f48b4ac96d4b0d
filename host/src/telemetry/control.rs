//! Changes of the log while the host runs.

use std::sync::Arc;

use parking_lot::RwLock;
use pointsman_config::{Log, LogFormat};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// The format of the lines from now on.
#[derive(Debug, Clone)]
pub(super) struct CurrentFormat(Arc<RwLock<LogFormat>>);

impl CurrentFormat {
    pub(super) fn new(format: LogFormat) -> Self {
        Self(Arc::new(RwLock::new(format)))
    }

    pub(super) fn get(&self) -> LogFormat {
        *self.0.read()
    }
}

/// Changes what is logged, and how.
#[derive(Debug, Clone)]
pub(crate) struct LogControl {
    pub(super) filter: reload::Handle<EnvFilter, Registry>,
    pub(super) format: CurrentFormat,
    /// The command line has a filter, which the configuration does not change.
    pub(super) is_overridden: bool,
}

impl LogControl {
    /// Applies the section of a configuration.
    pub(crate) fn apply(&self, log: &Log) {
        *self.format.0.write() = log.format;
        if self.is_overridden {
            return;
        }
        // The configuration has checked the text.
        let Ok(filter) = log.filter.parse::<EnvFilter>() else { return };
        if let Err(error) = self.filter.reload(filter) {
            tracing::warn!(%error, "the level of the log stays as it was");
        }
    }
}
