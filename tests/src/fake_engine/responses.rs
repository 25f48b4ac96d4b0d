//! Complete responses: their headers, and the error formats of the engines.

use std::convert::Infallible;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request};
use serde_json::{Map, Value, json};

use super::engine::Engine;
use super::options::Flavour;
use super::response_body::ResponseBody;

pub(super) type Reply = Result<Response<ResponseBody>, Infallible>;

/// Returns a response with a text body.
pub(super) fn text(status: StatusCode, kind: &'static str, body: impl Into<bytes::Bytes>) -> Reply {
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// Returns a response without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    let mut response = Response::new(ResponseBody::whole(""));
    *response.status_mut() = status;
    Ok(response)
}

/// Returns a response with a JSON body.
pub(super) fn json(engine: &Engine, status: StatusCode, body: &Value) -> Reply {
    let kind = match engine.options.flavour {
        Flavour::Vllm => "application/json",
        Flavour::LlamaCpp => "application/json; charset=utf-8",
    };
    text(status, kind, body.to_string())
}

pub(super) fn ok(engine: &Engine, body: &Value) -> Reply {
    json(engine, StatusCode::OK, body)
}

/// Returns an error in the format of vLLM's API handlers.
pub(super) fn vllm_error(
    engine: &Engine,
    status: StatusCode,
    message: &str,
    kind: &str,
    param: Option<&str>,
) -> Reply {
    let error =
        json!({ "message": message, "type": kind, "param": param, "code": status.as_u16() });
    json(engine, status, &json!({ "error": error }))
}

/// Returns an error in the format of vLLM's web framework.
pub(super) fn detail(engine: &Engine, status: StatusCode) -> Reply {
    json(engine, status, &json!({ "detail": status.canonical_reason() }))
}

/// Returns an error in the format of llama.cpp's tasks.
pub(super) fn llama_error(engine: &Engine, status: StatusCode, message: &str, kind: &str) -> Reply {
    let error = json!({ "code": status.as_u16(), "message": message, "type": kind });
    json(engine, status, &json!({ "error": error }))
}

/// Returns an error in the format of llama.cpp's web server, whose keys have another order.
pub(super) fn llama_server_error(
    engine: &Engine,
    status: StatusCode,
    message: &str,
    kind: &str,
) -> Reply {
    let error = json!({ "message": message, "type": kind, "code": status.as_u16() });
    json(engine, status, &json!({ "error": error }))
}

/// Returns a server error in the format of the engine's flavour.
pub(super) fn failure(engine: &Engine, status: StatusCode, message: &str) -> Reply {
    match engine.options.flavour {
        Flavour::Vllm => vllm_error(engine, status, message, "InternalServerError", None),
        Flavour::LlamaCpp => llama_error(engine, status, message, "server_error"),
    }
}

/// Returns the headers and the body of the request.
pub(super) fn echo(engine: &Engine, parts: &request::Parts, body: &[u8]) -> Reply {
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.to_string(), Value::from(value.to_str().unwrap_or("?")))
    };
    let headers: Map<String, Value> = parts.headers.iter().map(header).collect();
    let body = String::from_utf8_lossy(body);
    ok(engine, &json!({ "path": parts.uri.path(), "headers": headers, "body": body }))
}

/// The request headers that determine headers of the response.
#[derive(Debug)]
pub(super) struct RequestInfo {
    origin: Option<HeaderValue>,
    id: Option<HeaderValue>,
    close: bool,
}

impl RequestInfo {
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            origin: headers.get(header::ORIGIN).cloned(),
            id: headers.get("x-request-id").cloned(),
            close: headers.get(header::CONNECTION).is_some_and(|value| value == "close"),
        }
    }

    /// Adds the headers that all responses have.
    pub(super) fn add_headers(self, engine: &Engine, response: &mut Response<ResponseBody>) {
        let status = response.status();
        let headers = response.headers_mut();
        match engine.options.flavour {
            Flavour::Vllm => {
                headers.insert(header::SERVER, HeaderValue::from_static("uvicorn"));
                if status != StatusCode::UNAUTHORIZED {
                    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
                }
                if engine.options.enable_request_id_headers {
                    let generated = || HeaderValue::try_from(engine.id(32, true)).ok();
                    headers.extend(
                        self.id
                            .or_else(generated)
                            .map(|id| (HeaderName::from_static("x-request-id"), id)),
                    );
                }
            }
            Flavour::LlamaCpp => {
                headers.insert(header::SERVER, HeaderValue::from_static("llama.cpp"));
                let origin = self.origin.unwrap_or_else(|| HeaderValue::from_static(""));
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
                if self.close || status.as_u16() >= 400 {
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                } else {
                    let value = HeaderValue::from_static("timeout=5, max=100");
                    headers.insert(HeaderName::from_static("keep-alive"), value);
                }
            }
        }
    }
}
