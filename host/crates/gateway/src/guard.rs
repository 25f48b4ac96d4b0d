//! The operator's guards: what they demand of each request, and that it holds at every dispatch.
//!
//! The rules are those of [`Constraint`]. A request gets its constraint once, before its decision;
//! the lanes are then barred in its view of the fleet, and what it may generate is limited by an
//! edit of the host. Each attempt, by whatever door, gets its slot from [`RequestGuard::acquire`],
//! which checks the lane again: an attempt that breaks a guard is an error of the host.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use pointsman_access::{Admission, Identity};
use pointsman_domain::dispatch::Ticket;
use pointsman_domain::{
    Constraint, Edit, Endpoint, FleetView, GuardInput, Guards, LaneId, QueueShare,
    RequestView as _, Serving, SlotRequest, Topology,
};
use pointsman_fleet::{Fleet, Lease};
use pointsman_openai::{EndpointShape, Request};

use crate::error::RouteError;
use crate::failure::AttemptError;
use crate::guard_error::GuardError;
use crate::headers::to_header_value;
use crate::metrics::GatewayMetrics;
use crate::queue_place;

/// What the guards demand of one request, if any applies.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    constraint: Option<Arc<Constraint>>,
    metrics: Arc<GatewayMetrics>,
}

impl RequestGuard {
    /// Creates the guard of a request that has not been read yet.
    pub(crate) fn new(metrics: Arc<GatewayMetrics>) -> Self {
        Self { constraint: None, metrics }
    }

    /// Sets what the guards demand, and counts each of them.
    pub(crate) fn set(&mut self, constraint: Option<Arc<Constraint>>) {
        for guard in constraint.iter().flat_map(|constraint| &constraint.guards) {
            self.metrics.guarded(&guard.name, "applied");
        }
        self.constraint = constraint;
    }

    /// Returns what the guards demand; `None` if none applies.
    pub(crate) fn constraint(&self) -> Option<&Arc<Constraint>> {
        self.constraint.as_ref()
    }

    /// Returns the names of the guards that apply, for the log and for clients.
    pub(crate) fn names(&self) -> Option<String> {
        self.constraint.as_ref().map(|constraint| constraint.names())
    }

    /// Returns the names of the guards as the value of a header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        to_header_value(&self.names()?)
    }

    /// Returns what a request gets in the queues, within the priorities of the guards.
    pub(crate) fn limit_share(&self, share: QueueShare) -> QueueShare {
        match &self.constraint {
            Some(constraint) => {
                QueueShare { priority: constraint.clamp_priority(share.priority), ..share }
            }
            None => share,
        }
    }

    /// Waits for a slot of a lane that the guards allow.
    ///
    /// # Errors
    /// If a guard forbids the lane, the lane grants no slot, or all queue places are taken.
    pub(crate) async fn acquire(
        &self,
        fleet: &Fleet,
        (ticket, slot_request): (Ticket, SlotRequest),
        admission: Option<&mut Admission>,
    ) -> Result<Lease, AttemptError> {
        self.check(&fleet.view().topology, slot_request.lane)?;
        let lease = queue_place::acquire(fleet, (ticket, slot_request), admission).await?;
        // The operator may have changed the lane while the request waited.
        self.check(&fleet.view().topology, slot_request.lane)?;
        Ok(lease)
    }

    fn check(&self, topology: &Topology, lane: LaneId) -> Result<(), AttemptError> {
        // A lane that does not exist grants no slot.
        let (Some(constraint), Some(_)) = (&self.constraint, topology.lane(lane)) else {
            return Ok(());
        };
        check_lane(constraint, topology, lane).map_err(|error| self.violation(error))
    }

    /// Returns a request with the edits of an attempt as the guards allow it.
    ///
    /// # Errors
    /// If the edits break a guard.
    pub(crate) fn enforced(&self, request: Request) -> Result<Request, AttemptError> {
        enforced(request).map_err(|error| self.violation(error))
    }

    /// Logs and counts an attempt that would break a guard, and returns its error.
    fn violation(&self, error: GuardError) -> AttemptError {
        let guard = error.guard();
        tracing::error!(
            event = "guard_violation",
            guard,
            %error,
            "attempt refused: it breaks a guard"
        );
        self.metrics.guarded(guard, "violation");
        AttemptError::Guard(error)
    }

    /// Counts the request if a guard has refused it.
    pub(crate) fn note_error(&self, error: &RouteError) {
        if let RouteError::Guarded(error) = error {
            self.metrics.guarded(error.guard(), "refused");
        }
    }
}

