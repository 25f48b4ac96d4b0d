//! `GET /v1/models` and `GET /v1/models/{id}`: the models that the lanes serve.

use pointsman_domain::Topology;
use serde_json::{Value, json};

/// Returns the body of the model list, sorted by id. `created` is in seconds since the Unix epoch.
pub fn list(topology: &Topology, created: u64) -> String {
    let data: Vec<Value> =
        topology.models().into_iter().map(|id| card(topology, id, created)).collect();
    json!({ "object": "list", "data": data }).to_string()
}

/// Returns the body for one model; `None` if no lane serves it.
pub fn one(topology: &Topology, id: &str, created: u64) -> Option<String> {
    (!topology.candidates(id).is_empty()).then(|| card(topology, id, created).to_string())
}

fn card(topology: &Topology, id: &str, created: u64) -> Value {
    let lanes: Vec<&str> =
        topology.candidates(id).iter().map(|lane| topology.name(*lane)).collect();
    json!({
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "pointsman",
        "lanes": lanes,
    })
}
