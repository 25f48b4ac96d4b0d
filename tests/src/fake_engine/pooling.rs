//! Endpoints without generated text: embeddings, ranking, classification and tokens.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, StatusCode, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::completion::CORE_DEAD;
use super::completions::parse_body;
use super::engine::Engine;
use super::fields::{check_model, check_needed};
use super::responses::{Reply, echo, failure, llama_error, ok, vllm_error};

/// Number of dimensions of an embedding.
const DIMENSIONS: usize = 8;

/// What an endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Embed,
    /// llama.cpp's own form.
    EmbedNatively,
    Pool,
    Rank,
    Score,
    Classify,
    Tokenize,
    Detokenize,
}

impl Task {
    /// Returns the task of an endpoint with this path at an engine.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/embeddings" => Self::Embed,
            "/embedding" | "/embeddings" => Self::EmbedNatively,
            "/pooling" => Self::Pool,
            "/rerank" | "/v1/rerank" | "/v2/rerank" | "/reranking" | "/v1/reranking" => Self::Rank,
            "/score" | "/v1/score" => Self::Score,
            "/classify" => Self::Classify,
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            _ => return None,
        })
    }

    /// Returns true if llama.cpp has it.
    pub(super) fn is_llama(self) -> bool {
        match self {
            Self::Embed | Self::EmbedNatively | Self::Rank | Self::Tokenize | Self::Detokenize => {
                true
            }
            Self::Pool | Self::Score | Self::Classify => false,
        }
    }
}

/// Responds to a request.
pub(super) async fn respond(engine: &Engine, task: Task, request: Request<Incoming>) -> Reply {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let script = engine.script();
    if script.hang || script.health_lies {
        std::future::pending::<()>().await;
    }
    if let Some(status) = script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        return failure(engine, status, "as the script says");
    }
    if script.echo {
        return echo(engine, &parts, &body);
    }
    if engine.state.borrow().core_dead {
        return failure(engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    answer(engine, task, &parts, &body).unwrap_or_else(|error| *error)
}

fn answer(
    engine: &Engine,
    task: Task,
    parts: &request::Parts,
    body: &Bytes,
) -> Result<Reply, Box<Reply>> {
    let body = parse_body(engine, parts, body)?;
    check_model(engine, &body)?;
    let reply = match task {
        Task::Embed => embeddings(engine, &body)?,
        Task::EmbedNatively => {
            let one = |(index, text): (usize, &String)| {
                let embedding = [vector(text, DIMENSIONS)];
                json!({ "index": index, "embedding": embedding })
            };
            inputs(engine, &body)?.0.iter().enumerate().map(one).collect()
        }
        Task::Classify => {
            let (texts, tokens) = inputs(engine, &body)?;
            let one = |text: &String| {
                let yes = similarity(text, "LABEL_1");
                let label = if yes > 0.5 { "LABEL_1" } else { "LABEL_0" };
                json!({ "label": label, "probs": [1.0 - yes, yes], "num_classes": 2 })
            };
            listed(engine, "classify", texts.iter().map(one), tokens)
        }
        Task::Pool => {
            let (texts, tokens) = inputs(engine, &body)?;
            let one =
                |text: &String| json!({ "object": "pooling", "data": [vector(text, DIMENSIONS)] });
            listed(engine, "pool", texts.iter().map(one), tokens)
        }
        Task::Rank => rank(engine, &body)?,
        Task::Score => score(engine, &body)?,
        Task::Tokenize => tokenize(engine, &body),
        Task::Detokenize => detokenize(engine, &body)?,
    };
    Ok(ok(engine, &reply))
}

fn score(engine: &Engine, body: &Value) -> Result<Value, Box<Reply>> {
    let (one, other) = match body["queries"].is_null() {
        true => ("text_1", "text_2"),
        false => ("queries", "documents"),
    };
    check_needed(engine, body, one)?;
    check_needed(engine, body, other)?;
    let (queries, documents) = (texts(&body[one]), texts(&body[other]));
    let query = |index: usize| queries.get(index).or(queries.first()).map_or("", String::as_str);
    let tokens = queries.iter().chain(&documents).map(|text| tokens(engine, text)).sum();
    let score = |(index, text): (usize, &String)| {
        let score = similarity(query(index), text);
        json!({ "object": "score", "score": score })
    };
    Ok(listed(engine, "score", documents.iter().enumerate().map(score), tokens))
}

fn tokenize(engine: &Engine, body: &Value) -> Value {
    if engine.options.vllm() {
        let prompt = super::completions::prompt(engine, body).0;
        let tokens: Vec<u8> = prompt.bytes().map(|byte| byte.wrapping_sub(33)).collect();
        let max_model_len = engine.options.max_model_len.unwrap_or(32_768);
        return json!({ "count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens,
            "token_strs": null });
    }
    let bytes = body["content"].as_str().unwrap_or("").as_bytes();
    let token = |chunk: &[u8]| chunk.iter().map(|byte| usize::from(*byte)).sum::<usize>();
    json!({ "tokens": bytes.chunks(4).map(token).collect::<Vec<usize>>() })
}

fn detokenize(engine: &Engine, body: &Value) -> Result<Value, Box<Reply>> {
    let ids = body["tokens"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    let byte = |id: u64| u8::try_from(id % 94).unwrap_or(0) + 33;
    let text: String = ids.map(|id| char::from(byte(id))).collect();
    if engine.options.vllm() {
        check_needed(engine, body, "tokens")?;
        return Ok(json!({ "prompt": text }));
    }
    Ok(json!({ "content": text }))
}

/// Returns the texts of a request and the number of their tokens, or the error of the real engine.
fn inputs(engine: &Engine, body: &Value) -> Result<(Vec<String>, u64), Box<Reply>> {
    let counted = |texts: Vec<String>| {
        let tokens = texts.iter().map(|text| tokens(engine, text)).sum();
        (texts, tokens)
    };
    if engine.options.vllm() {
        if body["messages"].is_array() {
            return Ok(counted(vec![body["messages"].to_string()]));
        }
        check_needed(engine, body, "input")?;
        return Ok(counted(texts(&body["input"])));
    }
    let input = if body["input"].is_null() { &body["content"] } else { &body["input"] };
    match texts(input) {
        texts if texts.is_empty() => {
            let message = "\"input\" or \"content\" must be provided";
            Err(Box::new(llama_bad(engine, message)))
        }
        texts => Ok(counted(texts)),
    }
}

fn llama_bad(engine: &Engine, message: &str) -> Reply {
    llama_error(engine, StatusCode::BAD_REQUEST, message, "invalid_request_error")
}

/// Returns a text or a list of texts or token ids as texts.
fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other["text"].as_str().map_or_else(|| other.to_string(), str::to_owned),
    };
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) if items.first().is_some_and(Value::is_u64) => vec![value.to_string()],
        Value::Array(items) => items.iter().map(text).collect(),
        other => vec![text(other)],
    }
}

