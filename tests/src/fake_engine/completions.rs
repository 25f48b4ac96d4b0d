//! Requests for completions: their validation and their responses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::completion::{CORE_DEAD, Completion, core_dead_event};
use super::engine::Engine;
use super::fields::{check_model, check_needed};
use super::options::Flavour;
use super::response_body::{BodyEnd, ResponseBody, Step, Tails};
use super::responses::{Reply, echo, failure, llama_error, text, vllm_error};
use super::script::ResponseScript;
use super::steps;

/// Responds to a request for a chat completion or a text completion.
pub(super) async fn complete(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body: Bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let script = engine.script();
    if engine.options.bench && script.token_ms == 0 {
        return Ok(ResponseBody::constant(&body));
    }
    let request_body = match parse_body(&engine, &parts, &body) {
        Ok(request_body) => request_body,
        Err(error) => return *error,
    };
    if script.hang || script.health_lies {
        std::future::pending::<()>().await;
    }
    if let Some(status) = script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        return failure(&engine, status, "as the script says");
    }
    if script.echo {
        return echo(&engine, &parts, &body);
    }
    let state = *engine.state.borrow();
    if state.draining {
        return failure(
            &engine,
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot schedule new futures after shutdown",
        );
    }
    if state.core_dead {
        return failure(&engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    let completion = match validate(&engine, &script, &parts, &request_body) {
        Ok(completion) => completion,
        Err(error) => return *error,
    };
    respond(&engine, &script, completion, &parts, &request_body).await
}

/// Parses the body of a request, or returns the error response.
pub(super) fn parse_body(
    engine: &Engine,
    parts: &request::Parts,
    body: &Bytes,
) -> Result<Value, Box<Reply>> {
    let bad = |message: &str, kind: &str, param: Option<&str>| {
        Err(Box::new(vllm_error(engine, StatusCode::BAD_REQUEST, message, kind, param)))
    };
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if engine.options.vllm() && kind.split(';').next() != Some("application/json") {
        let message =
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        return bad(message, "Bad Request", None);
    }
    let error = match serde_json::from_slice(body) {
        Ok(request_body) => return Ok(request_body),
        Err(error) => error,
    };
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let at = lines.map(<[u8]>::len).sum::<usize>() + error.column();
    if engine.options.vllm() {
        let message = format!(
            "1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON \
             decode error', \
             'input': '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
        );
        return bad(&message, "Bad Request", Some(&format!("body.{at}")));
    }
    let what = if error.is_eof() { "unexpected end of input" } else { "invalid literal" };
    let message = format!(
        "[json.exception.parse_error.101] parse error at line {}, column {}: syntax error while \
         parsing value - \
         {what}; expected '[', '{{', or a literal",
        error.line(),
        error.column() + 1,
    );
    Err(Box::new(llama_error(engine, StatusCode::BAD_REQUEST, &message, "invalid_request_error")))
}

/// Returns the prompt of a request, and its number of tokens.
pub(super) fn prompt(engine: &Engine, request_body: &Value) -> (String, u64) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut prompt = String::new();
    let mut template_tokens = 0;
    match request_body["messages"].as_array() {
        Some(messages) => {
            for message in messages {
                prompt.push_str(&text(&message["role"]));
                prompt.push_str(&text(&message["content"]));
                template_tokens += if engine.options.vllm() { 10 } else { 29 };
            }
        }
        None => {
            prompt = text(if request_body["prompt"].is_null() {
                &request_body["input"]
            } else {
                &request_body["prompt"]
            })
        }
    }
    // The captured vLLM used a tokenizer with one token per byte.
    let length = prompt.len() as u64;
    let tokens = if engine.options.vllm() && engine.options.faithful() {
        length
    } else {
        length.div_ceil(4)
    };
    (prompt, (tokens + template_tokens).max(1))
}

/// Checks the fields of a request, or returns the error response.
fn check_fields(
    engine: &Engine,
    chat: bool,
    request_body: &Value,
    tokens: u64,
) -> Result<(), Box<Reply>> {
    let reject = |status, message: &str, kind: &str, param: &str| {
        Err(Box::new(match engine.options.flavour {
            Flavour::Vllm => vllm_error(engine, status, message, kind, Some(param)),
            Flavour::LlamaCpp => llama_error(engine, status, message, "invalid_request_error"),
        }))
    };
    let bad = StatusCode::BAD_REQUEST;
    check_needed(engine, request_body, if chat { "messages" } else { "prompt" })?;
    if engine.options.vllm()
        && !request_body["stream_options"].is_null()
        && request_body["stream"] != true
    {
        let message =
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        return reject(bad, message, "BadRequestError", "stream_options");
    }
    check_model(engine, request_body)?;
    check_media(engine, request_body)?;
    check_tools(engine, request_body)?;
    check_length(engine, request_body, tokens)
}

