//! Errors in the OpenAI format: `{"error":{"message","type","param","code"}}`.
//!
//! Types and codes are those of the OpenAI API where it has one for the case
//! (`invalid_request_error`, `model_not_found`, `invalid_api_key`). OpenAI's client libraries
//! choose the exception by the HTTP status. Codes are stable; messages are not.

use std::borrow::Cow;

use bytes::Bytes;
use pointsman_domain::Rejection;
use serde::Serialize;
use serde_json::Value;

/// The body of an error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// Message for people.
    pub message: String,
    /// Type of the error.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Request field that caused the error.
    pub param: Option<String>,
    /// Code for programs: a stable one, or the engine's own.
    pub code: Option<String>,
    /// The stable code, if `code` is the engine's.
    #[serde(rename = "pointsman_code", skip_serializing_if = "Option::is_none")]
    pub host_code: Option<String>,
    /// HTTP status, if the error is an event of a response that has already begun with another
    /// one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ErrorBody {
    fn new(kind: &'static str, code: &str, message: impl Into<String>) -> Self {
        let (message, code) = (message.into(), Some(code.to_owned()));
        Self { message, kind: kind.into(), param: None, code, host_code: None, status: None }
    }

    /// Returns the error for an invalid request.
    pub fn invalid_request(message: &str) -> Self {
        let (message, kind) = (message.to_owned(), INVALID.into());
        Self { message, kind, param: None, code: None, host_code: None, status: None }
    }

    /// Returns the error for a model that no lane serves.
    pub fn model_not_found(model: &str, available: &[&str]) -> Self {
        let message = format!(
            "The model `{model}` does not exist. Available models: {}.",
            available.join(", ")
        );
        Self { param: Some("model".into()), ..Self::new(INVALID, "model_not_found", message) }
    }

    /// Returns the error for a missing or invalid API key.
    pub fn unauthorized() -> Self {
        Self::new(
            INVALID,
            "invalid_api_key",
            "A valid API key is required: send it as `Authorization: Bearer KEY`.",
        )
    }

    /// Returns the error for a body that is not JSON.
    pub fn unsupported_media_type(given: Option<&str>) -> Self {
        let given = given.map_or_else(|| "none".to_owned(), |given| format!("`{given}`"));
        let message =
            format!("Unsupported content type: expected `application/json`, found {given}.");
        Self::new(INVALID, "unsupported_media_type", message)
    }

    /// Returns the error for a body longer than `max` bytes.
    pub fn body_too_large(max: usize) -> Self {
        Self::new(INVALID, "request_too_large", format!("The request body exceeds {max} bytes."))
    }

    /// Returns the error for an unknown path or resource.
    pub fn not_found(what: &str) -> Self {
        Self::new(INVALID, "not_found", format!("Not found: `{what}`."))
    }

    /// Returns the error for a method that the path does not support.
    pub fn method_not_allowed(method: &str, allowed: &str) -> Self {
        Self::new(
            INVALID,
            "method_not_allowed",
            format!("Method {method} is not allowed; use {allowed}."),
        )
    }

    /// Returns the error for an operator command that cannot be executed.
    pub fn operator_error(code: &str, message: &str) -> Self {
        Self::new(INVALID, code, message)
    }

    /// Returns the error for a failure of the router itself.
    pub fn internal(message: &str) -> Self {
        Self::new(SERVER, "internal_error", message)
    }

    /// Returns the error for a request that a policy rejected.
    pub fn rejected(rejection: &Rejection) -> Self {
        let kind = if rejection.allowed_status() == 503 { SERVER } else { INVALID };
        Self::new(kind, &rejection.code, &rejection.message)
    }

    /// Returns the error for a request that no lane can serve now.
    pub fn no_lane(reason: &str) -> Self {
        Self::new(
            SERVER,
            "no_lane_available",
            format!("No lane can serve this request now: {reason}."),
        )
    }

    /// Returns the error for a full queue.
    pub fn queue_full(lane: &str, reason: &str) -> Self {
        Self::new(
            "rate_limit_error",
            "queue_full",
            format!("Lane `{lane}` rejected the request: {reason}."),
        )
    }

    /// Returns the error for a request that exceeded its maximum wait.
    pub fn queue_timeout(lane: &str, reason: &str) -> Self {
        Self::new(
            SERVER,
            "queue_timeout",
            format!("Lane `{lane}` had no free slot in time: {reason}."),
        )
    }

    /// Returns the error for an engine that rejects requests as overloaded.
    pub fn engine_overloaded(lane: &str, reason: &str) -> Self {
        Self::new(
            SERVER,
            "engine_overloaded",
            format!("The engine of lane `{lane}` is overloaded: {reason}."),
        )
    }

    /// Returns the error for a failure of the engine.
    pub fn engine_failed(lane: &str, reason: &str) -> Self {
        Self::new(SERVER, "engine_error", format!("The engine of lane `{lane}` failed: {reason}."))
    }

    /// Returns the error for an engine that did not respond in time.
    pub fn engine_timeout(lane: &str, reason: &str) -> Self {
        Self::new(
            "timeout_error",
            "engine_timeout",
            format!("The engine of lane `{lane}` did not respond in time: {reason}."),
        )
    }

    /// Returns the stable code.
    pub fn stable_code(&self) -> Option<&str> {
        self.host_code.as_deref().or(self.code.as_deref())
    }

    /// Returns the error with the type, the parameter and the code of an engine's error, as far as
    /// it has them: client libraries and programs know these.
    #[must_use]
    pub fn with_details_of(mut self, engine: &EngineErrorBody) -> Self {
        if let Some(kind) = &engine.kind {
            self.kind = kind.clone().into();
        }
        if engine.param.is_some() {
            self.param.clone_from(&engine.param);
        }
        if engine.code.is_some() && engine.code != self.code {
            self.host_code = self.code.take();
            self.code.clone_from(&engine.code);
        }
        self
    }

    /// Returns the error with the HTTP status that its response would have had.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Returns the error as JSON.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: &'a ErrorBody,
        }
        // Serialising strings and options of strings cannot fail.
        serde_json::to_string(&Envelope { error: self }).unwrap_or_default()
    }
}

