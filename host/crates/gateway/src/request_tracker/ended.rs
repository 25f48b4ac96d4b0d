//! What operators see of a request after its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_domain::{RequestResult, char_slice};

use super::{Failure, RequestTracker};
use crate::decisions::{DecisionDetail, EndedFailure, EndedRequest};
use crate::label_values::outcome_label;

/// Maximum bytes of the message of an error.
const MAX_MESSAGE: usize = 1 << 10;

impl RequestTracker {
    /// Adds the request to those that have ended.
    pub(super) fn remember(
        &self,
        result: RequestResult,
        total: Duration,
        failure: Option<&Failure<'_>>,
        detail: Option<DecisionDetail>,
    ) {
        if !self.decisions.is_on() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let arrived = now.saturating_sub(total).as_millis();
        let failed = |failure: &Failure<'_>| EndedFailure {
            code: failure.code.map(str::to_owned),
            message: char_slice(&failure.error.to_string(), 0, MAX_MESSAGE).to_owned(),
        };
        self.decisions.push(EndedRequest {
            id: self.in_flight.id().to_owned(),
            unix_ms: u64::try_from(arrived).unwrap_or(u64::MAX),
            endpoint: self.endpoint,
            model: self.in_flight.model(),
            identity: Arc::clone(self.metering.identity()),
            lane: Some(self.lane_name().to_owned()).filter(|lane| !lane.is_empty()),
            outcome: outcome_label(result),
            status: failure.and_then(|failure| failure.status).or(self.sent_status()),
            failed: failure.map(failed),
            total,
            ttft: self.flow.ttft(),
            attempts: self.flow.attempt_count(),
            usage: self.flow.usage(),
            attribution: self.attribution.clone(),
            constraint: self.guard.constraint().cloned(),
            detail,
        });
    }
}
