//! What is written and exported of requests that have ended.

use pointsman_fleet::FinishedSwitch;
use pointsman_gateway::{FinishedRequest, RequestObserver};

use super::access::AccessWriter;
use super::exporter::Exporter;

/// Writes each request that has ended to the access log, and exports its trace.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(super) access: Option<AccessWriter>,
    pub(super) exporter: Option<Exporter>,
}

impl RequestObserver for Observer {
    fn ended(&self, request: &FinishedRequest<'_>) {
        if let Some(access) = &self.access {
            access.write(request);
        }
        if let Some(exporter) = &self.exporter {
            exporter.push_request(request);
        }
    }
}

impl Observer {
    /// Exports the trace of a switch; never blocks.
    pub(crate) fn switched(&self, switch: &FinishedSwitch) {
        if let Some(exporter) = &self.exporter {
            exporter.push_switch(switch);
        }
    }

    /// Sets where the metrics for the export come from.
    pub(crate) fn set_metrics_source(
        &self,
        source: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        if let Some(exporter) = &self.exporter {
            exporter.set_metrics_source(Box::new(source));
        }
    }
}