/// Returns the event that ends a broken stream. If the stream broke within an event (`mid_frame`),
/// that event is terminated first.
pub fn error_event(error: &ErrorBody, mid_frame: bool) -> Bytes {
    let close = if mid_frame { "\n\n" } else { "" };
    format!("{close}data: {}\n\n", error.to_json()).into()
}

/// Returns an engine's error body as an event, with its type, param, code and whatever else the
/// engine says, and with the HTTP status of its response; `None` if the body is not an error
/// object.
pub fn engine_error_event(body: &[u8], status: u16) -> Option<Bytes> {
    let mut body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get_mut("error")?.as_object_mut()?;
    for field in ["message", "type", "param", "code"] {
        error.entry(field).or_insert(Value::Null);
    }
    error.insert("status".to_owned(), status.into());
    let event = serde_json::json!({ "error": error });
    Some(format!("data: {event}\n\n").into())
}

/// The error that an engine reported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineErrorBody {
    /// Error message, if one was found.
    pub message: Option<String>,
    /// The engine's own type of the error, if it has one.
    pub kind: Option<String>,
    /// The field of the request that the engine names.
    pub param: Option<String>,
    /// The engine's own code, unless it is only a number, like the status.
    pub code: Option<String>,
    /// HTTP status, if one was found: some engines send it as the code of the error.
    pub status: Option<u16>,
}

impl EngineErrorBody {
    /// Reads an engine's error body. vLLM sends `{"error":{"message"}}`, `{"error":"…"}` or
    /// `{"detail":"…"}`, llama.cpp the first of these; other engines may send plain text.
    pub fn read(body: &[u8]) -> Self {
        const MAX_CHARS: usize = 2000;
        const MAX_FIELD: usize = 200;
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
        let text: String = text.chars().take(MAX_CHARS).collect();
        let field = |path| {
            let text = json.as_ref().and_then(|json| json.pointer(path)?.as_str());
            text.filter(|text| !text.is_empty()).map(|text| text.chars().take(MAX_FIELD).collect())
        };
        let (kind, param) = (field("/error/type"), field("/error/param"));
        let code = field("/error/code").filter(|code: &String| code.parse::<f64>().is_err());
        let status = json.as_ref().and_then(|json| {
            let paths = ["/error/code", "/error/status", "/code", "/status"];
            paths.iter().find_map(|path| error_status(json.pointer(path)?))
        });
        Self { message: (!text.is_empty()).then_some(text), kind, param, code, status }
    }
}

