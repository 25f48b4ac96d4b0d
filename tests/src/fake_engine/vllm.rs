//! The HTTP API of vLLM.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::completions::complete;
use super::engine::Engine;
use super::pooling::{self, Task};
use super::responses::{Reply, detail, empty, json, ok, text};
use super::{media, messages, metrics, responses_api, sleep_mode};

/// The paths of all models with their allowed methods.
const PATHS: [(&str, &str); 8] = [
    ("/health", "GET"),
    ("/version", "GET"),
    ("/load", "GET"),
    ("/metrics", "GET"),
    ("/v1/models", "GET"),
    ("/ping", "GET, POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
];
/// The paths of models that generate text; the method is POST.
const GENERATE: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
];
/// The paths of pooling models; the method is POST.
const POOLING: [&str; 6] =
    ["/pooling", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"];

/// Returns the paths that the model has, with their allowed methods: others do not exist.
fn paths(engine: &Engine) -> Vec<(&'static str, &'static str)> {
    let mut paths = PATHS.to_vec();
    match (engine.options.runner.as_str(), engine.options.convert.as_str()) {
        ("pooling", convert) => {
            let own = if convert == "classify" { "/classify" } else { "/v1/embeddings" };
            paths.extend(POOLING.into_iter().chain([own]).map(|path| (path, "POST")));
        }
        _ => paths.extend(GENERATE.map(|path| (path, "POST"))),
    }
    paths
}

/// Returns the description of the routes, as far as clients read it.
fn openapi(engine: &Engine) -> Value {
    let route = |(path, methods): (&str, &str)| {
        let methods = methods.split(", ").map(|method| (method.to_lowercase(), json!({})));
        (path.to_owned(), Value::Object(methods.collect()))
    };
    let paths = Value::Object(paths(engine).into_iter().map(route).collect());
    let info = json!({ "title": "FastAPI", "version": "0.1.0" });
    json!({ "openapi": "3.1.0", "info": info, "paths": paths })
}

/// Returns true if the request has a valid API key or does not need one.
fn authorized(engine: &Engine, request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    let keys = &engine.options.api_key;
    let guarded =
        ["/v1", "/v2", "/inference", "/cohere"].iter().any(|prefix| path.starts_with(prefix));
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    keys.is_empty() || !guarded || keys.iter().any(|key| given == Some(key))
}

/// Responds to a request.
pub(super) async fn respond(engine: Arc<Engine>, mut request: Request<Incoming>) -> Reply {
    if !authorized(&engine, &request) {
        return json(&engine, StatusCode::UNAUTHORIZED, &json!({ "error": "Unauthorized" }));
    }
    let development = std::env::var("VLLM_SERVER_DEV_MODE").is_ok_and(|value| value == "1");
    if engine.options.enable_sleep_mode && development {
        match sleep_mode::respond(&engine, request).await {
            Ok(reply) => return reply,
            Err(other) => request = other,
        }
    }
    let path = request.uri().path().to_owned();
    let dead = engine.state.borrow().core_dead && !engine.script().health_lies;
    match (request.method(), path.as_str()) {
        (&Method::GET, "/health") | (_, "/ping") => {
            empty(if dead { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
        }
        (&Method::GET, "/version") => ok(&engine, &json!({ "version": "0.32.0" })),
        (&Method::GET, "/load") => ok(&engine, &json!({ "server_load": 0 })),
        (&Method::GET, "/metrics") => {
            text(StatusCode::OK, "text/plain; version=1.0.0; charset=utf-8", metrics::vllm(&engine))
        }
        (&Method::GET, "/v1/models") => ok(&engine, &models(&engine)),
        (&Method::GET, "/slots") if !engine.options.faithful() => {
            ok(&engine, &super::llama::list_slots(&engine))
        }
        (&Method::GET, "/openapi.json") if !engine.options.disable_fastapi_docs => {
            ok(&engine, &openapi(&engine))
        }
        (&Method::POST, path) if media::has(&engine, path) => media::respond(engine, request).await,
        (method, _) => match paths(&engine).into_iter().find(|(known, _)| *known == path) {
            Some(("/v1/chat/completions" | "/v1/completions", _)) if method == Method::POST => {
                complete(engine, request).await
            }
            Some(("/v1/messages" | "/v1/messages/count_tokens", _)) if method == Method::POST => {
                messages::respond(engine, request).await
            }
            Some((path, "POST")) if method == Method::POST => match Task::of_path(path) {
                Some(task) => pooling::respond(&engine, task, request).await,
                // The only other path of models that generate text.
                None => responses_api::respond(engine, request).await,
            },
            Some((_, methods)) => {
                let mut reply = detail(&engine, StatusCode::METHOD_NOT_ALLOWED);
                if let Ok(response) = &mut reply {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
                }
                reply
            }
            None => detail(&engine, StatusCode::NOT_FOUND),
        },
    }
}

fn models(engine: &Engine) -> Value {
    let card = |name: &str, root: &str, parent: Option<&str>, max_model_len: Option<u64>| {
        let permission = json!({ "id": format!("modelperm-{}", engine.id(16, true)),
            "object": "model_permission", "created": engine.created, "allow_create_engine": false,
            "allow_sampling": true, "allow_logprobs": true, "allow_search_indices": false,
                "allow_view": true,
            "allow_fine_tuning": false, "organization": "*", "group": null, "is_blocking": false });
        json!({ "id": name, "object": "model", "created": engine.created, "owned_by": "vllm",
            "root": root, "parent": parent, "max_model_len": max_model_len,
                "permission": [permission] })
    };
    let context = Some(engine.options.max_model_len.unwrap_or(32_768));
    let model =
        |name: &String| card(name, engine.options.model.as_ref().unwrap_or(name), None, context);
    // Adapters belong to the first name, and have no length of their own.
    let adapter = |(name, path)| card(name, path, Some(engine.name()), None);
    let adapters = engine.options.adapters().map(adapter);
    let data: Value = engine.options.names().iter().map(model).chain(adapters).collect();
    json!({ "object": "list", "data": data })
}
