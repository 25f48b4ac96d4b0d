//! The forms of errors: each API has its own.

use bytes::Bytes;
use serde_json::json;

use crate::error::{ErrorBody, error_event};

/// Anthropic's code of a request whose conversation the server should keep, and does not.
const UNSUPPORTED_THREAD: &str = "thread_unsupported_request";

/// The form of the errors of an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorForm {
    /// `{"error":{"message","type","param","code"}}`, and `data:` with the same in streams.
    #[default]
    OpenAi,
    /// As [`ErrorForm::OpenAi`], except that events of streams are those of the responses API.
    Responses,
    /// `{"type":"error","error":{"type","message"}}`.
    Anthropic,
    /// `{"error":"message"}`, also as a line of a stream.
    Ollama,
}

impl ErrorForm {
    /// Returns the body of an error response with this status.
    pub fn body(self, error: &ErrorBody, status: u16) -> String {
        match self {
            Self::OpenAi | Self::Responses => error.to_json(),
            Self::Anthropic => {
                let kind = anthropic_kind(status);
                let code = error.stable_code();
                let mut body = json!({ "type": kind, "message": error.message });
                if let Some(code) = code {
                    body["code"] = code.into();
                }
                if code == Some(UNSUPPORTED_THREAD) {
                    // By this, Anthropic's libraries send the whole conversation instead.
                    body["details"] = json!({ "error_code": code, "unsupported": ["thread"] });
                }
                json!({ "type": "error", "error": body }).to_string()
            }
            Self::Ollama => json!({ "error": error.message }).to_string(),
        }
    }

    /// Returns what ends a broken stream with this error. If the stream broke within an event
    /// (`mid_frame`), that event is terminated first.
    pub fn event(self, error: &ErrorBody, mid_frame: bool) -> Bytes {
        match self {
            Self::OpenAi => error_event(error, mid_frame),
            Self::Responses => response_event(error, mid_frame),
            Self::Anthropic => {
                let close = if mid_frame { "\n\n" } else { "" };
                let body = self.body(error, error.status.unwrap_or(500));
                format!("{close}event: error\ndata: {body}\n\n").into()
            }
            // The host writes whole lines, whatever the engine has ended in.
            Self::Ollama => format!("{}\n", self.body(error, 500)).into(),
        }
    }
}

/// Returns the error event of the responses API. Its fields are those of the documentation; the
/// nested error is what OpenAI's libraries recognise. The gateway counts the events.
fn response_event(error: &ErrorBody, mid_frame: bool) -> Bytes {
    let close = if mid_frame { "\n\n" } else { "" };
    let event = json!({
        "type": "error",
        "sequence_number": 0,
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "error": error,
    });
    format!("{close}event: error\ndata: {event}\n\n").into()
}

/// Returns Anthropic's type of errors with this status.
fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}
