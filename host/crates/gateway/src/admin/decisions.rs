//! Decisions on the admin API: those about requests that have ended, and previews.

use std::fs;
use std::io::BufReader;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use pointsman_access::endpoint_named;
use pointsman_domain::Endpoint;
use pointsman_files::open_regular;
use pointsman_record::{Explanation, Source, files, find};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::respond::respond;
use crate::admin_error::AdminError;
use crate::error::RouteError;
use crate::error_code::ErrorCode;
use crate::gateway::{Gateway, MainListener};
use crate::pipeline::Pipeline;
use crate::preview::{PreviewRequest, preview};
use crate::response::{self, error, only};
use crate::settings::ListenerSettings;
use crate::{paths, request_id};

/// Requests of a list without `limit`, and the maximum.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// Maximum bytes of the body of a request about which is only decided.
const MAX_BODY: usize = 8 << 20;
/// Maximum bytes of record files that are searched for a request.
const MAX_SEARCHED: u64 = 1 << 30;
/// Previews at a time. Each has instances of its own of all policies.
const MAX_PREVIEWS: usize = 2;

/// Headers of a preview that are not those of the request.
const OWN_HEADERS: [HeaderName; 10] = [
    ENDPOINT,
    KEY,
    HeaderName::from_static("x-pointsman-operator"),
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    header::COOKIE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
];
/// Names the path of the endpoint.
const ENDPOINT: HeaderName = HeaderName::from_static("x-pointsman-decide-path");
/// Names the key with which the request is sent.
const KEY: HeaderName = HeaderName::from_static("x-pointsman-decide-key");

/// What the routes need.
#[derive(Clone)]
struct Sources {
    pipeline: Arc<Pipeline>,
    listener: MainListener,
    previews: Arc<Semaphore>,
}

pub(super) fn routes(pipeline: Arc<Pipeline>, listener: MainListener) -> Router {
    let previews = Arc::new(Semaphore::new(MAX_PREVIEWS));
    Router::new()
        .route("/decisions", only("GET, HEAD", get(list)))
        .route("/decisions/{id}", only("GET, HEAD", get(show)))
        .route("/decide", only("POST", post(decide)))
        .with_state(Sources { pipeline, listener, previews })
}

/// The parameters of a list. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListParameters {
    limit: Option<usize>,
    before: Option<String>,
}

async fn list(State(sources): State<Sources>, request: Request) -> Response {
    let parameters = match parameters::<ListParameters>(&request) {
        Ok(parameters) => parameters,
        Err(invalid) => return error(request, invalid.into()),
    };
    let limit = parameters.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let ended = sources.pipeline.decisions.list(limit, parameters.before.as_deref());
    let rows: Vec<Value> = ended.iter().map(|request| request.row()).collect();
    response::json(json!({ "decisions": rows }).to_string())
}

async fn show(
    State(sources): State<Sources>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    respond(request, move || explain(&sources.pipeline, &id).map(|found| json!(found))).await
}

/// Explains a request that has ended. May block.
fn explain(pipeline: &Pipeline, id: &str) -> Result<Explanation, AdminError> {
    let (decisions, recorder) = (&pipeline.decisions, pipeline.recorder.as_ref());
    if let Some(ended) = decisions.find(id) {
        // As if it was recorded: texts that records do not have are not shown either.
        let redact = recorder.map(|recorder| recorder.redact()).or(decisions.redact());
        return Ok(ended.explain(redact, Source::Recent));
    }
    let recorded = recorder.and_then(|recorder| search(recorder.dir(), id));
    recorded.ok_or_else(|| {
        let is_in_flight = pipeline.in_flight.list().iter().any(|request| request.id == id);
        let hint = match is_in_flight {
            true => "it is in flight, and explained when it has ended",
            false => "it is not one of the recent decisions, and not recorded",
        };
        let message = format!("no decision about the request `{}`: {hint}", id.escape_debug());
        AdminError::new(ErrorCode::DecisionNotFound, message)
    })
}

