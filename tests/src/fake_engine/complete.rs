//! Requests for answers: what is wrong with them, and what they get.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answer::{Act, AnswerBody, Ending, Tails};
use super::engine::Engine;
use super::options::Flavour;
use super::reply::{Reply, failure, llama_error, ok, text, vllm_error};
use super::script::Script;
use super::text::{Answer, CORE_DEAD, core_dead_event};

/// What both endpoints do: the whole way of a request.
pub(super) async fn complete(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body: Bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let script = engine.script();
    if engine.options.bench && script.token_ms == 0 {
        return Ok(AnswerBody::constant(&body));
    }
    let asked = match read(&engine, &parts, &body) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    if script.hang || script.health_lies {
        std::future::pending::<()>().await;
    }
    if let Some(status) = script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        return failure(&engine, status, "as the script says");
    }
    if script.echo {
        let headers: serde_json::Map<String, Value> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), Value::from(value.to_str().unwrap_or("?"))))
            .collect();
        let body = String::from_utf8_lossy(&body);
        return ok(&engine, &json!({ "path": parts.uri.path(), "headers": headers, "body": body }));
    }
    let mood = *engine.mood.borrow();
    if mood.draining {
        return failure(
            &engine,
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot schedule new futures after shutdown",
        );
    }
    if mood.core_dead {
        return failure(&engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    let answer = match answer(&engine, &script, &parts, &asked) {
        Ok(answer) => answer,
        Err(refused) => return *refused,
    };
    respond(&engine, &script, answer, &parts, &asked).await
}

/// The JSON of a request, or what is said to one that has none.
pub(super) fn read(
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
    let wrong = match serde_json::from_slice(body) {
        Ok(asked) => return Ok(asked),
        Err(wrong) => wrong,
    };
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(wrong.line().saturating_sub(1));
    let at = lines.map(<[u8]>::len).sum::<usize>() + wrong.column();
    if engine.options.vllm() {
        let message = format!(
            "1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', \
             'input': '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
        );
        return bad(&message, "Bad Request", Some(&format!("body.{at}")));
    }
    let what = if wrong.is_eof() { "unexpected end of input" } else { "invalid literal" };
    let message = format!(
        "[json.exception.parse_error.101] parse error at line {}, column {}: syntax error while parsing value - \
         {what}; expected '[', '{{', or a literal",
        wrong.line(),
        wrong.column() + 1,
    );
    Err(Box::new(llama_error(engine, StatusCode::BAD_REQUEST, &message, "invalid_request_error")))
}

/// A request's prompt, and how many tokens it has.
pub(super) fn prompt(engine: &Engine, asked: &Value) -> (String, u64) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut prompt = String::new();
    let mut frame = 0;
    match asked["messages"].as_array() {
        Some(messages) => {
            for message in messages {
                prompt.push_str(&text(&message["role"]));
                prompt.push_str(&text(&message["content"]));
                frame += if engine.options.vllm() { 10 } else { 29 };
            }
        }
        None => {
            prompt =
                text(if asked["prompt"].is_null() { &asked["input"] } else { &asked["prompt"] })
        }
    }
    // The recorded vLLM had a token for each byte.
    let length = prompt.len() as u64;
    let tokens = if engine.options.vllm() && engine.options.faithful() {
        length
    } else {
        length.div_ceil(4)
    };
    (prompt, (tokens + frame).max(1))
}

