//! `POST /v1/responses`, also in the background.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use http_body_util::BodyExt as _;
use pointsman_domain::Endpoint;
use pointsman_openai::EngineErrorBody;

use super::stored::failed;
use super::turn::TurnSlot;
use crate::pipeline::Pipeline;
use crate::response::json;
use crate::serve;

/// Bytes of an error response that are read.
const MAX_ERROR: usize = 1 << 20;

type Execution = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Creates a response.
pub(crate) async fn create(pipeline: Arc<Pipeline>, mut request: Request) -> Response {
    let slot = TurnSlot::default();
    request.extensions_mut().insert(slot.clone());
    let serve = serve::serve(Arc::clone(&pipeline), Endpoint::Responses, request);
    let mut execution: Execution = Box::pin(serve);
    tokio::select! {
        biased;
        response = &mut execution => {
            let in_background = slot.turn().filter(|turn| turn.is_background);
            match in_background {
                None => response,
                Some(_) if response.status().is_success() => {
                    in_the_background(pipeline, slot, Box::pin(async { response }))
                }
                Some(turn) => {
                    pipeline.responses.abandon(turn);
                    response
                }
            }
        }
        () = slot.in_background() => in_the_background(pipeline, slot, execution),
    }
}

/// Continues the execution without the client, and returns the response as it is so far.
fn in_the_background(pipeline: Arc<Pipeline>, slot: TurnSlot, execution: Execution) -> Response {
    let mut queued = slot.turn().map(|turn| turn.initial.clone()).unwrap_or_default();
    for (name, value) in slot.turn().iter().flat_map(|turn| &turn.own_fields) {
        queued[*name] = value.clone();
    }
    // The drain waits for it, as for every request that was accepted before.
    let token = pipeline.drain.register();
    let responses = Arc::clone(&pipeline.responses);
    let tasks = responses.tasks.clone();
    tasks.spawn(async move {
        let cancelled = slot.turn().map(|turn| turn.cancelled.clone()).unwrap_or_default();
        let run = async {
            let response = execution.await;
            if response.status().is_success() {
                if read_to_end(response.into_body()).await {
                    return None;
                }
                return Some("the engine's response broke off".to_owned());
            }
            let body = http_body_util::Limited::new(response.into_body(), MAX_ERROR);
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let error = EngineErrorBody::read(&body);
            Some(error.message.unwrap_or_else(|| "the request failed".to_owned()))
        };
        let error = cancelled.run_until_cancelled(run).await;
        // Without effect on a response that is complete, or was cancelled.
        let error = error.flatten().unwrap_or_else(|| "no response".to_owned());
        if let Some(turn) = slot.turn() {
            let mut response = failed(turn.initial.clone(), "server_error", &error);
            responses.complete(&slot, &mut response);
        }
        drop(token);
    });
    json(queued.to_string())
}

/// Reads a body, which stores what it is. Returns false if it broke off.
async fn read_to_end(mut body: axum::body::Body) -> bool {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}
