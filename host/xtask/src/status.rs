//! What tasks read of the status of a host.

use serde_json::Value;

/// Returns true if there are lanes in the response of `GET /status`, and all of them are ready.
pub fn all_lanes_are_ready(status: &str) -> bool {
    let status: Value = serde_json::from_str(status).unwrap_or_default();
    let lanes = status["lanes"].as_array();
    let all = |lanes: &Vec<Value>| lanes.iter().all(|lane| lane["state"] == "ready");
    lanes.is_some_and(|lanes| !lanes.is_empty() && all(lanes))
}
