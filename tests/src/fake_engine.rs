//! A stand-in for an engine that does on command what real ones did when they were recorded: vLLM 0.32.0 and llama.cpp
//! b115xx. It loads, streams, stalls, dies and lies; it shows its slots, and says what it has seen.

mod answer;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::answer::AnswerBody;

/// Whose manners it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// Refuses connections while it loads; ids from `X-Request-Id`.
    Vllm,
    /// Answers 503 on every path while it loads.
    #[default]
    LlamaCpp,
}

/// What it is to do.
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// Port; 0 picks one and prints it.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Model name that it reports.
    #[arg(long, default_value = "fake")]
    pub alias: String,
    /// Whose manners it has.
    #[arg(long, value_enum, default_value_t = Flavour::LlamaCpp)]
    pub flavour: Flavour,
    /// Milliseconds until it serves.
    #[arg(long, default_value_t = 0)]
    pub load_ms: u64,
    /// Slots that it shows.
    #[arg(long, default_value_t = 2)]
    pub slots: usize,
    /// Exit at once with this code.
    #[arg(long)]
    pub exit_code: Option<u8>,
    /// Take no notice of SIGTERM.
    #[arg(long)]
    pub ignore_sigterm: bool,
    /// Start a child that would outlive us.
    #[arg(long)]
    pub fork_child: bool,
    /// Answer at once, and nothing but a constant.
    #[arg(long)]
    pub bench: bool,
    /// How it answers, as JSON (see [`Script`]).
    #[arg(long, default_value = "{}")]
    pub script: String,
}

/// How it answers. Can be changed while it runs: `POST /fake/script`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// Tokens of an answer.
    pub tokens: u64,
    /// Milliseconds before each token.
    pub token_ms: u64,
    /// Answer every request with this status and an error body.
    pub status: Option<u16>,
    /// Never send the head of an answer.
    pub hang: bool,
    /// Send nothing more after this many tokens, as vLLM does after SIGTERM.
    pub stall_after: Option<u64>,
    /// End the process after this many tokens.
    pub die_after: Option<u64>,
    /// After this many tokens send an error event and then `[DONE]`, as vLLM does when its core has died.
    pub error_after: Option<u64>,
    /// End the stream after this many tokens without a word.
    pub end_after: Option<u64>,
    /// Send chunks of this many bytes, whatever that cuts apart.
    pub cut: Option<usize>,
    /// Answer with the request: its headers and body.
    pub echo: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 5,
            token_ms: 0,
            status: None,
            hang: false,
            stall_after: None,
            die_after: None,
            error_after: None,
            end_after: None,
            cut: None,
            echo: false,
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Engine {
    options: Options,
    script: Mutex<Script>,
    ready_at: Instant,
    /// Answers under way.
    busy: AtomicU64,
    /// Answers whose client left before their end.
    cancelled: AtomicU64,
    seen: AtomicU64,
}

impl Engine {
    fn script(&self) -> Script {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serve until SIGTERM.
///
/// # Errors
/// When the port cannot be had, or the script is none.
pub async fn run(options: Options) -> Result<()> {
    let script: Script = serde_json::from_str(&options.script).context("--script")?;
    let load = Duration::from_millis(options.load_ms);
    if options.flavour == Flavour::Vllm {
        tokio::time::sleep(load).await;
    }
    let mut child = options.fork_child.then(|| std::process::Command::new("sleep").arg("1000").spawn());
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await.context("the port cannot be had")?;
    println!("listening on {}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let ignore = options.ignore_sigterm;
    let engine = Arc::new(Engine {
        options,
        script: Mutex::new(script),
        ready_at: Instant::now() + load,
        busy: AtomicU64::new(0),
        cancelled: AtomicU64::new(0),
        seen: AtomicU64::new(0),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let engine = Arc::clone(&engine);
                let service = service_fn(move |request| answer(Arc::clone(&engine), request));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
            _ = terminate.recv() => {
                println!("SIGTERM");
                if !ignore {
                    break;
                }
            }
        }
    }
    if let Some(Ok(child)) = &mut child {
        // Left behind on purpose: whoever started us has to end the whole group.
        println!("leaving child {}", child.id());
    }
    Ok(())
}

type Answer = Result<Response<AnswerBody>, Infallible>;

async fn answer(engine: Arc<Engine>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix("/fake/") {
        return control(&engine, rest, request).await;
    }
    if engine.options.flavour == Flavour::LlamaCpp && Instant::now() < engine.ready_at {
        return error(StatusCode::SERVICE_UNAVAILABLE, "Loading model", "unavailable_error");
    }
    match (request.method(), path.as_str()) {
        (&Method::GET, "/health") if engine.options.flavour == Flavour::Vllm => {
            Ok(Response::new(AnswerBody::whole("")))
        }
        (&Method::GET, "/health") => ok(&json!({ "status": "ok" })),
        (&Method::GET, "/v1/models") => {
            ok(&json!({ "object": "list", "data": [{ "id": engine.options.alias, "object": "model" }] }))
        }
        (&Method::GET, "/slots") => {
            let busy = engine.busy.load(Ordering::SeqCst);
            let slot = |id: usize| json!({ "id": id, "n_ctx": 1024, "is_processing": (id as u64) < busy });
            ok(&(0..engine.options.slots).map(slot).collect())
        }
        (&Method::POST, "/v1/chat/completions" | "/v1/completions") => complete(engine, request).await,
        _ if engine.options.flavour == Flavour::Vllm => {
            with_status(StatusCode::NOT_FOUND, &json!({ "detail": "Not Found" }))
        }
        _ => error(StatusCode::NOT_FOUND, "File Not Found", "not_found_error"),
    }
}

/// What tests tell and ask.
async fn control(engine: &Engine, what: &str, request: Request<Incoming>) -> Answer {
    match what {
        "script" => {
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            match serde_json::from_slice(&body) {
                Ok(script) => {
                    *engine.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
                    ok(&json!({}))
                }
                Err(wrong) => error(StatusCode::BAD_REQUEST, &wrong.to_string(), "invalid_request_error"),
            }
        }
        _ => ok(&json!({
            "busy": engine.busy.load(Ordering::SeqCst),
            "cancelled": engine.cancelled.load(Ordering::SeqCst),
            "seen": engine.seen.load(Ordering::SeqCst),
        })),
    }
}

async fn complete(engine: Arc<Engine>, request: Request<Incoming>) -> Answer {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body: Bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let script = engine.script();
    if engine.options.bench && script.token_ms == 0 {
        return Ok(AnswerBody::constant(&body));
    }
    let asked: Value = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, &wrong.to_string(), "invalid_request_error"),
    };
    if script.hang {
        std::future::pending::<()>().await;
    }
    if let Some(status) = script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        return error(status, "as the script says", "server_error");
    }
    if script.echo {
        let headers: serde_json::Map<String, Value> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), Value::from(value.to_str().unwrap_or("?"))))
            .collect();
        return ok(
            &json!({ "path": parts.uri.path(), "headers": headers, "body": String::from_utf8_lossy(&body) }),
        );
    }
    Ok(answer::respond(engine, script, &parts, &asked))
}

fn ok(body: &Value) -> Answer {
    with_status(StatusCode::OK, body)
}

fn error(status: StatusCode, message: &str, kind: &str) -> Answer {
    with_status(status, &json!({ "error": { "message": message, "type": kind, "code": status.as_u16() } }))
}

fn with_status(status: StatusCode, body: &Value) -> Answer {
    let mut response = Response::new(AnswerBody::whole(body.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}
