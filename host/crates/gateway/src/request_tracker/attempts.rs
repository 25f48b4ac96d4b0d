//! What each attempt of a request needs before it is sent.

use pointsman_domain::SlotRequest;
use pointsman_fleet::{Fleet, Lease};
use pointsman_openai::Request;

use super::RequestTracker;
use crate::failure::AttemptError;
use crate::guard;

impl RequestTracker {
    /// Waits for a slot.
    ///
    /// # Errors
    /// If a guard forbids the lane, it grants none, or too many requests of the key wait.
    pub(crate) async fn acquire(
        &mut self,
        fleet: &Fleet,
        slot_request: SlotRequest,
    ) -> Result<Lease, AttemptError> {
        self.metering.set_sent(false);
        let ticket = fleet.ticket();
        self.in_flight.set_ticket(ticket);
        let admission = self.metering.admission();
        self.guard.acquire(fleet, (ticket, slot_request), admission, &self.metrics).await
    }

    /// Returns a request with the edits of an attempt as the guards allow it.
    ///
    /// # Errors
    /// If the edits break a guard.
    pub(crate) fn guarded(&self, request: Request) -> Result<Request, AttemptError> {
        guard::enforced(request).map_err(|error| guard::violation(error, &self.metrics))
    }
}