/// Rejects media for a model that reads only text, with the status of the real engine.
fn check_media(engine: &Engine, request_body: &Value) -> Result<(), Box<Reply>> {
    let messages = request_body["messages"].as_array().into_iter().flatten();
    let mut parts = messages.filter_map(|message| message["content"].as_array()).flatten();
    let kind = parts.find_map(|part| match part["type"].as_str()? {
        "image_url" => Some("image"),
        "input_audio" => Some("audio"),
        "input_video" | "video_url" => Some("video"),
        _ => None,
    });
    let Some(kind) = kind.filter(|_| !engine.options.vision) else { return Ok(()) };
    Err(Box::new(match engine.options.flavour {
        Flavour::LlamaCpp => {
            let message = format!(
                "{kind} input is not supported - hint: if this is unexpected, you may need to \
                 provide the mmproj"
            );
            llama_error(engine, StatusCode::INTERNAL_SERVER_ERROR, &message, "server_error")
        }
        Flavour::Vllm => {
            let model = engine.options.model.as_deref().unwrap_or(engine.name());
            let message = format!("{model} is not a multimodal model");
            vllm_error(engine, StatusCode::BAD_REQUEST, &message, "BadRequestError", None)
        }
    }))
}

/// Rejects tools that the model may choose from, if vLLM was started without a parser for its
/// calls. Without `tool_choice`, that is the default.
fn check_tools(engine: &Engine, request_body: &Value) -> Result<(), Box<Reply>> {
    let options = &engine.options;
    let parses = options.enable_auto_tool_choice && options.tool_call_parser.is_some();
    let has_tools = request_body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    let is_auto = match request_body["tool_choice"].as_str() {
        Some(choice) => choice == "auto",
        None => has_tools && request_body["tool_choice"].is_null(),
    };
    if !options.vllm() || parses || !is_auto {
        return Ok(());
    }
    let message = "\"auto\" tool choice requires --enable-auto-tool-choice and \
                   --tool-call-parser to be set";
    Err(Box::new(vllm_error(engine, StatusCode::BAD_REQUEST, message, "BadRequestError", None)))
}

fn check_length(engine: &Engine, request_body: &Value, tokens: u64) -> Result<(), Box<Reply>> {
    let Some(max_model_len) = engine.options.max_model_len else { return Ok(()) };
    if !engine.options.vllm() {
        let n_ctx = max_model_len / engine.options.slots.max(1) as u64;
        if tokens < n_ctx {
            return Ok(());
        }
        let message = format!(
            "request ({tokens} tokens) exceeds the available context size ({n_ctx} tokens), try \
             increasing it"
        );
        let error = json!({ "code": 400, "message": message, "type": "exceed_context_size_error",
            "n_prompt_tokens": tokens, "n_ctx": n_ctx });
        return Err(Box::new(super::responses::json(
            engine,
            StatusCode::BAD_REQUEST,
            &json!({ "error": error }),
        )));
    }
    let output = max_tokens(request_body).unwrap_or(0);
    let value = tokens.min(max_model_len + 1);
    let rest = if tokens > max_model_len {
        format!(
            "your prompt contains at least {value} input tokens, which exceeds this limit even \
             without any output \
             tokens. Please reduce the length of the input prompt."
        )
    } else if tokens + output > max_model_len {
        format!(
            "you requested {output} output tokens and your prompt contains at least {value} input \
             tokens, for a \
             total of at least {} tokens. Please reduce the length of the input prompt or the \
             number of requested \
             output tokens.",
            value + output
        )
    } else {
        return Ok(());
    };
    let message = format!(
        "This model's maximum context length is {max_model_len} tokens. However, {rest} \
         (parameter=input_tokens, value={value})"
    );
    let param = Some("input_tokens");
    Err(Box::new(vllm_error(engine, StatusCode::BAD_REQUEST, &message, "BadRequestError", param)))
}

