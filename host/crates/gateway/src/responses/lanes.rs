//! Which lanes may serve a turn.

use std::sync::Arc;

use pointsman_domain::{Endpoint, FleetView, LaneId, Serving};

use super::turn::TurnSlot;
use crate::error::RouteError;

/// Returns the view for a turn that follows one of a lane: that lane is the only candidate, while
/// it exists and can serve the endpoint. If another host keeps the earlier turns, the lanes of that
/// host are.
///
/// # Errors
/// If that host has no lane that can serve the request.
pub(crate) fn bound(
    fleet: Arc<FleetView>,
    turn: Option<&TurnSlot>,
    (endpoint, model): (Endpoint, &str),
) -> Result<Arc<FleetView>, RouteError> {
    if let Some(remote) = turn.and_then(TurnSlot::remote) {
        let fleet = remote.restricted(&fleet);
        let is_served = fleet.topology.candidates_for(model, endpoint).next().is_some();
        return if is_served { Ok(fleet) } else { Err(remote.error()) };
    }
    let lane = turn.and_then(TurnSlot::turn).and_then(|turn| turn.lane.as_deref());
    let lane = lane.and_then(|lane| fleet.topology.find(lane));
    let can_serve = |lane: &LaneId| fleet.topology.serving(*lane, endpoint) != Serving::Not;
    Ok(match lane.filter(can_serve) {
        Some(lane) => {
            let mut fleet = FleetView::clone(&fleet);
            fleet.topology = Arc::new(fleet.topology.with_only(lane));
            Arc::new(fleet)
        }
        None => fleet,
    })
}
