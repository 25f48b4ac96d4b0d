//! `POST /v1/responses`, also in the background.

use std::pin::Pin;
use std::sync::Arc;

use axum::response::Response;
use http_body_util::BodyExt as _;
use pointsman_domain::Endpoint;
use pointsman_openai::EngineErrorBody;

use super::body::wrap;
use super::stored::{Responses, failed};
use super::turn::TurnSlot;
use crate::pipeline::Pipeline;
use crate::response::json;
use crate::serve::{self, Arrived};

/// Bytes of an error response that are read.
const MAX_ERROR: usize = 1 << 20;

type Execution = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Creates a response.
pub(crate) async fn create(pipeline: Arc<Pipeline>, mut arrived: Arrived) -> Response {
    let slot = TurnSlot::default();
    arrived.parts.extensions.insert(slot.clone());
    let serve = serve::serve(Arc::clone(&pipeline), Endpoint::Responses, arrived);
    let mut execution: Execution = Box::pin(serve);
    tokio::select! {
        biased;
        response = &mut execution => {
            let in_background = slot.turn().filter(|turn| turn.is_background);
            match in_background {
                None if response.status().is_success() && slot.remote().is_none() => {
                    wrap(response, slot, Arc::clone(&pipeline.responses))
                }
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
        let mut end = End { slot: slot.clone(), responses: Arc::clone(&responses), error: None };
        let run = async {
            let response = execution.await;
            if response.status().is_success() {
                let body = wrap(response, slot.clone(), Arc::clone(&responses)).into_body();
                if read_to_end(body).await {
                    return None;
                }
                return Some("the engine's response broke off".to_owned());
            }
            let body = http_body_util::Limited::new(response.into_body(), MAX_ERROR);
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let error = EngineErrorBody::read(&body);
            Some(error.message.unwrap_or_else(|| "the request failed".to_owned()))
        };
        end.error = cancelled.run_until_cancelled(run).await.flatten();
        drop(end);
        drop(token);
    });
    json(queued.to_string())
}

/// The end of an execution in the background, also if it panics: a response that is not complete,
/// and was not cancelled, has failed.
struct End {
    slot: TurnSlot,
    responses: Arc<Responses>,
    error: Option<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        let Some(turn) = self.slot.turn() else { return };
        let error = self.error.as_deref().unwrap_or("no response");
        let mut response = failed(turn.initial.clone(), "server_error", error);
        self.responses.complete(&self.slot, &mut response);
    }
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