fn tokens(engine: &Engine, text: &str) -> u64 {
    let length = text.len() as u64;
    let bytewise = engine.options.vllm() && engine.options.faithful();
    if bytewise { length } else { length.div_ceil(4).max(1) }
}

/// Returns a number that only depends on the texts.
fn hash(one: &str, other: &str) -> u16 {
    let seed = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = one.bytes().chain([0]).chain(other.bytes());
    let hash =
        bytes.fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    // Always 16 bits.
    u16::try_from(hash >> 48).unwrap_or_default()
}

/// Returns a number between 0 and 1.
fn similarity(one: &str, other: &str) -> f64 {
    (f64::from(hash(one, other)) + 0.5) / 65536.0
}

fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let number = |at: usize| (f32::from(hash(text, &at.to_string())) + 0.5) / 65536.0 - 0.5;
    (0..dimensions).map(number).collect()
}

/// Returns the name of the model in responses of llama.cpp: that of the request.
fn named<'a>(engine: &'a Engine, body: &'a Value) -> &'a str {
    body["model"].as_str().unwrap_or_else(|| engine.name())
}

fn fields(object: Value) -> serde_json::Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    }
}

fn usage(engine: &Engine, tokens: u64) -> Value {
    match engine.options.vllm() {
        true => json!({ "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
            "prompt_tokens_details": null }),
        false => json!({ "prompt_tokens": tokens, "total_tokens": tokens }),
    }
}

