//! What each attempt of a request needs before it is sent.

use http::HeaderMap;
use pointsman_domain::{RequestView as _, SlotRequest};
use pointsman_fleet::{Fleet, Lease};
use pointsman_openai::Request;

use super::RequestTracker;
use crate::failure::AttemptError;
use crate::forwarded::{Client, Forwarded, NOTHING, Onward};
use crate::proxying::Proxied;

impl RequestTracker {
    /// Notes what another host has said of the request; `None` for one of a client.
    pub(crate) fn set_forwarded(&mut self, forwarded: Option<Forwarded>) {
        if let Some(deadline) = forwarded.as_ref().and_then(|forwarded| forwarded.deadline) {
            self.flow.limit_deadline(deadline);
        }
        self.forwarded = forwarded.map(Box::new);
    }

    /// Returns what another host has said of the request.
    pub(crate) fn forwarded(&self) -> &Forwarded {
        self.forwarded.as_deref().unwrap_or(&NOTHING)
    }

    /// Returns what another host has to know of a request that it gets; nothing for an engine.
    pub(crate) fn onward_headers(
        &self,
        fleet: &Fleet,
        lease: &Lease,
        request: &Request,
    ) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if lease.is_peer() {
            let onward = Onward {
                host: fleet.host_id(),
                priority: lease.priority(),
                deadline: self.flow.time_left(self.age()),
                client: Client::from(&**self.metering.identity()),
                model: request.model(),
            };
            self.forwarded().set_onward(&onward, &mut headers);
        }
        headers
    }

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
