//! vLLM's sleep mode, and its injected faults.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::completion::CORE_DEAD;
use super::engine::Engine;
use super::responses::{Reply, empty, failure, ok, vllm_error};

/// Returns the values of a parameter in the query.
fn values<'a>(query: &'a str, name: &str) -> Vec<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, v)| v)
        .collect()
}

/// Responds to a request for an endpoint of the sleep mode; returns any other request.
pub(super) async fn respond(
    engine: &Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Reply, Request<Incoming>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or("").to_owned();
    if engine.state.borrow().core_dead && path != "/is_sleeping" {
        return Err(request);
    }
    Ok(match (&method, path.as_str()) {
        (&Method::POST, "/sleep") => sleep(engine, &query).await,
        (&Method::POST, "/wake_up") => wake_up(engine, &query),
        (&Method::GET, "/is_sleeping") => {
            let sleeps = engine.sleep_state().level.is_some();
            ok(engine, &json!({ "is_sleeping": sleeps }))
        }
        (&Method::POST, "/collective_rpc") => {
            let body =
                request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            if body["method"] == "reload_weights" {
                engine.sleep_state().lost = false;
            }
            ok(engine, &json!({ "results": [null] }))
        }
        (&Method::POST, "/reset_prefix_cache") => {
            engine.counts().reset_prefix_cache();
            empty(StatusCode::OK)
        }
        _ => return Err(request),
    })
}

async fn sleep(engine: &Engine, query: &str) -> Reply {
    let level = values(query, "level").last().map_or(Ok(1), |level| level.parse::<u8>());
    let mode = values(query, "mode").last().copied().unwrap_or("abort");
    let (Ok(level @ 0..=2), "abort" | "wait" | "keep") = (level, mode) else {
        return vllm_error(
            engine,
            StatusCode::BAD_REQUEST,
            "invalid sleep level or mode",
            "BadRequestError",
            None,
        );
    };
    let script = engine.script();
    engine.queue.hold(true);
    match mode {
        "abort" => engine.state.send_modify(|state| state.aborted += 1),
        "keep" => engine.state.send_modify(|state| state.paused = true),
        _ => {
            while engine.queue.counts().0 > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    if script.sleep_hangs {
        std::future::pending::<()>().await;
    }
    {
        let mut sleep_state = engine.sleep_state();
        sleep_state.level = Some(level);
        sleep_state.weights_offloaded |= level > 0;
        sleep_state.cache_offloaded |= level > 0;
        sleep_state.lost |= level == 2;
    }
    if level > 0
        && !script.sleep_keeps_memory
        && let Some(memory) = &engine.memory
    {
        // Holding less memory cannot fail for want of memory.
        memory.resize(5).ok();
    }
    engine.counts().slept += 1;
    let pid = std::process::id();
    warn!(
        "(EngineCore pid={pid}) INFO 11-21 03:31:49 [abstract.py:300] It took 0.100000 seconds to \
         fall asleep."
    );
    ok(engine, &json!({ "status": "sleeping", "level": level }))
}

fn wake_up(engine: &Engine, query: &str) -> Reply {
    let tags = values(query, "tags");
    let script = engine.script();
    let wants = |tag: &str| tags.is_empty() || tags.contains(&tag);
    let grows = wants("weights") && engine.sleep_state().weights_offloaded;
    let full = grows && engine.memory.as_ref().is_some_and(|memory| memory.resize(100).is_err());
    if script.wake_500 || full {
        if full {
            warn_text!(super::loading::out_of_memory_while_serving(&engine.options));
        }
        engine.kill_core();
        return failure(engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    let awake = {
        let mut sleep_state = engine.sleep_state();
        sleep_state.weights_offloaded &= !wants("weights");
        sleep_state.cache_offloaded &= !wants("kv_cache");
        sleep_state.garbage |= script.garbage_after_wake;
        let awake = !sleep_state.weights_offloaded && !sleep_state.cache_offloaded;
        if awake {
            sleep_state.level = None;
        }
        awake
    };
    if awake {
        engine.state.send_modify(|state| state.paused = false);
        engine.queue.hold(false);
        engine.counts().awake += 1;
    }
    let status = if awake { "awake" } else { "sleeping" };
    let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
    warn!(
        "(EngineCore pid={}) INFO 11-21 03:31:49 [abstract.py:320] It took 0.100000 seconds to \
         wake up tags {tags}.",
        std::process::id()
    );
    ok(engine, &json!({ "status": status, "tags": tags }))
}