/// What is wrong with a request that is JSON.
fn check(engine: &Engine, chat: bool, asked: &Value, tokens: u64) -> Result<(), Box<Reply>> {
    let refuse = |status, message: &str, kind: &str, param: &str| {
        Err(Box::new(match engine.options.flavour {
            Flavour::Vllm => vllm_error(engine, status, message, kind, Some(param)),
            Flavour::LlamaCpp => llama_error(engine, status, message, "invalid_request_error"),
        }))
    };
    let bad = StatusCode::BAD_REQUEST;
    let needed = if chat { "messages" } else { "prompt" };
    if asked[needed].is_null() {
        let count = asked.as_object().map_or(0, serde_json::Map::len);
        let vllm = format!(
            "1 validation error:\n  {{'type': 'missing', 'loc': 'body.{needed}', 'msg': 'Field required', \
             'input': '<dict of {count} items>'}}"
        );
        let llama = format!("'{needed}' is required");
        let message = if engine.options.vllm() { vllm } else { llama };
        return refuse(bad, &message, "Bad Request", &format!("body.{needed}"));
    }
    if engine.options.vllm() {
        if !asked["stream_options"].is_null() && asked["stream"] != true {
            let message =
                "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
            return refuse(bad, message, "BadRequestError", "stream_options");
        }
        let (names, model) = (engine.options.names(), asked["model"].as_str());
        if let Some(model) = model.filter(|model| !names.iter().any(|name| name == model)) {
            let message =
                format!("The model `{model}` does not exist. Valid aliases: {}.", names.join(", "));
            return refuse(StatusCode::NOT_FOUND, &message, "NotFoundError", "model");
        }
    }
    too_long(engine, asked, tokens)
}

fn too_long(engine: &Engine, asked: &Value, tokens: u64) -> Result<(), Box<Reply>> {
    let Some(most) = engine.options.max_model_len else { return Ok(()) };
    if !engine.options.vllm() {
        let most = most / engine.options.slots.max(1) as u64;
        if tokens < most {
            return Ok(());
        }
        let message = format!(
            "request ({tokens} tokens) exceeds the available context size ({most} tokens), try increasing it"
        );
        let error = json!({ "code": 400, "message": message, "type": "exceed_context_size_error",
            "n_prompt_tokens": tokens, "n_ctx": most });
        return Err(Box::new(super::reply::json(
            engine,
            StatusCode::BAD_REQUEST,
            &json!({ "error": error }),
        )));
    }
    let output = wanted(asked).unwrap_or(0);
    let value = tokens.min(most + 1);
    let rest = if tokens > most {
        format!(
            "your prompt contains at least {value} input tokens, which exceeds this limit even without any output \
             tokens. Please reduce the length of the input prompt."
        )
    } else if tokens + output > most {
        format!(
            "you requested {output} output tokens and your prompt contains at least {value} input tokens, for a \
             total of at least {} tokens. Please reduce the length of the input prompt or the number of requested \
             output tokens.",
            value + output
        )
    } else {
        return Ok(());
    };
    let message = format!(
        "This model's maximum context length is {most} tokens. However, {rest} (parameter=input_tokens, value={value})"
    );
    let param = Some("input_tokens");
    Err(Box::new(vllm_error(engine, StatusCode::BAD_REQUEST, &message, "BadRequestError", param)))
}

/// How many tokens the client wants.
pub(super) fn wanted(asked: &Value) -> Option<u64> {
    ["max_completion_tokens", "max_tokens", "max_output_tokens"]
        .iter()
        .find_map(|key| asked[*key].as_u64())
}

/// The answer to a request, or what is said to one that gets none.
fn answer(
    engine: &Engine,
    script: &Script,
    parts: &request::Parts,
    asked: &Value,
) -> Result<Answer, Box<Reply>> {
    let chat = parts.uri.path().contains("chat");
    let (prompt, prompt_tokens) = prompt(engine, asked);
    check(engine, chat, asked, prompt_tokens)?;
    let cached_tokens = engine.counts().prompt(&prompt, prompt_tokens);
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let id = match engine.options.flavour {
        Flavour::Vllm => {
            let given = header("x-request-id").or_else(|| asked["request_id"].as_str());
            let suffix = given.map_or_else(|| engine.id(16, true), str::to_owned);
            format!("{}-{suffix}", if chat { "chatcmpl" } else { "cmpl" })
        }
        Flavour::LlamaCpp => format!("chatcmpl-{}", engine.id(32, false)),
    };
    let wanted = wanted(asked);
    let garbage = script.garbage || engine.nap().garbled();
    Ok(Answer {
        flavour: engine.options.flavour,
        faithful: engine.options.faithful(),
        garbage,
        chat,
        id,
        model: engine.name().to_owned(),
        created: engine.created,
        prompt,
        prompt_tokens,
        cached_tokens,
        tokens: wanted.unwrap_or(script.tokens).min(10_000),
        finish: if wanted.is_some() { "length" } else { "stop" },
        include_usage: asked["stream_options"]["include_usage"] == true,
    })
}

