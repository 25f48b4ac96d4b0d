//! What clients may do with responses that are kept.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use pointsman_domain::Endpoint;
use pointsman_openai::{BadRequest, Item};
use serde_json::{Value, json};

use super::elsewhere;
use super::stored::{Stored, failed};
use super::turn::Owner;
use crate::error::RouteError;
use crate::forwarded::{Client, Forwarded};
use crate::pipeline::Pipeline;
use crate::response::{error, json as json_response};
use crate::rights;

/// The number of items of a page by default, and the largest one.
const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

type Id = Result<Path<String>, PathRejection>;

/// `GET /v1/responses/{id}`
pub(crate) async fn retrieve(
    State(pipeline): State<Arc<Pipeline>>,
    id: Id,
    request: Request,
) -> Response {
    if parameter(&request, "stream").is_some_and(|value| value == "true") {
        let what = "streams of stored responses";
        return error(request, BadRequest::unsupported("stream", what).into());
    }
    let found = find(&pipeline, id, owner(&pipeline, &request)).await;
    respond(&pipeline, found.map(|(_, stored)| stored.response), request).await
}

/// `DELETE /v1/responses/{id}`
pub(crate) async fn delete(
    State(pipeline): State<Arc<Pipeline>>,
    id: Id,
    request: Request,
) -> Response {
    let found = find(&pipeline, id, owner(&pipeline, &request)).await;
    let deleted = found.map(|(id, _)| {
        pipeline.responses.cancel(&id);
        pipeline.responses.remove(&id);
        json!({ "id": id, "object": "response", "deleted": true })
    });
    respond(&pipeline, deleted, request).await
}

/// `POST /v1/responses/{id}/cancel`
pub(crate) async fn cancel(
    State(pipeline): State<Arc<Pipeline>>,
    id: Id,
    request: Request,
) -> Response {
    let found = find(&pipeline, id, owner(&pipeline, &request)).await;
    let cancelled = found.and_then(|(id, mut stored)| {
        if stored.response.get("background") != Some(&Value::Bool(true)) {
            return Err(BadRequest::invalid("background", "a response in the background").into());
        }
        // One that is over stays as it is.
        if pipeline.responses.cancel(&id) {
            stored.response["status"] = "cancelled".into();
            pipeline.responses.update(&id, &stored);
        }
        Ok(stored.response)
    });
    respond(&pipeline, cancelled, request).await
}

/// `GET /v1/responses/{id}/input_items`
pub(crate) async fn input_items(
    State(pipeline): State<Arc<Pipeline>>,
    id: Id,
    request: Request,
) -> Response {
    let found = find(&pipeline, id, owner(&pipeline, &request)).await;
    let page = found.and_then(|(id, stored)| page(&id, &stored, &request));
    respond(&pipeline, page, request).await
}

async fn respond(
    pipeline: &Pipeline,
    result: Result<Value, RouteError>,
    request: Request,
) -> Response {
    match result {
        Ok(body) => json_response(body.to_string()),
        Err(RouteError::ResponseElsewhere { id, host }) => {
            elsewhere::pass_on(pipeline, request, id, host).await
        }
        Err(cause) => error(request, cause),
    }
}

fn owner(pipeline: &Pipeline, request: &Request) -> Result<Owner, RouteError> {
    let identity = rights::identify(&pipeline.keys, request.headers(), request.extensions())?;
    rights::check_endpoint(&identity.rights, Endpoint::Responses)?;
    let host = pipeline.fleet.host_id();
    let forwarded = Forwarded::read(&identity, request.headers(), host);
    let client = Client::from(&*identity);
    Ok(forwarded.as_ref().map_or(client, |forwarded| forwarded.client(client)).into())
}

/// Returns the response that a client asks for, with its id.
async fn find(
    pipeline: &Pipeline,
    id: Id,
    owner: Result<Owner, RouteError>,
) -> Result<(String, Stored), RouteError> {
    let owner = owner?;
    let id = id.map(|Path(id)| id).unwrap_or_default();
    // Before the store is read: the response may be complete until then. The host before this one
    // may execute it.
    let was_live = pipeline.responses.is_live(&id) || pipeline.drain.has_predecessor();
    let Some(mut stored) = pipeline.responses.get(&id, &owner).await? else {
        return Err(match pipeline.responses.host_of(&id, &owner).await {
            Some(host) => RouteError::ResponseElsewhere { id, host },
            None => RouteError::UnknownResponse { id },
        });
    };
    if stored.is_pending() && !was_live {
        stored.response = failed(stored.response, "server_error", "the host was stopped");
    }
    Ok((id, stored))
}

/// Returns the first value of a parameter of the query.
fn parameter<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn page(id: &str, stored: &Stored, request: &Request) -> Result<Value, RouteError> {
    let limit = match parameter(request, "limit") {
        None => DEFAULT_LIMIT,
        Some(limit) => {
            let limit = limit.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| BadRequest::invalid("limit", "a number from 1 to 100"))?
        }
    };
    let mut items: Vec<Value> =
        stored.input.iter().enumerate().filter_map(|(at, item)| listed(id, at, item)).collect();
    match parameter(request, "order") {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(BadRequest::invalid("order", "`asc` or `desc`").into()),
    }
    if let Some(after) = parameter(request, "after") {
        let position = items.iter().position(|item| item.get("id").is_some_and(|id| id == after));
        let position = position.ok_or_else(|| RouteError::UnknownItem { id: after.to_owned() })?;
        items.drain(..=position);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id_of = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned();
    Ok(json!({
        "object": "list",
        "first_id": id_of(items.first()),
        "last_id": id_of(items.last()),
        "has_more": has_more,
        "data": items,
    }))
}

/// Returns an item as it is listed: with an id and a type, and with parts instead of a text.
fn listed(response: &str, at: usize, item: &Item) -> Option<Value> {
    let mut item: Value = serde_json::from_str(item.get()).ok()?;
    let fields = item.as_object_mut()?;
    let suffix = response.split_once('_').map_or(response, |(_, suffix)| suffix);
    fields.entry("id").or_insert_with(|| format!("item_{suffix}{at:02}").into());
    fields.entry("type").or_insert_with(|| "message".into());
    if item["type"] == "message" {
        let is_output = item.get("role").is_some_and(|role| role == "assistant");
        let kind = if is_output { "output_text" } else { "input_text" };
        if let Some(Value::String(text)) = item.get("content") {
            let mut part = json!({ "type": kind, "text": text });
            if is_output {
                part["annotations"] = json!([]);
            }
            item["content"] = json!([part]);
        }
        if item.get("status").is_none() {
            item["status"] = "completed".into();
        }
    }
    Some(item)
}
