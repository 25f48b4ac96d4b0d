//! Checks of fields that several endpoints have.

use http::StatusCode;
use serde_json::{Map, Value};

use super::engine::Engine;
use super::responses::{Reply, llama_error, vllm_error};

/// Rejects a request without a field, with the words of the real engine.
pub(super) fn check_needed(
    engine: &Engine,
    request_body: &Value,
    needed: &str,
) -> Result<(), Box<Reply>> {
    // The parts of a text with a gap to fill are of llama.cpp only.
    if !request_body[needed].is_null() || !request_body["input_prefix"].is_null() {
        return Ok(());
    }
    let count = request_body.as_object().map_or(0, Map::len);
    let vllm = format!(
        "1 validation error:\n  {{'type': 'missing', 'loc': 'body.{needed}', 'msg': 'Field \
         required', 'input': '<dict of {count} items>'}}"
    );
    let bad = StatusCode::BAD_REQUEST;
    Err(Box::new(match engine.options.vllm() {
        true => vllm_error(engine, bad, &vllm, "Bad Request", Some(&format!("body.{needed}"))),
        false => {
            let message = format!("'{needed}' is required");
            llama_error(engine, bad, &message, "invalid_request_error")
        }
    }))
}

/// Rejects a model that a vLLM does not serve. llama.cpp ignores the name.
pub(super) fn check_model(engine: &Engine, request_body: &Value) -> Result<(), Box<Reply>> {
    let (names, model) = (engine.options.names(), request_body["model"].as_str());
    let is_known = |model: &&str| {
        names.iter().any(|name| name == model)
            || engine.options.adapters().any(|(name, _)| name == *model)
    };
    match model.filter(|model| engine.options.vllm() && !is_known(model)) {
        Some(model) => {
            let message =
                format!("The model `{model}` does not exist. Valid aliases: {}.", names.join(", "));
            let status = StatusCode::NOT_FOUND;
            Err(Box::new(vllm_error(engine, status, &message, "NotFoundError", Some("model"))))
        }
        None => Ok(()),
    }
}
