//! What the console shows at a moment, as one document.

use serde_json::Value;

use super::requests;
use crate::in_flight::InFlightRequests;
use crate::peer_status;
use crate::status::{StatusSources, operator_status};

/// Returns the whole status: that of `/status`, and also requests in flight. Nothing in it changes
/// just because time passes.
pub(super) async fn document(host: &StatusSources, in_flight: &InFlightRequests) -> Value {
    let requests = requests::rows(in_flight, &host.fleet).await;
    let mut document = operator_status(host);
    if let Some(machine) = document["machine"].as_object_mut() {
        machine.remove("measured_at");
    }
    let lanes = document["lanes"].as_array_mut().into_iter().flatten();
    lanes.for_each(|lane| peer_status::settle(&mut lane["host"]));
    document["policies"].as_array_mut().into_iter().flatten().for_each(shorten);
    document["requests"] = requests.into();
    document
}

/// Removes of a policy's status what is long, and what changes all the time.
fn shorten(policy: &mut Value) {
    if let Some(candidate) = policy["candidate"].as_object_mut() {
        candidate.remove("differences");
    }
    if let Some(left) = policy["probation"]["left_ms"].as_u64() {
        policy["probation"]["left_ms"] = (left / 1000 * 1000).into();
    }
}
