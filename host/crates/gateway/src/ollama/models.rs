//! The models, as Ollama lists and describes them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::response::Response;
use pointsman_domain::{Endpoint, LaneInfo};
use pointsman_fleet::LaneStatus;
use pointsman_openai::models::ModelEntry;
use pointsman_openai::timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::RouteError;
use crate::models::Catalog;
use crate::pipeline::Pipeline;
use crate::response::{self, error};
use crate::upload;

/// The end of a time that has none, as Ollama writes it for models that stay loaded.
const NEVER: &str = "2318-01-01T00:00:00Z";

/// `GET /api/tags`: the models of the listener.
pub(super) async fn tags(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    let catalog = match Catalog::new(&pipeline, &request) {
        Ok(catalog) => catalog,
        Err(refused) => return error(request, refused),
    };
    let names = catalog.names();
    let models = names.iter().filter_map(|name| {
        let entry = catalog.entry(name)?;
        let mut card = card(&catalog, &entry);
        card.insert("modified_at".to_owned(), started(&pipeline).into());
        card.insert("details".to_owned(), details(&entry));
        Some(Value::Object(card))
    });
    response::json(json!({ "models": models.collect::<Vec<_>>() }).to_string())
}

/// `GET /api/ps`: the loaded lanes, by the first name of each that is listed.
pub(super) async fn loaded(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    let catalog = match Catalog::new(&pipeline, &request) {
        Ok(catalog) => catalog,
        Err(refused) => return error(request, refused),
    };
    let topology = &catalog.view.topology;
    let loaded = topology
        .lanes()
        .iter()
        .filter(|lane| catalog.view.stat(lane.id).is_some_and(|stat| stat.state.serving()))
        .filter(|lane| catalog.shows(lane));
    let models = loaded.filter_map(|lane| {
        let name = lane.models.iter().find(|name| catalog.allows(name));
        let entry = catalog.entry(name.unwrap_or(&lane.name))?;
        let mut card = card(&catalog, &entry);
        let status = LaneStatus::find(&catalog.statuses, lane.id);
        let memory = status.map_or(0, |status| weights(status) + status.kv_bytes.unwrap_or(0));
        card.insert("size".to_owned(), memory.into());
        card.insert("size_vram".to_owned(), memory.into());
        card.insert("expires_at".to_owned(), NEVER.into());
        card.insert("context_length".to_owned(), lane.max_context.into());
        card.insert("details".to_owned(), details(&entry));
        Some(Value::Object(card))
    });
    response::json(json!({ "models": models.collect::<Vec<_>>() }).to_string())
}

/// The body of a request for `/api/show`; `name` is the older field.
#[derive(Deserialize)]
struct Show {
    model: Option<String>,
    name: Option<String>,
}

/// `POST /api/show`: what is known of a model.
pub(super) async fn show(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    let catalog = match Catalog::new(&pipeline, &request) {
        Ok(catalog) => catalog,
        Err(refused) => return error(request, refused),
    };
    let (parts, body) = request.into_parts();
    let read = read_name(&pipeline, &parts.headers, body, catalog.tenant()).await;
    let request = Request::from_parts(parts, axum::body::Body::empty());
    let name = match read {
        Ok(name) => name,
        Err(invalid) => return error(request, invalid),
    };
    match catalog.entry(&name) {
        Some(entry) => {
            response::json(Value::Object(described(&pipeline, &catalog, &entry)).to_string())
        }
        None => error(request, catalog.refusal(&name)),
    }
}

async fn read_name(
    pipeline: &Pipeline,
    headers: &http::HeaderMap,
    body: axum::body::Body,
    tenant: Option<&str>,
) -> Result<String, RouteError> {
    let received = upload::receive_any(&pipeline.uploads, headers, body, tenant);
    let (body, _reservation) = received.await?;
    let shown: Show = serde_json::from_slice(&body).map_err(pointsman_openai::BadRequest::Json)?;
    let name = shown.model.or(shown.name).filter(|name| !name.is_empty());
    Ok(name.ok_or(pointsman_openai::BadRequest::Missing { name: "model" })?)
}

fn described(pipeline: &Pipeline, catalog: &Catalog, entry: &ModelEntry<'_>) -> Map<String, Value> {
    // The architecture is not known; clients look for the length behind its name.
    const ARCHITECTURE: &str = "unknown";
    let mut info = Map::new();
    info.insert("general.architecture".to_owned(), ARCHITECTURE.into());
    info.insert("general.basename".to_owned(), entry.root.unwrap_or(entry.id).into());
    let mut parameters = String::new();
    if let Some(context) = entry.context.or(entry.trained_context) {
        info.insert(format!("{ARCHITECTURE}.context_length"), context.into());
        // Writing to a string cannot fail.
        write!(parameters, "num_ctx {context}").ok();
    }
    let mut shown = Map::new();
    let mut set = |name: &str, value: Value| shown.insert(name.to_owned(), value);
    set("modelfile", format!("FROM {}", entry.id).into());
    set("parameters", parameters.into());
    set("template", "".into());
    set("details", details(entry));
    set("model_info", info.into());
    set("capabilities", capabilities(catalog, entry).into());
    set("modified_at", started(pipeline).into());
    shown
}

/// Returns what a model can do, in Ollama's words.
fn capabilities(catalog: &Catalog, entry: &ModelEntry<'_>) -> Vec<&'static str> {
    let has = |endpoint: Endpoint| {
        let lanes = lanes(catalog, entry);
        let mut served = lanes.map(|lane| lane.endpoints.contains(endpoint)).peekable();
        served.peek().is_some() && served.all(|served| served)
    };
    let is_chat = has(Endpoint::ChatCompletions);
    let mut all = vec![if is_chat { "completion" } else { "embedding" }];
    for (known, name) in [("tools", "tools"), ("vision", "vision"), ("reasoning", "thinking")] {
        all.extend(entry.capabilities.contains(&known).then_some(name));
    }
    all
}

fn lanes<'a>(
    catalog: &'a Catalog,
    entry: &'a ModelEntry<'_>,
) -> impl Iterator<Item = &'a LaneInfo> {
    let topology = &catalog.view.topology;
    entry.lanes.iter().filter_map(|name| topology.lane(topology.find(name)?))
}

/// Returns name, size and digest. The digest is that of the name: clients only compare it.
fn card(catalog: &Catalog, entry: &ModelEntry<'_>) -> Map<String, Value> {
    let status = |lane: &LaneInfo| LaneStatus::find(&catalog.statuses, lane.id).map(weights);
    let size = lanes(catalog, entry).filter_map(status).max().unwrap_or(0);
    let digest = Sha256::digest(entry.id.as_bytes());
    let mut hex = String::with_capacity(64);
    for byte in digest {
        write!(hex, "{byte:02x}").ok();
    }
    let mut card = Map::new();
    let mut set = |name: &str, value: Value| card.insert(name.to_owned(), value);
    set("name", entry.id.into());
    set("model", entry.id.into());
    set("size", size.into());
    set("digest", hex.into());
    card
}

fn weights(status: &LaneStatus) -> u64 {
    status.weights_bytes.unwrap_or(0)
}

fn details(entry: &ModelEntry<'_>) -> Value {
    json!({
        "parent_model": entry.parent.unwrap_or_default(),
        "format": "",
        "family": entry.owner,
        "families": [entry.owner],
        "parameter_size": "",
        "quantization_level": "",
    })
}

/// Returns when the host started: the models are what they were then.
fn started(pipeline: &Pipeline) -> String {
    timestamp(UNIX_EPOCH + Duration::from_secs(pipeline.settings.started_at))
}
