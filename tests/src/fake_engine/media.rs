//! Audio and images: transcriptions and translations of uploads, speech, and generated images.
//!
//! Transcriptions are those of vLLM. Speech and images are those of OpenAI's API, which other
//! engines follow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::completions::parse_body;
use super::engine::Engine;
use super::response_body::{ResponseBody, Step, Tails};
use super::responses::{Reply, failure, ok, text, vllm_error};
use super::script::ResponseScript;

/// Returns true if the engine has this path, as its options say.
pub(super) fn has(engine: &Engine, path: &str) -> bool {
    match path {
        "/v1/audio/transcriptions" | "/v1/audio/translations" | "/v1/audio/speech" => {
            engine.options.audio
        }
        "/v1/images/generations" | "/v1/images/edits" | "/v1/images/variations" => {
            engine.options.images
        }
        _ => false,
    }
}

/// One part of a form.
struct Part {
    name: String,
    file_name: Option<String>,
    content_type: Option<String>,
    content: Bytes,
}

/// Responds to a request for one of these paths.
pub(super) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
        return failure(&engine, StatusCode::BAD_REQUEST, "the client is gone");
    };
    let script = engine.script();
    if script.hang || script.health_lies {
        std::future::pending::<()>().await;
    }
    if let Some(status) = script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        return failure(&engine, status, "as the script says");
    }
    let path = parts.uri.path();
    if matches!(path, "/v1/audio/speech" | "/v1/images/generations") {
        return match parse_body(&engine, &parts, &body) {
            Ok(json) if path == "/v1/audio/speech" => speech(&engine, &script, &json),
            Ok(json) => images(&engine, &script, &json),
            Err(error) => *error,
        };
    }
    let form = match read_form(&parts, &body) {
        Ok(form) => form,
        Err(message) => {
            return vllm_error(&engine, StatusCode::BAD_REQUEST, message, "Bad Request", None);
        }
    };
    if script.echo {
        return echo(&engine, &parts, &form, &body);
    }
    let required = if path.starts_with("/v1/audio") { "file" } else { "image" };
    // OpenAI's library sends several images as `image[]`.
    let is_required = |part: &&Part| part.name.trim_end_matches("[]") == required;
    let Some(file) = form.iter().find(is_required).filter(|part| part.file_name.is_some()) else {
        let message = format!(
            "1 validation error:\n  {{'type': 'missing', 'loc': ('body', '{required}'), 'msg': \
             'Field required', 'input': None}}"
        );
        return vllm_error(&engine, StatusCode::BAD_REQUEST, &message, "Bad Request", None);
    };
    let field = |name: &str| {
        let part = form.iter().find(|part| part.name == name)?;
        std::str::from_utf8(&part.content).ok()
    };
    match required {
        "file" => transcribe(&engine, &script, &file.content, &field),
        _ => {
            let stream = field("stream").is_some_and(|stream| stream == "true");
            images(&engine, &script, &json!({ "stream": stream, "edit": true }))
        }
    }
}

/// Responds with what has arrived.
fn echo(engine: &Engine, parts: &request::Parts, form: &[Part], body: &Bytes) -> Reply {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let part = |part: &Part| {
        let digest = Sha256::digest(&part.content);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = Some(&part.content).filter(|content| content.len() < 200);
        json!({ "name": part.name, "file_name": part.file_name, "content_type": part.content_type,
            "size": part.content.len(), "sha256": digest,
            "text": text.map(|text| String::from_utf8_lossy(text)) })
    };
    let parts_json: Vec<Value> = form.iter().map(part).collect();
    ok(
        engine,
        &json!({ "path": parts.uri.path(), "content_length": header("content-length"),
            "transfer_encoding": header("transfer-encoding"), "size": body.len(),
            "parts": parts_json }),
    )
}

