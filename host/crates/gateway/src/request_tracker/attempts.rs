//! What each attempt of a request needs before it is sent.

use pointsman_domain::SlotRequest;
use pointsman_fleet::{Fleet, Lease};
use pointsman_openai::Request;

use super::RequestTracker;
use crate::failure::AttemptError;
use crate::proxying::Proxied;

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
        self.note_lane_state(fleet, slot_request.lane);
        let ticket = fleet.ticket();
        self.in_flight.set_ticket(ticket);
        let admission = self.metering.admission();
        self.guard.acquire(fleet, (ticket, slot_request), admission).await
    }

    /// Returns what a proxy does that sends the current attempt of `request`; `None` if the host
    /// sends it.
    pub(crate) fn proxied(&self, request: &Request) -> Option<Proxied> {
        let context = self.proxy.clone()?;
        let topology = self.topology.as_deref()?;
        let fallbacks = context.fallbacks(&self.flow, topology, request);
        Some(Proxied { context, fallbacks })
    }
}
