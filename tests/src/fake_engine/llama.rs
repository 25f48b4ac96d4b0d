//! The HTTP API of llama-server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::completions::{complete, prompt};
use super::engine::Engine;
use super::pooling::{self, Task};
use super::responses::{Reply, llama_error, llama_server_error, ok, text};
use super::{media, messages, metrics, responses_api, slot_routes};

/// The paths that need no API key.
const PUBLIC_PATHS: [&str; 6] =
    ["/health", "/v1/health", "/models", "/v1/models", "/", "/index.html"];

/// Responds to a request.
pub(super) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    if Instant::now() < engine.ready_at {
        return llama_server_error(
            &engine,
            StatusCode::SERVICE_UNAVAILABLE,
            "Loading model",
            "unavailable_error",
        );
    }
    if !is_authorised(&engine, &request) {
        return llama_server_error(
            &engine,
            StatusCode::UNAUTHORIZED,
            "Invalid API Key",
            "authentication_error",
        );
    }
    let path = request.uri().path().to_owned();
    let unsupported = |message: &str| {
        llama_error(&engine, StatusCode::NOT_IMPLEMENTED, message, "not_supported_error")
    };
    match (request.method(), path.as_str()) {
        (&Method::GET, "/health" | "/v1/health") => ok(&engine, &json!({ "status": "ok" })),
        (&Method::GET, "/v1/models" | "/models") => ok(&engine, &models(&engine)),
        (&Method::GET, "/slots") => ok(&engine, &list_slots(&engine)),
        (&Method::GET, "/props") => ok(&engine, &props(&engine)),
        (&Method::GET, "/metrics") if engine.options.metrics || !engine.options.faithful() => {
            served_metrics(&engine)
        }
        (&Method::GET, "/metrics") => {
            unsupported("This server does not support metrics endpoint. Start it with `--metrics`")
        }
        (&Method::POST, "/v1/embeddings" | "/embeddings" | "/embedding")
            if !engine.options.embeddings && !engine.options.reranking =>
        {
            unsupported("This server does not support embeddings. Start it with `--embeddings`")
        }
        (&Method::POST, "/rerank" | "/reranking" | "/v1/rerank" | "/v1/reranking")
            if !engine.options.reranking =>
        {
            unsupported("This server does not support reranking. Start it with `--reranking`")
        }
        (&Method::POST, "/v1/responses" | "/responses") => {
            responses_api::respond(engine, request).await
        }
        (&Method::POST, "/v1/messages" | "/v1/messages/count_tokens") => {
            messages::respond(engine, request).await
        }
        (&Method::POST, "/props") => {
            let hint = "Start it with `--props`";
            unsupported(&format!("This server does not support changing global properties. {hint}"))
        }
        (&Method::GET, "/lora-adapters") => ok(&engine, &json!([])),
        (&Method::POST, "/lora-adapters") => ok(&engine, &json!({ "success": true })),
        (&Method::POST, "/apply-template") => {
            let body = body(request).await;
            ok(&engine, &json!({ "prompt": prompt(&engine, &body).0 }))
        }
        (
            &Method::POST,
            "/v1/chat/completions" | "/v1/completions" | "/completion" | "/completions" | "/infill",
        ) => complete(engine, request).await,
        (&Method::POST, path) if slot_routes::has(path) => {
            slot_routes::respond(engine, request).await
        }
        (&Method::POST, path) if media::has(&engine, path) => media::respond(engine, request).await,
        _ => pool(engine, request).await,
    }
}

/// Responds to a request for embeddings, ranks or tokens.
async fn pool(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path();
    match Task::of_path(path).filter(|task| task.is_llama() && path != "/v2/rerank") {
        Some(task) if request.method() == Method::POST => {
            pooling::respond(&engine, task, request).await
        }
        _ => {
            llama_server_error(&engine, StatusCode::NOT_FOUND, "File Not Found", "not_found_error")
        }
    }
}

/// Returns true if the request has a valid API key, or needs none.
fn is_authorised(engine: &Engine, request: &Request<Incoming>) -> bool {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let given = header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "))
        .or_else(|| header("x-api-key"));
    let keys = &engine.options.api_key;
    keys.is_empty()
        || PUBLIC_PATHS.contains(&request.uri().path())
        || keys.iter().any(|key| given == Some(key))
}

fn served_metrics(engine: &Engine) -> Reply {
    let mut reply = text(StatusCode::OK, "text/plain; version=0.0.4", metrics::llama(engine));
    if let Ok(response) = &mut reply {
        let name = HeaderName::from_static("process-start-time-unix");
        response.headers_mut().insert(name, HeaderValue::from(engine.created));
    }
    reply
}

