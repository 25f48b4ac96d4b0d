//! Errors in OpenAI's form: `{"error":{"message","type","param","code"}}`.
//!
//! Types and codes are those of the OpenAI API where it has one for the case (`invalid_request_error`,
//! `model_not_found`, `invalid_api_key`); its client libraries choose their exception by the HTTP status.

use bytes::Bytes;
use pointsman_domain::Rejection;
use serde::Serialize;
use serde_json::Value;

/// The body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// Class of the error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that it is about.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<String>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ErrorBody {
    fn new(kind: &'static str, code: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind, param: None, code: Some(code.to_owned()) }
    }

    /// The request is not one.
    pub fn invalid_request(message: &str) -> Self {
        Self { message: message.to_owned(), kind: INVALID, param: None, code: None }
    }

    /// No lane answers to the model.
    pub fn model_not_found(model: &str, available: &[&str]) -> Self {
        let message = format!(
            "The model `{model}` does not exist. Available models: {}.",
            available.join(", ")
        );
        Self { param: Some("model".into()), ..Self::new(INVALID, "model_not_found", message) }
    }

    /// No valid API key.
    pub fn unauthorized() -> Self {
        Self::new(
            INVALID,
            "invalid_api_key",
            "A valid API key is required: send it as `Authorization: Bearer KEY`.",
        )
    }

    /// The body is of another type than JSON.
    pub fn unsupported_media_type(given: Option<&str>) -> Self {
        let given = given.map_or_else(|| "none".to_owned(), |given| format!("`{given}`"));
        let message = format!("The content type must be `application/json`, and is {given}.");
        Self::new(INVALID, "unsupported_media_type", message)
    }

    /// The body is longer than the limit in bytes.
    pub fn body_too_large(most: usize) -> Self {
        Self::new(
            INVALID,
            "request_too_large",
            format!("The request body is larger than {most} bytes."),
        )
    }

    /// There is no such path.
    pub fn not_found(what: &str) -> Self {
        Self::new(INVALID, "not_found", format!("There is no `{what}` here."))
    }

    /// The path has no such method.
    pub fn method_not_allowed(method: &str, allowed: &str) -> Self {
        Self::new(
            INVALID,
            "method_not_allowed",
            format!("The method {method} is not allowed here; use {allowed}."),
        )
    }

    /// An operator's order cannot be carried out.
    pub fn of_operator(code: &str, message: &str) -> Self {
        Self::new(INVALID, code, message)
    }

    /// The router itself failed.
    pub fn internal(message: &str) -> Self {
        Self::new(SERVER, "internal_error", message)
    }

    /// A policy refuses the request.
    pub fn rejected(rejection: &Rejection) -> Self {
        let kind = if rejection.allowed_status() == 503 { SERVER } else { INVALID };
        Self::new(kind, &rejection.code, &rejection.message)
    }

    /// Nothing can serve the request now.
    pub fn no_lane(reason: &str) -> Self {
        Self::new(
            SERVER,
            "no_lane_available",
            format!("No lane can serve this request now: {reason}."),
        )
    }

    /// The lane's queue is full.
    pub fn queue_full(lane: &str, reason: &str) -> Self {
        Self::new(
            "rate_limit_error",
            "queue_full",
            format!("The queue of lane `{lane}` is full: {reason}."),
        )
    }

    /// The request waited for its longest time.
    pub fn queue_timeout(lane: &str, reason: &str) -> Self {
        Self::new(
            SERVER,
            "queue_timeout",
            format!("Lane `{lane}` had no free slot in time: {reason}."),
        )
    }

    /// The engine is full.
    pub fn engine_overloaded(lane: &str, reason: &str) -> Self {
        Self::new(
            SERVER,
            "engine_overloaded",
            format!("The engine of lane `{lane}` is overloaded: {reason}."),
        )
    }

    /// The engine failed.
    pub fn engine_failed(lane: &str, reason: &str) -> Self {
        Self::new(SERVER, "engine_error", format!("The engine of lane `{lane}` failed: {reason}."))
    }

    /// The engine was too slow.
    pub fn engine_timeout(lane: &str, reason: &str) -> Self {
        Self::new(
            "timeout_error",
            "engine_timeout",
            format!("The engine of lane `{lane}` took too long: {reason}."),
        )
    }

    /// As JSON text.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: &'a ErrorBody,
        }
        // Strings and options of strings always have a form in JSON.
        serde_json::to_string(&Envelope { error: self }).unwrap_or_default()
    }
}

/// The event that ends a broken stream. Inside an event (`mid_frame`) it begins by closing that.
pub fn error_event(error: &ErrorBody, mid_frame: bool) -> Bytes {
    let close = if mid_frame { "\n\n" } else { "" };
    format!("{close}data: {}\n\n", error.to_json()).into()
}

/// What an engine said about its failure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineFailure {
    /// Its sentence, if it could be found.
    pub message: Option<String>,
}

impl EngineFailure {
    /// Read an engine's error body. vLLM has `{"error":{"message"}}`, `{"error":"…"}` and `{"detail":"…"}`, llama.cpp the
    /// first; others may send plain text.
    pub fn read(body: &[u8]) -> Self {
        const LONGEST: usize = 2000;
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let found = json.as_ref().and_then(|json| {
            let paths = ["/error/message", "/error", "/detail", "/message"];
            paths.iter().find_map(|path| json.pointer(path)?.as_str())
        });
        let text = match (found, json.is_some()) {
            (Some(text), _) => text.to_owned(),
            (None, true) => String::new(),
            (None, false) => String::from_utf8_lossy(body).trim().to_owned(),
        };
        let text: String = text.chars().take(LONGEST).collect();
        Self { message: (!text.is_empty()).then_some(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_openai_s_form() {
        let body = ErrorBody::model_not_found("gpt", &["a", "b"]);
        insta::assert_snapshot!(body.to_json(), @r#"{"error":{"message":"The model `gpt` does not exist. Available models: a, b.","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#);
        let event = error_event(&ErrorBody::invalid_request("no"), true);
        assert_eq!(&event[..], b"\n\ndata: {\"error\":{\"message\":\"no\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n\n");
    }

    #[test]
    fn engines_words_are_found() {
        // The first six as recorded from vLLM 0.32.0 and llama.cpp b115xx.
        for (body, message) in [
            (
                r#"{"error":{"message":"The model `nope` does not exist.","type":"NotFoundError","param":"model","code":404}}"#,
                Some("The model `nope` does not exist."),
            ),
            (r#"{"detail":"Not Found"}"#, Some("Not Found")),
            (r#"{"error":"Unauthorized"}"#, Some("Unauthorized")),
            (
                r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
                Some("Loading model"),
            ),
            (
                r#"{"error":{"code":400,"message":"'messages' is required","type":"invalid_request_error"}}"#,
                Some("'messages' is required"),
            ),
            (
                r#"{"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#,
                Some("File Not Found"),
            ),
            ("upstream went away\n", Some("upstream went away")),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(EngineFailure::read(body.as_bytes()).message.as_deref(), message, "{body}");
        }
    }
}