/// Answer as the script says.
async fn respond(
    engine: &Arc<Engine>,
    script: &Script,
    answer: Answer,
    parts: &request::Parts,
    asked: &Value,
) -> Reply {
    let header =
        parts.headers.get("x-vllm-priority").and_then(|value| value.to_str().ok()?.parse().ok());
    let priority = header.or_else(|| asked["priority"].as_i64()).unwrap_or(0);
    engine.counts().priorities.push(priority);
    let policy = engine.options.scheduling_policy == "priority";
    let turn = Arc::clone(&engine.queue).admit(if policy { priority } else { 0 });
    let mut acts = VecDeque::from([Act::Admit(Box::pin(turn))]);
    if asked["stream"] == true {
        stream(script, &answer, &mut acts);
        let tails = Tails {
            aborted: Bytes::from(answer.piece("", Some("abort")) + &answer.last()),
            core_dead: Bytes::from(core_dead_event()),
        };
        let mut body = AnswerBody::working(engine, &answer.id, acts, tails);
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
    acts.push_back(Act::Wait(Duration::from_millis(script.token_ms.saturating_mul(answer.tokens))));
    acts.extend(script.die_after.map(|_| Act::Die));
    acts.extend(script.oom_after.map(|_| Act::Oom));
    acts.push_back(Act::Count(answer.tokens));
    acts.push_back(Act::Finish(answer.finish));
    let (_, ending) =
        AnswerBody::working(engine, &answer.id, acts, Tails::default()).collect().await;
    let mut body = match ending {
        Ending::CoreDead => return failure(engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD),
        Ending::Aborted => Answer { tokens: 0, ..answer }.whole("abort"),
        Ending::Whole => answer.whole(answer.finish),
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

/// An answer as a stream.
fn stream(script: &Script, answer: &Answer, acts: &mut VecDeque<Act>) {
    let send = |acts: &mut VecDeque<Act>, text: String| {
        let bytes = Bytes::from(text);
        let size = script.cut.unwrap_or(bytes.len()).max(1);
        let pieces = (0..bytes.len())
            .step_by(size)
            .map(|start| bytes.slice(start..(start + size).min(bytes.len())));
        acts.extend(pieces.map(Act::Send));
    };
    let vllm = answer.flavour == Flavour::Vllm;
    if let Some(first) = answer.first() {
        send(acts, first);
    }
    for token in 0..answer.tokens {
        acts.push_back(Act::Wait(Duration::from_millis(script.token_ms)));
        let here = |fault: Option<u64>| fault == Some(token);
        acts.extend(here(script.stall_after).then_some(Act::Stall));
        acts.extend(here(script.die_after).then_some(Act::Die));
        acts.extend(here(script.oom_after).then_some(Act::Oom));
        if here(script.malformed) {
            send(
                acts,
                format!("data: {{\"id\":\"{}\",\"choices\":[{{\"index\":0,\"del\n\n", answer.id),
            );
        }
        if here(script.end_after) {
            return;
        }
        if here(script.error_after) {
            return send(acts, core_dead_event());
        }
        acts.push_back(Act::Count(1));
        let finish = (vllm && token + 1 == answer.tokens).then_some(answer.finish);
        send(acts, answer.piece(&answer.token(token), finish));
    }
    if !vllm || answer.tokens == 0 {
        send(acts, answer.piece("", Some(answer.finish)));
    }
    acts.push_back(Act::Finish(answer.finish));
    send(acts, answer.last());
}
