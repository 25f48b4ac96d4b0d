//! `POST /v1/messages/count_tokens`, answered by the host: clients ask often, and a lane must not
//! be loaded for it.

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use pointsman_domain::{Endpoint, FleetView, RequestView as _, Serving};
use pointsman_openai::Request;

use crate::response::json;

/// Says that the number of tokens is the host's estimate.
const ESTIMATE: HeaderName = HeaderName::from_static("x-pointsman-estimate");

/// Returns the host's answer to a request for the number of its tokens, unless an engine that is
/// loaded can count them; `None` for all other requests.
pub(crate) fn estimate(request: &Request, fleet: &FleetView) -> Option<Response> {
    if request.endpoint() != Endpoint::CountTokens || can_be_counted(request, fleet) {
        return None;
    }
    let mut response = json(format!("{{\"input_tokens\":{}}}", request.estimated_input_tokens()));
    response.headers_mut().insert(ESTIMATE, HeaderValue::from_static("true"));
    Some(response)
}

/// Returns true if a lane of the model is loaded whose engine has the endpoint.
fn can_be_counted(request: &Request, fleet: &FleetView) -> bool {
    let topology = &fleet.topology;
    topology.candidates(request.model()).iter().any(|lane| {
        let is_loaded = fleet.stat(*lane).is_some_and(|stat| stat.state.serving());
        is_loaded && topology.serving(*lane, Endpoint::CountTokens) == Serving::Native
    })
}