/// Reads a form strictly: all that is not a form as RFC 7578 has it is an error.
fn read_form(parts: &request::Parts, body: &Bytes) -> Result<Vec<Part>, &'static str> {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let boundary = kind
        .and_then(|kind| kind.strip_prefix("multipart/form-data; boundary="))
        .ok_or("Missing boundary in multipart.")?;
    let delimiter = format!("\r\n--{boundary}");
    let first = &delimiter.as_bytes()[2..];
    let mut rest = body.strip_prefix(first).ok_or("Invalid form: no boundary")?;
    let mut form = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, delimiter.as_bytes()).ok_or("Invalid form: no end")?;
        form.push(read_part(body, &part[..end])?);
        rest = &part[end + delimiter.len()..];
    }
    if rest == b"--\r\n" { Ok(form) } else { Err("Invalid form: invalid end") }
}

fn read_part(body: &Bytes, part: &[u8]) -> Result<Part, &'static str> {
    let end = find(part, b"\r\n\r\n").ok_or("Invalid form: no end of headers")?;
    let head = std::str::from_utf8(&part[..end]).map_err(|_| "Invalid form: headers")?;
    let header = |name: &str| {
        let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let disposition = header("content-disposition").ok_or("Invalid form: no disposition")?;
    let parameter = |name: &str| {
        let start = format!("; {name}=\"");
        let (_, value) = disposition.split_once(&start)?;
        Some(value.split_once('"')?.0.to_owned())
    };
    let name = parameter("name").ok_or("Invalid form: no name")?;
    let content_type = header("content-type").map(str::to_owned);
    let content = body.slice_ref(&part[end + 4..]);
    Ok(Part { name, file_name: parameter("filename"), content_type, content })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(found) = haystack[at..].iter().position(|byte| *byte == needle[0]) {
        at += found;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Responds with a transcript: as many words as the script says.
fn transcribe<'a>(
    engine: &Arc<Engine>,
    script: &ResponseScript,
    audio: &[u8],
    field: &impl Fn(&str) -> Option<&'a str>,
) -> Reply {
    let bad = |message: &str| {
        vllm_error(engine, StatusCode::BAD_REQUEST, message, "BadRequestError", None)
    };
    let model = field("model").unwrap_or_default();
    if !model.is_empty() && !engine.options.names().iter().any(|name| name == model) {
        let message = format!("The model `{model}` does not exist.");
        let (status, param) = (StatusCode::NOT_FOUND, Some("model"));
        return vllm_error(engine, status, &message, "NotFoundError", param);
    }
    if audio.is_empty() {
        return bad("Invalid or unsupported audio file.");
    }
    let words: Vec<String> = (0..script.tokens).map(|word| format!("word{word}")).collect();
    let transcript = words.join(" ");
    let seconds = audio.len().div_ceil(32_000);
    let streams = field("stream").is_some_and(|stream| stream.eq_ignore_ascii_case("true"));
    match field("response_format").unwrap_or("json") {
        "json" if streams => {
            let chunk = |content: &str, finish: Option<&str>| {
                let choice = json!({ "delta": { "content": content }, "finish_reason": finish,
                    "stop_reason": null });
                event(&json!({ "id": "trsc-1", "object": "transcription.chunk",
                    "created": engine.created, "model": engine.name(), "choices": [choice] }))
            };
            let last = words.len().saturating_sub(1);
            let finish = |at: usize| (at == last).then_some("stop");
            let mut events: Vec<String> = words
                .iter()
                .enumerate()
                .map(|(at, word)| chunk(&format!(" {word}"), finish(at)))
                .collect();
            events.push("data: [DONE]\n\n".to_owned());
            stream(engine, script, "text/event-stream; charset=utf-8", events)
        }
        "json" => ok(
            engine,
            &json!({ "text": transcript, "usage": { "type": "duration", "seconds": seconds } }),
        ),
        "verbose_json" => {
            let segment = json!({ "id": 0, "avg_logprob": -0.1, "compression_ratio": 1.0,
                "end": seconds, "no_speech_prob": null, "seek": 0, "start": 0.0,
                "temperature": 0.0, "text": transcript, "tokens": [1, 2] });
            ok(
                engine,
                &json!({ "duration": seconds.to_string(), "language": "en", "text": transcript,
                    "segments": [segment], "words": null }),
            )
        }
        "text" => text(StatusCode::OK, "text/plain; charset=utf-8", transcript + "\n"),
        "srt" | "vtt" if !engine.options.vllm() => {
            let text_of = format!("1\n00:00:00,000 --> 00:00:01,000\n{transcript}\n\n");
            text(StatusCode::OK, "text/plain; charset=utf-8", text_of)
        }
        _ => bad("Currently only support response_format: `text`, `json` or `verbose_json`"),
    }
}

/// Responds with as many chunks of noise as the script says, or with events that have them.
fn speech(engine: &Arc<Engine>, script: &ResponseScript, request: &Value) -> Reply {
    if !request["input"].is_string() || !request["voice"].is_string() {
        let message = "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'input')}";
        return vllm_error(engine, StatusCode::BAD_REQUEST, message, "Bad Request", None);
    }
    let tokens = script.tokens;
    if request["stream_format"] == "sse" {
        let delta = |_| event(&json!({ "type": "speech.audio.delta", "audio": "UklGRg==" }));
        let mut events: Vec<String> = (0..tokens).map(delta).collect();
        let usage = json!({ "input_tokens": 3, "output_tokens": tokens,
            "total_tokens": tokens + 3 });
        events.push(event(&json!({ "type": "speech.audio.done", "usage": usage })));
        return stream(engine, script, "text/event-stream", events);
    }
    let noise = |chunk: u64| {
        let bytes: Vec<u8> = (0..4_096_u64).map(|at| (at * 31 + chunk * 17) as u8).collect();
        bytes
    };
    stream(engine, script, "audio/mpeg", (0..tokens).map(noise).collect())
}

/// Responds with an image of one pixel.
fn images(engine: &Arc<Engine>, script: &ResponseScript, request: &Value) -> Reply {
    const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk\
                         YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
    let is_edit = request["edit"] == true;
    if !is_edit && !request["prompt"].is_string() {
        let message = "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'prompt')}";
        return vllm_error(engine, StatusCode::BAD_REQUEST, message, "Bad Request", None);
    }
    let usage = json!({ "input_tokens": 5, "output_tokens": script.tokens,
        "total_tokens": 5 + script.tokens });
    if request["stream"] != true {
        let count = request["n"].as_u64().unwrap_or(1);
        let data: Vec<Value> = (0..count).map(|_| json!({ "b64_json": PIXEL })).collect();
        return ok(engine, &json!({ "created": engine.created, "data": data, "usage": usage }));
    }
    let kind = if is_edit { "image_edit" } else { "image_generation" };
    let named = |name: &str, more: Value| {
        let kind = format!("{kind}.{name}");
        let mut data = json!({ "type": kind, "b64_json": PIXEL, "created_at": engine.created });
        if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
        }
        format!("event: {kind}\ndata: {data}\n\n")
    };
    let partial = |index| named("partial_image", json!({ "partial_image_index": index }));
    let mut events: Vec<String> = (0..script.tokens).map(partial).collect();
    events.push(named("completed", json!({ "usage": usage })));
    stream(engine, script, "text/event-stream", events)
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// Sends chunks one by one, with the faults of the script.
fn stream(
    engine: &Arc<Engine>,
    script: &ResponseScript,
    kind: &'static str,
    chunks: Vec<impl Into<Bytes>>,
) -> Reply {
    let mut steps = VecDeque::new();
    for (token, chunk) in (0..).zip(chunks) {
        steps.push_back(Step::Wait(Duration::from_millis(script.token_ms)));
        let here = |fault: Option<u64>| fault == Some(token);
        steps.extend(here(script.stall_after).then_some(Step::Stall));
        steps.extend(here(script.die_after).then_some(Step::Die));
        if here(script.end_after) {
            break;
        }
        steps.push_back(Step::Send(chunk.into()));
    }
    let body = ResponseBody::in_flight(engine, "media", steps, Tails::default());
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}
