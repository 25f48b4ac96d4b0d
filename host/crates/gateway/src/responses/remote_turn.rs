//! Turns that follow a response of another host: they go to lanes of that host.

use std::sync::Arc;

use pointsman_domain::{Endpoint, FleetView, LaneInfo, Serving};
use pointsman_fleet::{Fleet, LaneStatus};

use crate::error::RouteError;
use crate::forwarded::Forwarded;

/// A turn that another host executes, because it keeps the response that the turn follows. That
/// host gets the request as the client sent it.
#[derive(Debug)]
pub(crate) struct RemoteTurn {
    /// The response that the turn follows.
    previous: String,
    host: String,
    /// The names of the lanes of that host.
    lanes: Vec<String>,
}

impl RemoteTurn {
    /// Returns a turn that follows a response of the host of this name; `None` if this host has no
    /// lane of that one, or the request must not be sent on.
    pub(super) fn find(
        fleet: &Fleet,
        forwarded: &Forwarded,
        previous: &str,
        host: &str,
    ) -> Option<Self> {
        let is_of_host = |status: &LaneStatus| {
            status.card.peer.as_ref().is_some_and(|peer| !host.is_empty() && peer.host == host)
        };
        let statuses = fleet.status().into_iter().filter(is_of_host);
        let lanes: Vec<String> = statuses.map(|status| status.name).collect();
        let (previous, host) = (previous.to_owned(), host.to_owned());
        (!lanes.is_empty() && !forwarded.is_last).then_some(Self { previous, host, lanes })
    }

    /// Returns the view in which only lanes of the host serve the request. A lane for which the
    /// request would be translated cannot: the translation has no earlier turns.
    pub(crate) fn restricted(&self, view: &FleetView) -> Arc<FleetView> {
        let is_of_host = |lane: &LaneInfo| {
            self.lanes.contains(&lane.name)
                && lane.endpoints.serving(Endpoint::Responses) == Serving::Native
        };
        let mut restricted = FleetView::clone(view);
        restricted.topology = Arc::new(view.topology.without(|lane| !is_of_host(lane)));
        Arc::new(restricted)
    }

    /// Returns the error of a turn for which there is not any lane of the host.
    pub(crate) fn error(&self) -> RouteError {
        RouteError::ResponseElsewhere { id: self.previous.clone(), host: self.host.clone() }
    }
}