/// Returns the HTTP status of an error if `code` is one, as a number or as a text.
fn error_status(code: &Value) -> Option<u16> {
    let status = match code.as_str() {
        Some(text) => text.parse().ok()?,
        None => u16::try_from(code.as_u64()?).ok()?,
    };
    (400..600).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_openai_format() {
        let body = ErrorBody::model_not_found("gpt", &["a", "b"]);
        insta::assert_snapshot!(
            body.to_json(),
            @"{\"error\":{\"message\":\"The model `gpt` does not exist. Available models: a, b.\",\
              \"type\":\"invalid_request_error\",\"param\":\"model\",\"code\":\"model_not_found\"}}"
        );
        let event = error_event(&ErrorBody::invalid_request("no"), true);
        assert_eq!(
            event,
            concat!(
                "\n\ndata: {\"error\":{\"message\":\"no\",\"type\":\"invalid_request_error\",",
                "\"param\":null,\"code\":null}}\n\n",
            )
        );
    }

    #[test]
    fn details_of_engines_are_kept() {
        let own = || ErrorBody::engine_failed("a", "x");
        for (engine, kind, param, code, host_code) in [
            ("{}", "server_error", None, "engine_error", None),
            (
                r#"{"error":{"type":"T","param":"p","code":500}}"#,
                "T",
                Some("p"),
                "engine_error",
                None,
            ),
            (r#"{"error":{"type":null,"code":"500"}}"#, "server_error", None, "engine_error", None),
            (
                r#"{"error":{"type":7,"param":null,"code":"quota"}}"#,
                "server_error",
                None,
                "quota",
                { Some("engine_error") },
            ),
            (r#"{"error":{"code":"engine_error"}}"#, "server_error", None, "engine_error", None),
        ] {
            let body = own().with_details_of(&EngineErrorBody::read(engine.as_bytes()));
            assert_eq!((&*body.kind, body.param.as_deref()), (kind, param), "{engine}");
            assert_eq!(body.code.as_deref(), Some(code), "{engine}");
            assert_eq!(body.host_code.as_deref(), host_code, "{engine}");
            assert_eq!(body.stable_code(), Some("engine_error"), "{engine}");
        }
    }

    #[test]
    fn errors_of_engines_keep_their_fields_as_events() {
        let error = br#"{"error":{"message":"too long","type":"BadRequestError",
            "param":"input_tokens","code":400,"n":1}}"#;
        let event = engine_error_event(error, 400).unwrap();
        let data = event.strip_prefix(b"data: ").unwrap();
        let event: Value = serde_json::from_slice(data).unwrap();
        let expected = serde_json::json!({"error": {"message": "too long", "status": 400,
            "type": "BadRequestError", "param": "input_tokens", "code": 400, "n": 1}});
        assert_eq!(event, expected);
        for body in [r#"{"detail":"x"}"#, r#"{"error":"x"}"#, "x"] {
            assert_eq!(engine_error_event(body.as_bytes(), 400), None, "{body}");
        }
    }

    #[test]
    fn status_of_an_error_is_found() {
        for (body, status) in [
            (r#"{"error":{"code":502}}"#, Some(502)),
            (r#"{"error":{"code":"429"}}"#, Some(429)),
            (r#"{"error":{"code":"rate_limit","status":429}}"#, Some(429)),
            (r#"{"object":"error","message":"m","code":400}"#, Some(400)),
            (r#"{"error":{"code":70000}}"#, None),
            (r#"{"error":{"code":200}}"#, None),
            (r#"{"error":"x"}"#, None),
        ] {
            assert_eq!(EngineErrorBody::read(body.as_bytes()).status, status, "{body}");
        }
    }

    #[test]
    fn engine_messages_are_extracted() {
        // The first six were recorded from vLLM 0.32.0 and llama.cpp b115xx.
        for (body, message) in [
            (
                concat!(
                    r#"{"error":{"message":"The model `nope` does not exist.","#,
                    r#""type":"NotFoundError","param":"model","code":404}}"#,
                ),
                Some("The model `nope` does not exist."),
            ),
            (r#"{"detail":"Not Found"}"#, Some("Not Found")),
            (r#"{"error":"Unauthorized"}"#, Some("Unauthorized")),
            (
                r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
                Some("Loading model"),
            ),
            (
                concat!(
                    r#"{"error":{"code":400,"message":"'messages' is required","#,
                    r#""type":"invalid_request_error"}}"#,
                ),
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
            assert_eq!(
                EngineErrorBody::read(body.as_bytes()).message.as_deref(),
                message,
                "{body}"
            );
        }
    }
}
