//! What a ready engine says about its models: their context length, its adapters and its endpoints.
//!
//! vLLM and llama.cpp list their models at `/v1/models`; llama.cpp describes its model at `/props`,
//! and vLLM its routes at `/openapi.json`.
//! All input is untrusted: what is malformed, too long or too much is left out.

use std::time::Duration;

use http::Method;
use pointsman_domain::{Endpoint, EndpointSet, EngineKind, public_name};
use serde_json::Value;

use crate::driver::{Driver, Target};
use crate::drivers::llama_cpp;
use crate::model_card::{Adapter, ModelCard};
use crate::upstream::Upstream;

/// Maximum time for each response. An engine that takes longer serves nevertheless.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of adapters that are learned of one engine.
const MAX_ADAPTERS: usize = 256;
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 256;

/// Asks a ready engine about its models. `names` are those by which the lane may ask the engine for
/// its own one.
pub(crate) async fn learn(
    driver: &dyn Driver,
    upstream: &Upstream,
    target: &Target,
    names: &[String],
) -> ModelCard {
    let get = async |path: &str| {
        let (status, body) = upstream.call(target, Method::GET, path, None, TIMEOUT).await.ok()?;
        let body = status.is_success().then_some(body)?;
        serde_json::from_slice::<Value>(&body).ok()
    };
    let listed = get("/v1/models").await.map(|list| read_models(&list, names));
    let listed = listed.unwrap_or_default();
    match (driver.info().kind, listed.owner.as_deref()) {
        (EngineKind::LlamaCpp, _) => {
            let props = get("/props").await.map(|props| read_props(&props, driver.endpoints()));
            listed.completed(&props.unwrap_or_default())
        }
        (EngineKind::Vllm, _) | (EngineKind::External, Some("vllm")) => {
            // Not there with `--disable-fastapi-docs`.
            let routes = get("/openapi.json").await;
            let endpoints = routes.and_then(|routes| read_routes(&routes));
            ModelCard { endpoints, ..listed }
        }
        // How it was started is not known: it says itself if it lacks one of these.
        (EngineKind::External, Some("llamacpp")) => {
            ModelCard { endpoints: Some(llama_cpp::endpoints(true, true)), ..listed }
        }
        (EngineKind::External | EngineKind::Other, _) => listed,
    }
}

/// Reads the OpenAPI description of vLLM, which has the routes that its model can serve. Returns
/// `None` if it has none that the host knows.
fn read_routes(description: &Value) -> Option<EndpointSet> {
    let paths = &description["paths"];
    let has = |endpoint: &Endpoint| {
        endpoint.path().is_some_and(|path| paths.get(path).is_some_and(Value::is_object))
    };
    let set = EndpointSet::new(Endpoint::ALL.into_iter().filter(has));
    (set != EndpointSet::default()).then_some(set)
}

/// Reads `/v1/models`.
fn read_models(list: &Value, names: &[String]) -> ModelCard {
    let cards = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |card: &Value| card["id"].as_str().map(str::to_owned);
    let (adapters, models): (Vec<&Value>, Vec<&Value>) =
        cards.iter().partition(|card| card["parent"].is_string());
    let is_named = |card: &&&Value| id(card).is_some_and(|id| names.contains(&id));
    let own = match (models.iter().find(is_named), models.as_slice()) {
        (Some(own), _) => own,
        // An engine with one model ignores the name, or it is the only one that can be meant.
        (None, [only]) => only,
        (None, _) => return ModelCard::default(),
    };
    let root = own["root"].as_str();
    // vLLM lists a model once for each of its names, which all have the same root.
    let is_own =
        |card: &&Value| id(card) == id(own) || (root.is_some() && card["root"] == own["root"]);
    let own_ids: Vec<&str> =
        models.iter().copied().filter(is_own).filter_map(|card| card["id"].as_str()).collect();
    let is_on_own = |card: &&Value| {
        card["parent"]
            .as_str()
            .is_some_and(|parent| own_ids.contains(&parent) || Some(parent) == root)
    };
    let contexts = [
        &own["max_model_len"],
        &own["meta"]["n_ctx"],
        &own["context_length"],
        &own["context_window"],
    ];
    let inputs = own["architecture"]["input_modalities"].as_array();
    ModelCard {
        root: public_text(&own["root"]),
        owner: text(&own["owned_by"]),
        context: contexts.into_iter().find_map(tokens),
        trained_context: tokens(&own["meta"]["n_ctx_train"]),
        vision: inputs.is_some_and(|inputs| inputs.iter().any(|input| input == "image")),
        adapters: adapters
            .into_iter()
            .filter(is_on_own)
            .filter_map(adapter)
            .take(MAX_ADAPTERS)
            .collect(),
        ..ModelCard::default()
    }
}

fn adapter(card: &Value) -> Option<Adapter> {
    Some(Adapter { name: text(&card["id"])?, root: public_text(&card["root"]) })
}

/// Reads llama.cpp's `/props`. `endpoints` are those that follow from its command line.
fn read_props(props: &Value, endpoints: EndpointSet) -> ModelCard {
    let takes_audio = props["modalities"]["audio"] == true;
    let transcriptions = EndpointSet::new([Endpoint::Transcriptions]);
    ModelCard {
        root: public_text(&props["model_path"]),
        context: tokens(&props["default_generation_settings"]["n_ctx"]),
        tools: props["chat_template_caps"]["supports_tool_calls"] == true,
        vision: props["modalities"]["vision"] == true,
        endpoints: takes_audio.then(|| endpoints.union(transcriptions)),
        ..ModelCard::default()
    }
}

fn tokens(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|tokens| tokens.try_into().ok()).filter(|tokens| *tokens > 0)
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let is_name = !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control);
    is_name.then(|| text.to_owned())
}

fn public_text(value: &Value) -> Option<String> {
    text(value).map(|text| public_name(&text).to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
