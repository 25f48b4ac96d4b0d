//! What the status of an engine's response means: a response for the client, an error of
//! the client, or a failed attempt.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use pointsman_domain::request_flow::{Declined, EngineFailure};
use pointsman_fleet::{EngineBody, EngineError, Lease};
use pointsman_openai::EngineErrorBody;
use serde_json::Value;

use crate::failure::AttemptError;
use crate::headers;

/// Bytes of an engine's error body that are read for its message. Longer bodies have none.
pub(crate) const MAX_ERROR_BODY: usize = 64 << 10;

/// How vLLM and OpenAI say that a request is too long, before the length.
const MAXIMUM_CONTEXT: &str = "maximum context length";

/// What a request may have that a model or an engine does not support.
const PARTS_OF_REQUESTS: [&str; 9] =
    ["image", "audio", "video", "vision", "multimodal", "tool", "grammar", "logprobs", "embedding"];

/// Returns a response that is for the client.
///
/// # Errors
/// Returns an error if the response is one that another lane might not return, or is not the
/// client's to see.
pub(crate) async fn check_status(
    lease: &Lease,
    response: Response<EngineBody>,
) -> Result<Response<EngineBody>, AttemptError> {
    let status = response.status();
    if has_two_lengths(response.headers()) {
        let cause = "the response has both Content-Length and Transfer-Encoding";
        return Err(EngineError::Broken(cause.into()).into());
    }
    if is_for_client(lease, status) {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let error = EngineErrorBody::read(&error_body(body).await);
    Err(attempt_error(lease, status, &head.headers, error))
}

/// Returns true if a response with this status is for the client.
pub(crate) fn is_for_client(lease: &Lease, status: StatusCode) -> bool {
    !is_about_key(status, lease.sends_key()) && !EngineFailure::is_failed_status(status.as_u16())
}

/// Returns why another lane may serve a request to which the engine responded like this; `None` if
/// the response is the client's in any case. `body` is the whole body of an error, or its beginning
/// if it is long.
pub(crate) fn declined(lease: &Lease, status: StatusCode, body: &[u8]) -> Option<Declined> {
    if !status.is_client_error() {
        return None;
    }
    let too_long = || {
        let is_invalid = matches!(status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE);
        let max_context = is_invalid.then(|| exceeded_context(body)).flatten()?;
        Some(Declined::TooLong { max_context })
    };
    lease.fallback_trigger(status.as_u16()).map(Declined::Configured).or_else(too_long)
}

/// Returns the engine's maximum sequence length, which a request exceeds, if that is what its error
/// says; 0 if the error does not name the length. vLLM and OpenAI: "This model's maximum context
/// length is 512 tokens. However, …"; llama.cpp: the type `exceed_context_size_error` with `n_ctx`.
fn exceeded_context(body: &[u8]) -> Option<u32> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error").filter(|error| error.is_object()).unwrap_or(&body);
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("type") == "exceed_context_size_error" {
        let n_ctx = error.get("n_ctx").and_then(Value::as_u64).unwrap_or(0);
        return Some(u32::try_from(n_ctx).unwrap_or(u32::MAX));
    }
    let message = text("message");
    let (_, rest) = match message.split_once(MAXIMUM_CONTEXT) {
        Some(parts) => parts,
        None if text("code") == "context_length_exceeded" => return Some(0),
        None => return None,
    };
    let rest = rest.trim_start_matches(" is ");
    let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    Some(rest[..digits].parse().unwrap_or(0))
}

/// Returns the error of an attempt whose response is not for the client.
pub(crate) fn attempt_error(
    lease: &Lease,
    status: StatusCode,
    headers: &HeaderMap,
    error: EngineErrorBody,
) -> AttemptError {
    if is_about_key(status, lease.sends_key()) {
        return AttemptError::KeyRefused { status };
    }
    if is_unsupported(status, &error) {
        return AttemptError::Unsupported { status, said: Box::new(error) };
    }
    let said = Box::new(error);
    // Of an engine, the status says nothing about hosts.
    if status == StatusCode::LOOP_DETECTED && lease.is_peer() {
        return AttemptError::LoopDetected { said };
    }
    let retry_after =
        headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    if status == StatusCode::TOO_MANY_REQUESTS && lease.is_external() {
        let headers = Box::new(headers::of_rate_limit(headers));
        return AttemptError::RateLimited { said, retry_after, headers };
    }
    AttemptError::Status { status, said, retry_after }
}

/// Returns true if a message has two lengths, of which a proxy and its client may each believe
/// another one. hyper refuses two different values of `Content-Length` itself.
fn has_two_lengths(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH)
}