/// Returns the maximum number of output tokens in the request.
pub(super) fn max_tokens(request_body: &Value) -> Option<u64> {
    ["max_completion_tokens", "max_tokens", "max_output_tokens"]
        .iter()
        .find_map(|key| request_body[*key].as_u64())
}

/// Validates a request; returns the completion that it gets, or the error response.
fn validate(
    engine: &Engine,
    script: &ResponseScript,
    parts: &request::Parts,
    request_body: &Value,
) -> Result<Completion, Box<Reply>> {
    let chat = parts.uri.path().contains("chat");
    let (prompt, prompt_tokens) = prompt(engine, request_body);
    check_fields(engine, chat, request_body, prompt_tokens)?;
    let cached_tokens = engine.counts().prompt(&prompt, prompt_tokens);
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let id = match engine.options.flavour {
        Flavour::Vllm => {
            let given = header("x-request-id").or_else(|| request_body["request_id"].as_str());
            let suffix = given.map_or_else(|| engine.id(16, true), str::to_owned);
            format!("{}-{suffix}", if chat { "chatcmpl" } else { "cmpl" })
        }
        Flavour::LlamaCpp => format!("chatcmpl-{}", engine.id(32, false)),
    };
    let wanted = request_body["model"].as_str();
    let adapter =
        engine.options.adapters().map(|(name, _)| name).find(|name| Some(*name) == wanted);
    let native = !parts.uri.path().starts_with("/v1/");
    let own = request_body["n_predict"].as_u64().filter(|_| native);
    let max_tokens = own.or_else(|| max_tokens(request_body));
    let tokens = max_tokens.unwrap_or(script.tokens).min(10_000);
    // The last token of a response is not in the cache.
    let cached = prompt_tokens + tokens.saturating_sub(1);
    engine.slots().serve(&request_body["id_slot"], &prompt, cached);
    let garbage = script.garbage || engine.sleep_state().has_wrong_output();
    Ok(Completion {
        flavour: engine.options.flavour,
        faithful: engine.options.faithful(),
        garbage,
        chat,
        id,
        model: adapter.unwrap_or(engine.name()).to_owned(),
        created: engine.created,
        prompt,
        prompt_tokens,
        cached_tokens,
        tokens,
        finish: if max_tokens.is_some() { "length" } else { "stop" },
        include_usage: request_body["stream_options"]["include_usage"] == true,
        streamed: request_body["stream"] == true,
        native,
    })
}

/// Sends a completion as the script says.
async fn respond(
    engine: &Arc<Engine>,
    script: &ResponseScript,
    completion: Completion,
    parts: &request::Parts,
    request_body: &Value,
) -> Reply {
    let header =
        parts.headers.get("x-vllm-priority").and_then(|value| value.to_str().ok()?.parse().ok());
    let priority = header.or_else(|| request_body["priority"].as_i64()).unwrap_or(0);
    engine.counts().priorities.push(priority);
    let policy = engine.options.scheduling_policy == "priority";
    let permit = Arc::clone(&engine.queue).admit(if policy { priority } else { 0 });
    let mut steps = VecDeque::from([Step::Admit(Box::pin(permit))]);
    if request_body["stream"] == true {
        steps::stream(script, &completion, &mut steps);
        let tails = Tails {
            aborted: Bytes::from(completion.piece("", Some("abort")) + &completion.last()),
            core_dead: Bytes::from(core_dead_event()),
        };
        let mut body = ResponseBody::in_flight(engine, &completion.id, steps, tails);
        let mut kind = "text/event-stream; charset=utf-8";
        if !engine.options.vllm() {
            kind = "text/event-stream";
            body = body.admitted().await;
        }
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if !engine.options.vllm() {
            response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        }
        return Ok(response);
    }
    steps::whole(script, &completion, &mut steps);
    let (_, ending) =
        ResponseBody::in_flight(engine, &completion.id, steps, Tails::default()).collect().await;
    let mut body = match ending {
        BodyEnd::CoreDead => return failure(engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD),
        BodyEnd::Aborted => Completion { tokens: 0, ..completion }.whole("abort"),
        BodyEnd::Complete => completion.whole(completion.finish),
    }
    .to_string();
    if script.malformed.is_some() {
        body.truncate(body.char_indices().nth(body.chars().count() / 2).map_or(0, |(at, _)| at));
        return text(StatusCode::OK, "application/json", body);
    }
    text(
        StatusCode::OK,
        if engine.options.vllm() { "application/json" } else { "application/json; charset=utf-8" },
        body,
    )
}
