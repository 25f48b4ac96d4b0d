//! Requests that a proxy sends to the engines: to which lanes they may go, and which endpoints the
//! proxy may use instead of the first one. Everything else about them is as if the host sent them.

use std::fmt;
use std::sync::Arc;

use http::Extensions;
use pointsman_domain::request_flow::RequestFlow;
use pointsman_domain::{FleetView, LaneId, NoLaneReason, RequestView as _, SlotRequest, Topology};
use pointsman_fleet::{ProxyAttempt, ProxyExchange, Proxying};
use pointsman_openai::Request;

use crate::error::RouteError;
use crate::failure::{AttemptError, RETRY_LOST_ENGINE};
use crate::proxy_lanes::ProxyLanes;

/// The exchange of one request over a proxy.
pub(crate) struct ProxyContext {
    pub(crate) exchange: ProxyExchange,
    /// Hosts and ports of the only engines that the proxy can use; `None` for all.
    pub(crate) subset: Option<Vec<String>>,
    pub(crate) lanes: Arc<ProxyLanes>,
}

/// An attempt that a proxy makes.
#[derive(Debug)]
pub(crate) struct Proxied {
    pub(crate) context: Arc<ProxyContext>,
    /// Hosts and ports of the engines that the proxy may use if it cannot use that of the lane.
    pub(crate) fallbacks: Vec<String>,
}

impl Proxied {
    /// Returns what the connection of a lane has to know.
    pub(crate) fn proxying<'a>(&'a self, lane: &'a str) -> Proxying<'a> {
        let (exchange, fallbacks) = (&self.context.exchange, self.fallbacks.clone());
        Proxying { exchange, lane, fallbacks }
    }
}

impl fmt::Debug for ProxyContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyContext").field("subset", &self.subset).finish_non_exhaustive()
    }
}

impl ProxyContext {
    /// Returns the slot that an attempt on a lane needs. The lane on which the proxy has already
    /// been gets one immediately.
    ///
    /// # Errors
    /// If the proxy cannot send the request to that lane, or not any more.
    pub(crate) fn slot_request(
        &self,
        lane: &str,
        slot_request: SlotRequest,
    ) -> Result<SlotRequest, AttemptError> {
        let endpoint = self.lanes.endpoint(lane).unwrap_or_default();
        match self.exchange.attempt_on(endpoint) {
            ProxyAttempt::Send if !endpoint.is_empty() => Ok(slot_request),
            ProxyAttempt::Receive => Ok(SlotRequest { has_begun: true, ..slot_request }),
            ProxyAttempt::Send | ProxyAttempt::Elsewhere => Err(AttemptError::NotProxied),
        }
    }

    /// Returns the hosts and ports of the engines that the proxy may use if it cannot use that of
    /// the current lane: those of the planned lanes that get the same request.
    pub(crate) fn fallbacks(
        &self,
        flow: &RequestFlow,
        topology: &Topology,
        request: &Request,
    ) -> Vec<String> {
        let Some(first) = flow.lane() else { return Vec::new() };
        let constraint = request.constraint();
        let is_allowed = |lane: &LaneId| {
            constraint.is_none_or(|constraint| constraint.objection(topology, *lane).is_none())
                && self.lanes.are_alike(request, topology, (first, *lane))
        };
        let lanes = flow.next_lanes().filter(|lane| *lane != first).filter(is_allowed);
        let endpoints = lanes.filter_map(|lane| self.lanes.endpoint(topology.name(lane)));
        endpoints.filter(|endpoint| self.is_reachable(endpoint)).map(str::to_owned).collect()
    }

    fn is_reachable(&self, endpoint: &str) -> bool {
        let subset = self.subset.as_ref();
        subset.is_none_or(|subset| subset.iter().any(|allowed| allowed == endpoint))
    }

    /// Returns the view in which lanes that the proxy cannot reach serve nothing.
    pub(crate) fn restricted(&self, view: Arc<FleetView>) -> Arc<FleetView> {
        let reaches =
            |lane: &str| self.lanes.endpoint(lane).is_some_and(|lane| self.is_reachable(lane));
        if self.subset.is_none() && view.topology.lanes().iter().all(|lane| reaches(&lane.name)) {
            return view;
        }
        let mut restricted = FleetView::clone(&view);
        restricted.topology = Arc::new(view.topology.without(|lane| !reaches(&lane.name)));
        Arc::new(restricted)
    }
}

/// Returns the view for a request: if a proxy sends it, only with the lanes that the proxy can
/// reach.
///
/// # Errors
/// If lanes could serve the request, and the proxy can reach none of them.
pub(crate) fn restricted(
    view: Arc<FleetView>,
    extensions: &Extensions,
    request: &Request,
) -> Result<Arc<FleetView>, RouteError> {
    let Some(proxy) = extensions.get::<Arc<ProxyContext>>() else { return Ok(view) };
    let restricted = proxy.restricted(Arc::clone(&view));
    let serves = |view: &FleetView| {
        view.topology.candidates_for(request.model(), request.endpoint()).next().is_some()
    };
    if serves(&view) && !serves(&restricted) {
        let reason = NoLaneReason::AllDown;
        let (filtering, lanes, retry_in) = (String::new(), Vec::new(), RETRY_LOST_ENGINE);
        return Err(RouteError::NoLane { reason, filtering, lanes, retry_in });
    }
    Ok(restricted)
}