/// Returns true if the status is about the host's credentials or its account. Clients' credentials
/// are never sent to engines.
fn is_about_key(status: StatusCode, sends_key: bool) -> bool {
    match status {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN | StatusCode::PAYMENT_REQUIRED => sends_key,
        _ => false,
    }
}

/// Returns true if the engine does not support what the request asks for, which is an error of the
/// client. llama.cpp returns 501 with the type `not_supported_error` for an endpoint or a feature
/// that it was not started with, but 500 with the type `server_error` for an image, audio or video
/// for a model that reads only text: "image input is not supported - hint: …". Ollama returns 500
/// with the type `api_error`.
fn is_unsupported(status: StatusCode, error: &EngineErrorBody) -> bool {
    match status {
        StatusCode::NOT_IMPLEMENTED => true,
        StatusCode::INTERNAL_SERVER_ERROR => {
            let message = error.message.as_deref().unwrap_or("").to_ascii_lowercase();
            let says = |word: &str| message.contains(word);
            let refuses = says("not support") || says("unsupported");
            // A failure of a driver may say "operation not supported" too, but of no part of a
            // request.
            error.kind.as_deref() == Some("not_supported_error")
                || (refuses && PARTS_OF_REQUESTS.into_iter().any(says) && !says("error:"))
        }
        _ => false,
    }
}

/// Reads an engine's error body; empty if it is too long or cannot be read.
async fn error_body(body: EngineBody) -> Bytes {
    let collected = http_body_util::Limited::new(body, MAX_ERROR_BODY).collect().await;
    // The status alone describes the failure; a missing message is not worth another error.
    collected.map(http_body_util::Collected::to_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsupported(status: u16, body: &str) -> bool {
        let error = EngineErrorBody::read(body.as_bytes());
        is_unsupported(StatusCode::from_u16(status).unwrap(), &error)
    }

    #[test]
    fn unsupported_requests_are_told_from_failures() {
        let llama = |code: u16, kind: &str, message: &str| {
            format!(r#"{{"error":{{"code":{code},"message":"{message}","type":"{kind}"}}}}"#)
        };
        let hint = "hint: if this is unexpected, you may need to provide the mmproj";
        for (status, body, expected) in [
            (
                500,
                llama(500, "server_error", &format!("image input is not supported - {hint}")),
                true,
            ),
            (
                500,
                llama(500, "server_error", &format!("audio input is not supported - {hint}")),
                true,
            ),
            (500, llama(500, "server_error", "video input is not supported"), true),
            (500, llama(500, "not_supported_error", "no"), true),
            (
                501,
                llama(501, "not_supported_error", "This server does not support embeddings"),
                true,
            ),
            (501, String::new(), true),
            (500, llama(500, "api_error", "this model does not support tools"), true),
            (500, llama(500, "server_error", "HIP error: operation not supported"), false),
            (500, llama(500, "InternalServerError", "CUDA error: image not supported"), false),
            (500, llama(500, "server_error", "failed to process image"), false),
            (500, llama(500, "server_error", "Compute error."), false),
            (500, String::new(), false),
            (503, llama(503, "server_error", "image input is not supported"), false),
        ] {
            assert_eq!(unsupported(status, &body), expected, "{status} {body}");
        }
    }

    #[test]
    fn errors_of_requests_that_are_too_long_are_recognised() {
        let captured = include_str!("../../../../tests/captures/vllm-0.32.0/err-too-long.http");
        let (_, captured) = captured.split_once("{").unwrap();
        let captured = format!("{{{}", captured.lines().next().unwrap());
        for (body, expected) in [
            (captured.as_str(), Some(512)),
            (
                concat!(
                    r#"{"error":{"code":400,"message":"request (9 tokens) exceeds the available "#,
                    r#"context size (8 tokens), try increasing it","#,
                    r#""type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}}"#,
                ),
                Some(8),
            ),
            (r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#, Some(0)),
            (r#"{"message":"the maximum context length was exceeded","code":400}"#, Some(0)),
            (r#"{"error":{"message":"'messages' is required"}}"#, None),
            ("maximum context length is 5", None),
            ("", None),
        ] {
            assert_eq!(exceeded_context(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn statuses_about_the_hosts_key_are_not_for_clients() {
        for (status, with_key, without) in
            [(401, true, true), (403, true, false), (402, true, false), (404, false, false)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            let about = [is_about_key(status, true), is_about_key(status, false)];
            assert_eq!(about, [with_key, without], "{status}");
        }
    }
}