/// Searches the newest record files for a request.
fn search(dir: &FilePath, id: &str) -> Option<Explanation> {
    let mut searched = 0;
    for file in files(dir).ok()?.into_iter().rev() {
        searched += fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if searched > MAX_SEARCHED {
            break;
        }
        // A file may be rotated away meanwhile.
        let found = open_regular(&file).ok().map(|file| find(BufReader::new(file), id));
        if let Some(Ok(Some(recorded))) = found {
            return Some(recorded.explain());
        }
    }
    None
}

/// The parameters of a preview, which headers may have as well.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecideParameters {
    endpoint: Option<String>,
    key: Option<String>,
}

async fn decide(State(sources): State<Sources>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let decided = preview_of(&sources, parts.clone(), body).await;
    match decided {
        Ok(explanation) => response::json(json!(explanation).to_string()),
        Err(refused) => error(Request::from_parts(parts, Body::empty()), refused),
    }
}

/// Responds to `POST /decide` of the admin API for a gateway that serves no listener: the request
/// is decided as one of a client of a listener with these settings. Returns the status and the
/// JSON body of the response.
pub async fn preview_request(
    gateway: &Gateway,
    listener: ListenerSettings,
    request: http::Request<String>,
) -> (StatusCode, Bytes) {
    gateway.note_listener(&Arc::new(listener));
    let (mut parts, body) = request.into_parts();
    request_id::ensure(&mut parts);
    let sources = Sources {
        pipeline: gateway.pipeline(),
        listener: Arc::clone(gateway.main_listener()),
        previews: Arc::new(Semaphore::new(MAX_PREVIEWS)),
    };
    let request = Request::from_parts(parts, Body::from(body));
    let (parts, body) = decide(State(sources), request).await.into_parts();
    // Never fails: the body is in memory.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    (parts.status, body)
}

async fn preview_of(
    sources: &Sources,
    parts: Parts,
    body: Body,
) -> Result<Explanation, RouteError> {
    let invalid = |text: String| AdminError::new(ErrorCode::InvalidRequest, text);
    let request = Request::from_parts(parts, Body::empty());
    let DecideParameters { endpoint, key } = parameters(&request)?;
    let (mut parts, _) = request.into_parts();
    let header = |name| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let endpoint = match endpoint.or_else(|| header(ENDPOINT)) {
        None => Endpoint::ChatCompletions,
        Some(name) => endpoint_at(&name)
            .ok_or_else(|| invalid(format!("unknown endpoint \"{}\"", name.escape_debug())))?,
    };
    let identity = match key.or_else(|| header(KEY)) {
        None => None,
        Some(id) => {
            let found = sources.pipeline.keys.named(&id)?;
            let unknown = || {
                let message = format!("no API key has the id `{}`", id.escape_debug());
                AdminError::new(ErrorCode::KeyNotFound, message)
            };
            Some(found.ok_or_else(unknown)?)
        }
    };
    let max = sources.pipeline.settings.max_body.min(MAX_BODY);
    let body = Limited::new(body, max).collect().await.map_err(RouteError::IncompleteBody)?;
    let id = request_id::get(&parts.headers).to_owned();
    OWN_HEADERS.iter().for_each(|name| drop(parts.headers.remove(name)));
    // The query is that of the admin API.
    parts.uri = http::Uri::from_static("/");
    parts.extensions.clear();
    if let Some(listener) = sources.listener.load_full() {
        parts.extensions.insert(listener);
    }
    let body = body.to_bytes();
    // Fails only if the semaphore is closed, which it never is.
    let permit = sources.previews.acquire().await.ok();
    let request = PreviewRequest { id, endpoint, parts, body, identity };
    let explanation = preview(&sources.pipeline, request).await;
    drop(permit);
    Ok(explanation)
}

/// Returns the endpoint with a name or a path.
fn endpoint_at(name: &str) -> Option<Endpoint> {
    let served = |endpoint: &Endpoint| *endpoint != Endpoint::Other;
    match name.starts_with('/') {
        true => paths::endpoint_at(&paths::normalize(name, "")?).filter(served),
        false => endpoint_named(name).filter(served),
    }
}

fn parameters<T: for<'de> Deserialize<'de>>(request: &Request) -> Result<T, AdminError> {
    match Query::<T>::try_from_uri(request.uri()) {
        Ok(Query(parameters)) => Ok(parameters),
        Err(invalid) => Err(AdminError::new(ErrorCode::InvalidRequest, invalid.body_text())),
    }
}
