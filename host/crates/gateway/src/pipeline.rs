//! The components that the requests of clients need.

use std::sync::Arc;

use pointsman_fleet::Fleet;
use pointsman_record::Recorder;

use crate::decisions::Decisions;
use crate::drain::Drain;
use crate::fair_permits::FairPermits;
use crate::finished::RequestObserver;
use crate::idempotency::Idempotency;
use crate::in_flight::InFlightRequests;
use crate::metering::Meter;
use crate::metrics::GatewayMetrics;
use crate::policy_threads::PolicyThreads;
use crate::responses::Responses;
use crate::settings::{AdvisorSlot, Settings};
use crate::upload::Uploads;
use pointsman_access::Keys;

/// The components that the requests of clients need.
pub(crate) struct Pipeline {
    pub(crate) settings: Settings,
    pub(crate) keys: Keys,
    /// Counts what requests use.
    pub(crate) meter: Meter,
    /// The requests with an idempotency key.
    pub(crate) idempotency: Idempotency,
    pub(crate) uploads: Uploads,
    /// Limits the large bodies that are parsed at a time.
    pub(crate) parsers: Arc<FairPermits>,
    pub(crate) fleet: Fleet,
    pub(crate) advisor: AdvisorSlot,
    pub(crate) policy_threads: Arc<PolicyThreads>,
    pub(crate) recorder: Option<Recorder>,
    /// Receives each request that has ended.
    pub(crate) observer: Option<Arc<dyn RequestObserver>>,
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// The responses that the host keeps.
    pub(crate) responses: Arc<Responses>,
    /// The requests in flight, and how they are aborted.
    pub(crate) in_flight: InFlightRequests,
    /// The requests that have ended.
    pub(crate) decisions: Decisions,
    /// The phases of the shutdown.
    pub(crate) drain: Drain,
}

impl Pipeline {
    /// Returns the components of a changed configuration. What is counted and kept for requests is
    /// shared with this one.
    pub(crate) fn reconfigured(&self, settings: Settings, recorder: Option<Recorder>) -> Self {
        self.responses.set_max_background(settings.responses.max_background);
        self.decisions.set_max(settings.decisions);
        Self {
            meter: self.meter.clone(),
            idempotency: self.idempotency.reconfigured(&settings.idempotency),
            uploads: self.uploads.reconfigured(&settings),
            settings,
            keys: self.keys.clone(),
            parsers: Arc::clone(&self.parsers),
            fleet: self.fleet.clone(),
            advisor: Arc::clone(&self.advisor),
            policy_threads: Arc::clone(&self.policy_threads),
            recorder,
            observer: self.observer.clone(),
            metrics: Arc::clone(&self.metrics),
            responses: Arc::clone(&self.responses),
            in_flight: self.in_flight.clone(),
            decisions: self.decisions.clone(),
            drain: self.drain.clone(),
        }
    }
}
