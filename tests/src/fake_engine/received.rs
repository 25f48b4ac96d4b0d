//! The beginning of endpoints whose requests are JSON.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, StatusCode, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::completions::parse_body;
use super::engine::Engine;
use super::responses::{Reply, failure};
use super::script::ResponseScript;

/// A request that the engine does as the script says.
pub(super) struct Received {
    pub(super) parts: request::Parts,
    pub(super) body: Bytes,
    pub(super) request_body: Value,
    pub(super) script: ResponseScript,
}

/// Receives a request, unless the script says that the engine hangs or fails.
pub(super) async fn receive(
    engine: &Engine,
    request: Request<Incoming>,
) -> Result<Received, Box<Reply>> {
    engine.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let request_body = parse_body(engine, &parts, &body)?;
    let script = engine.script();
    if script.hang || script.health_lies {
        std::future::pending::<()>().await;
    }
    match script.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => Err(Box::new(failure(engine, status, "as the script says"))),
        None => Ok(Received { parts, body, request_body, script }),
    }
}
