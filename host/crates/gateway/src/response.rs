//! Responses to requests that do not enter the pipeline.

use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::MethodRouter;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use pointsman_openai::ErrorForm;
use serde_json::Value;
use tracing::Span;

use crate::error::RouteError;
use crate::failure::{MAX_RETRY_ESTIMATE, whole_seconds};
use crate::request_id;

/// Rejects other methods with an error body in OpenAI's form, which axum does not produce.
/// `OPTIONS` is told which methods there are.
pub(crate) fn only<S: Clone + Send + Sync + 'static>(
    allowed: &'static str,
    methods: MethodRouter<S>,
) -> MethodRouter<S> {
    methods.fallback(move |method: Method, request: Request| async move {
        match method == Method::OPTIONS {
            true => self::allowed(allowed),
            false => error(request, RouteError::Method { method, allowed }),
        }
    })
}

/// Returns the response to `OPTIONS` for a path that has these methods.
pub(crate) fn allowed(methods: &str) -> Response {
    let mut response = no_content();
    let methods = HeaderValue::from_str(&format!("{methods}, OPTIONS")).ok();
    response.headers_mut().extend(methods.map(|methods| (header::ALLOW, methods)));
    response
}

/// A request that is being served. Boxed, so that an idle connection has no space for it.
pub(crate) type Serving = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Returns a response as that of a request that was served at once.
pub(crate) fn responding(response: Response) -> Serving {
    Box::pin(std::future::ready(response))
}

pub(crate) async fn unknown_path(request: Request) -> Response {
    unknown(request)
}

/// Returns the error response to a request for a path that does not exist.
pub(crate) fn unknown(request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    error(request, RouteError::UnknownPath { method, path })
}

/// Returns a response without a body.
pub(crate) fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Returns the error response to a request that does not enter the pipeline.
pub(crate) fn error(request: Request, error: RouteError) -> Response {
    let (mut parts, _) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    // The admin API has entered a span with the id already.
    let span = Some(Span::current()).filter(|current| !current.is_none());
    let span = span.unwrap_or_else(|| tracing::info_span!("request", request_id = id));
    let form = ErrorForm::for_path(parts.uri.path());
    let mut response = span.in_scope(|| error.into_untracked_response(form));
    request_id::set(response.headers_mut(), &id);
    response
}

/// Returns a response with a JSON body.
pub(crate) fn json(body: impl Into<Bytes>) -> Response {
    typed("application/json", body.into())
}

/// Returns a response with a body of this type.
pub(crate) fn typed(content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns the response to a health check. `retry_in` is the time until one that fails may succeed,
/// and `None` if this one succeeds.
pub(crate) fn check_result(retry_in: Option<Duration>, body: &Value) -> Response {
    let mut response = json(body.to_string());
    if let Some(retry_in) = retry_in {
        let seconds = whole_seconds(retry_in.min(MAX_RETRY_ESTIMATE)).max(1);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