/// Returns the body of a request; null if it is not JSON.
async fn body(request: Request<Incoming>) -> Value {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

/// Returns the number of tokens of a slot.
fn context(engine: &Engine) -> u64 {
    engine.options.max_model_len.map_or(1024, |tokens| tokens / engine.options.slots.max(1) as u64)
}

pub(super) fn list_slots(engine: &Engine) -> Value {
    let busy = engine.busy.load(Ordering::SeqCst);
    let context = context(engine);
    let known = engine.slots();
    let slot = |id: usize| {
        let mut slot = json!({ "id": id, "n_ctx": context, "speculative": false,
            "is_processing": (id as u64) < busy });
        // Only once the slot was used.
        if known.tokens(id) > 0 {
            slot["n_prompt_tokens"] = known.tokens(id).into();
        }
        slot
    };
    (0..engine.options.slots).map(slot).collect()
}

fn models(engine: &Engine) -> Value {
    let names = engine.options.names();
    let (name, context) = (engine.name(), context(engine));
    let details = json!({ "parent_model": "", "format": "gguf", "family": "", "families": [""],
        "parameter_size": "", "quantization_level": "" });
    let meta = json!({ "vocab_type": 2, "n_vocab": 49152, "n_ctx": context, "n_ctx_train": 8192,
        "n_embd": 576,
        "n_params": 134_515_008, "size": 96_576_768, "ftype": "Q4_1" });
    json!({
        "models": [{ "name": name, "model": name, "modified_at": "", "size": "", "digest": "",
            "type": "model",
            "description": "", "tags": [""], "capabilities": ["completion"], "parameters": "",
            "details": details }],
        "object": "list",
        "data": [{ "id": name, "aliases": names, "tags": [], "object": "model",
            "architecture": { "input_modalities": ["text"], "output_modalities": ["text"] },
            "created": engine.created, "owned_by": "llamacpp", "meta": meta }],
    })
}

fn props(engine: &Engine) -> Value {
    let params = r#"{"seed":4294967295,"temperature":0.800000011920929,"dynatemp_range":0.0,
        "dynatemp_exponent":1.0,"top_k":40,"top_p":0.949999988079071,
        "min_p":0.05000000074505806,"top_n_sigma":-1.0,"xtc_probability":0.0,
        "xtc_threshold":0.10000000149011612,"typical_p":1.0,"repeat_last_n":64,
        "repeat_penalty":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,
        "dry_multiplier":0.0,"dry_base":1.75,"dry_allowed_length":2,"dry_penalty_last_n":64,
        "mirostat":0,"mirostat_tau":5.0,"mirostat_eta":0.10000000149011612,
        "adaptive_target":-1.0,"adaptive_decay":0.8999999761581421,"max_tokens":-1,
        "n_predict":-1,"n_keep":0,"n_discard":0,"ignore_eos":false,"stream":false,"n_probs":0,
        "min_keep":0,"chat_format":"Content-only","reasoning_format":"none",
        "reasoning_in_content":false,"generation_prompt":"","samplers":["penalties","dry",
        "top_n_sigma","top_k","typ_p","top_p","min_p","xtc","temperature"],
        "speculative.types":"none","timings_per_token":false,"post_sampling_probs":false,
        "backend_sampling":false,"lora":[]}"#;
    let params: Value = serde_json::from_str(params).unwrap_or_default();
    let template = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n\
        ' + message['content'] \
        + '<|im_end|>' + '\n'}}{% endfor %}";
    let caps = json!({ "supports_object_arguments": false, "supports_parallel_tool_calls": false,
        "supports_preserve_reasoning": false, "supports_reasoning_effort": false,
        "supports_string_content": true, "supports_system_role": true, "supports_tool_calls": false,
        "supports_tools": false, "supports_typed_content": false });
    json!({
        "default_generation_settings": { "params": params, "n_ctx": context(engine) },
        "total_slots": engine.options.slots, "model_alias": engine.name(), "model_ftype": "Q4_1",
        "model_path": engine.options.model.as_deref().unwrap_or("model.gguf"),
        "modalities": { "vision": false, "video": false, "audio": false },
        "media_marker": "<__media_1MEaYNc8kX1w7GJsoNevExFVqduRjKtY__>",
        "endpoint_slots": true, "endpoint_props": false,
        "endpoint_metrics": engine.options.metrics, "ui": true,
        "ui_settings": {}, "chat_template": template, "chat_template_caps": caps,
            "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "build_info": "b0-unknown", "is_sleeping": false,
        "cors_proxy_enabled": false,
    })
}
