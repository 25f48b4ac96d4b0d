//! Serves each request once: a retry with the idempotency key of an earlier request gets the
//! response of that one. What is executed once is all that a client sees of a request, so that
//! every client gets the same bytes.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use pointsman_domain::Endpoint;

use crate::decision::Incoming;
use crate::error::RouteError;
use crate::idempotency::{Begun, Fingerprint};
use crate::pipeline::Pipeline;
use crate::proxying::ProxyContext;
use crate::request_tracker::request_span;
use crate::response::Serving;
use crate::responses::TurnSlot;
use crate::serve::{self, Arrived};
use crate::settings::ListenerSettings;
use crate::upload::{self, Received, Reservation};
use crate::{guard, paths, request_id, responses, rights};

/// Serves one request, or joins it to its original. The future has space only for the steps that
/// the request takes.
pub(crate) fn serve(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Serving {
    let (mut parts, body) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    if parts.extensions.get::<Arc<ProxyContext>>().is_some() {
        if endpoint == Endpoint::Responses {
            parts.extensions.insert(TurnSlot::proxied());
        }
        // The host has the response only while the proxy passes it on, and keeps none.
        let arrived = Arrived { id, parts, body: Incoming::Body(body), failed: None };
        return Box::pin(serve::serve(pipeline, endpoint, arrived));
    }
    let body = match pipeline.idempotency.key(&parts.headers) {
        Ok(None) => Incoming::Body(body),
        Ok(Some(key)) => {
            let key = key.to_owned();
            return Box::pin(serve_once(pipeline, endpoint, id, parts, body, key));
        }
        Err(error) => Incoming::Failed(error),
    };
    execute(pipeline, endpoint, Arrived { id, parts, body, failed: None })
}

/// Serves a request with an idempotency key: only the first one with the key is executed.
async fn serve_once(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    id: String,
    parts: Parts,
    body: Body,
    key: String,
) -> Response {
    let begun = begin(&pipeline, endpoint, &parts, body, &key).await;
    let (begun, body) = match begun {
        Ok((begun, body, reservation)) => (begun, Incoming::Received(body, reservation)),
        Err(error) => (Begun::Untracked, Incoming::Failed(error)),
    };
    match begun {
        Begun::Joined(joined) => {
            // The original has the same body.
            drop(body);
            let span = request_span(&id, endpoint.label());
            span.in_scope(|| tracing::info!(event = "request_joined", "retry joined its original"));
            joined.response().await
        }
        Begun::Untracked => {
            execute(pipeline, endpoint, Arrived { id, parts, body, failed: None }).await
        }
        Begun::First(first) => {
            let failed = Some(Arc::clone(&first.failed));
            let idempotency = pipeline.idempotency.clone();
            let work = move |error: Option<RouteError>| {
                let body = error.map_or(body, Incoming::Failed);
                execute(pipeline, endpoint, Arrived { id, parts, body, failed })
            };
            idempotency.run(first, work).await
        }
    }
}

/// Receives the body of a request, and looks for the original of a retry.
async fn begin(
    pipeline: &Pipeline,
    endpoint: Endpoint,
    parts: &Parts,
    body: Body,
    key: &str,
) -> Result<(Begun, Received, Arc<Reservation>), RouteError> {
    let identity = rights::identify(&pipeline.keys, &parts.headers, &parts.extensions)?;
    rights::check_endpoint(&identity.rights, endpoint)?;
    let tenant = identity.tenant.as_deref();
    let (uploads, headers) = (&pipeline.uploads, &parts.headers);
    let kind = upload::body_kind(endpoint, headers);
    let (body, reservation) = upload::receive(uploads, kind, headers, body, tenant).await?;
    let listener = parts.extensions.get::<Arc<ListenerSettings>>();
    let model = listener.and_then(|listener| listener.default_model.as_deref());
    let context = format!("{}\n{}", model.unwrap_or_default(), paths::query_for_engine(&parts.uri));
    let fingerprint = Fingerprint::new(key, &identity, endpoint.label(), &context, &body).await?;
    let size = match &body {
        Received::Json(body) => body.len() as u64,
        Received::Form(form) => form.size(),
    };
    let guards = &pipeline.settings.guards;
    let constraint = guard::for_head(guards, &identity, headers, Some(endpoint), size);
    let fingerprint = fingerprint.with_constraint(constraint.as_deref());
    let begun = pipeline.idempotency.begin(fingerprint, &identity)?;
    Ok((begun, body, reservation))
}

fn execute(pipeline: Arc<Pipeline>, endpoint: Endpoint, arrived: Arrived) -> Serving {
    match endpoint {
        Endpoint::Responses => Box::pin(responses::create(pipeline, arrived)),
        endpoint => Box::pin(serve::serve(pipeline, endpoint, arrived)),
    }
}