/// Returns what the guards demand of a request of which only the head is known. Conditions about
/// what is not known count as met.
pub(crate) fn for_head(
    guards: &Guards,
    identity: &Identity,
    headers: &HeaderMap,
    endpoint: Option<Endpoint>,
    body_bytes: u64,
) -> Option<Arc<Constraint>> {
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let input = GuardInput {
        tenant: identity.tenant.as_deref(),
        group: identity.group.as_deref(),
        headers: headers.collect(),
        endpoint,
        body_bytes,
        prompt_tokens: None,
    };
    guards.constraint(&input, "")
}

/// Returns the view in which lanes that the guards forbid cannot serve the request.
pub(crate) fn restricted(view: Arc<FleetView>, request: &Request) -> Arc<FleetView> {
    match request.constraint() {
        Some(constraint) => Arc::new(constraint.restrict(&view)),
        None => view,
    }
}

/// Returns the error of a request for a model of which the guards have barred a lane that could
/// serve it; `None` if there is no such lane.
pub(crate) fn no_lane(
    topology: &Topology,
    request: &Request,
    endpoint: Endpoint,
) -> Option<GuardError> {
    let constraint = request.constraint()?;
    let serves = |lane: &LaneId| {
        topology.lane(*lane).is_some_and(|lane| lane.endpoints.serving(endpoint) != Serving::Not)
    };
    let mut lanes = topology.candidates(request.model()).iter().filter(|lane| serves(lane));
    let guard = lanes.find_map(|lane| constraint.objection(topology, *lane))?;
    Some(GuardError::NoLane { guard: guard.to_owned() })
}

/// Returns a request with all edits as the guards allow it: for the model that the client asked
/// for, and with a limit of its output.
///
/// # Errors
/// If an edit has changed the model, or the output cannot be limited.
pub(crate) fn enforced(request: Request) -> Result<Request, GuardError> {
    let Some(constraint) = request.constraint().cloned() else { return Ok(request) };
    if let Some(guard) = constraint.keeps_model()
        && *request.model() != *constraint.model
    {
        let model = constraint.model.to_string();
        return Err(GuardError::Model { guard: guard.to_owned(), model });
    }
    match constraint.max_output_tokens() {
        None => Ok(request),
        Some((max, guard)) => limit_output(&request, max)
            .ok_or_else(|| GuardError::Output { guard: guard.to_owned(), max }),
    }
}

/// Limits the output of all choices together; `None` if that is not possible.
fn limit_output(request: &Request, max: u32) -> Option<Request> {
    if !EndpointShape::for_endpoint(request.endpoint()).limits_output() {
        return Some(request.clone());
    }
    let each = max / request.outputs().max(1);
    let (limited, dropped) = request.apply(&[Edit::CapOutputTokens(each)]);
    let is_limited = each > 0 && dropped.is_empty() && limited.info().max_output_tokens <= max;
    is_limited.then_some(limited)
}

/// Checks that the guards allow a lane that the client has chosen.
///
/// # Errors
/// If they forbid it.
pub(crate) fn check_lane(
    constraint: &Constraint,
    topology: &Topology,
    lane: LaneId,
) -> Result<(), GuardError> {
    match constraint.objection(topology, lane) {
        None => Ok(()),
        Some(guard) => {
            Err(GuardError::Lane { guard: guard.to_owned(), lane: topology.name(lane).to_owned() })
        }
    }
}

/// Returns the body of a request for a path of an engine, with its output limited as the guards
/// demand.
///
/// # Errors
/// If a guard limits the output, and it is not known how the path does, or whether it generates.
pub(crate) fn limited_path(
    constraint: &Constraint,
    endpoint: Endpoint,
    body: bytes::Bytes,
) -> Result<bytes::Bytes, GuardError> {
    let Some((max, guard)) = constraint.max_output_tokens() else { return Ok(body) };
    let refused = || GuardError::Output { guard: guard.to_owned(), max };
    if endpoint == Endpoint::Other {
        return Err(refused());
    }
    if !EndpointShape::for_endpoint(endpoint).limits_output() {
        return Ok(body);
    }
    let request = Request::parse(endpoint, body, Default::default()).map_err(|_| refused())?;
    let limited = limit_output(&request, max).ok_or_else(refused)?;
    Ok(limited.body().clone())
}