/// Returns a list of results in vLLM's form.
fn listed(engine: &Engine, kind: &str, results: impl Iterator<Item = Value>, tokens: u64) -> Value {
    let numbered = |(index, result): (usize, Value)| {
        let index = [("index".to_owned(), Value::from(index))];
        Value::Object(index.into_iter().chain(fields(result)).collect())
    };
    let data: Vec<Value> = results.enumerate().map(numbered).collect();
    json!({ "id": format!("{kind}-{}", engine.id(16, true)), "object": "list",
        "created": engine.created, "model": engine.name(), "data": data,
        "usage": usage(engine, tokens) })
}

fn embeddings(engine: &Engine, body: &Value) -> Result<Value, Box<Reply>> {
    let (texts, tokens) = inputs(engine, body)?;
    let wanted = body["dimensions"].as_u64().and_then(|wanted| usize::try_from(wanted).ok());
    if wanted.is_some() && engine.options.vllm() && !engine.options.matryoshka {
        let message = format!(
            "Model \"{}\" does not support matryoshka representation, changing output dimensions \
             will lead to poor results.",
            engine.name()
        );
        let bad = StatusCode::BAD_REQUEST;
        return Err(Box::new(vllm_error(engine, bad, &message, "BadRequestError", None)));
    }
    let dimensions = wanted.unwrap_or(DIMENSIONS).min(DIMENSIONS);
    let is_base64 = body["encoding_format"] == "base64";
    let one = |text: &String| -> Value {
        let vector = vector(text, dimensions);
        match is_base64 {
            true => {
                let bytes: Vec<u8> =
                    vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                Value::from(base64(&bytes))
            }
            false => vector.into(),
        }
    };
    if engine.options.vllm() {
        let one = |text| json!({ "object": "embedding", "embedding": one(text) });
        return Ok(listed(engine, "embd", texts.iter().map(one), tokens));
    }
    let llama = |(index, text): (usize, &String)| {
        let mut element = json!({ "embedding": one(text), "index": index, "object": "embedding" });
        if is_base64 {
            element["encoding_format"] = "base64".into();
        }
        element
    };
    let data: Vec<Value> = texts.iter().enumerate().map(llama).collect();
    Ok(json!({ "model": named(engine, body), "object": "list", "usage": usage(engine, tokens),
        "data": data }))
}

fn rank(engine: &Engine, body: &Value) -> Result<Value, Box<Reply>> {
    let documents = texts(&body["documents"]);
    if engine.options.vllm() {
        check_needed(engine, body, "query")?;
        check_needed(engine, body, "documents")?;
    } else if !body["query"].is_string() {
        return Err(Box::new(llama_bad(engine, "\"query\" must be provided")));
    } else if documents.is_empty() {
        let message = "\"documents\" must be a non-empty string array";
        return Err(Box::new(llama_bad(engine, message)));
    }
    let query = body["query"].as_str().unwrap_or_default();
    let tokens = documents.iter().map(|text| tokens(engine, text) + tokens(engine, query)).sum();
    let mut ranked: Vec<(f64, usize, &String)> = documents
        .iter()
        .enumerate()
        .map(|(index, text)| (similarity(query, text), index, text))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let top = body["top_n"].as_u64().filter(|top| *top > 0);
    ranked.truncate(top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX));
    let vllm = engine.options.vllm();
    let result = |(score, index, text): (f64, usize, &String)| match vllm {
        true => json!({ "index": index, "document": { "text": text, "multi_modal": null },
            "relevance_score": score }),
        false => json!({ "index": index, "relevance_score": score }),
    };
    let results: Vec<Value> = ranked.into_iter().map(result).collect();
    Ok(match vllm {
        true => json!({ "id": format!("rerank-{}", engine.id(16, true)), "model": engine.name(),
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens }, "results": results }),
        false => json!({ "model": named(engine, body), "object": "list",
            "usage": usage(engine, tokens), "results": results }),
    })
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = (0..3).fold(0_usize, |bits, at| {
            (bits << 8) | chunk.get(at).map_or(0, |byte| usize::from(*byte))
        });
        let letter = |at: usize| match at <= chunk.len() {
            true => char::from(LETTERS[(bits >> (18 - 6 * at)) & 63]),
            false => '=',
        };
        [letter(0), letter(1), letter(2), letter(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}
