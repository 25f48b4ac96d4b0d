//! Typed edits. Each edit replaces exactly the bytes that it concerns, and is validated by parsing
//! the result.

use bytes::Bytes;
use http::header::{InvalidHeaderName, InvalidHeaderValue};
use http::{HeaderName, HeaderValue};
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use serde_json::Value;

use crate::json::{self, PointerError};
use crate::request::{BadRequest, Head, Request};

/// The reason why an edit cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The field to edit cannot be found.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// The new value is not JSON.
    #[error("value is not valid JSON: {0}")]
    Value(#[source] serde_json::Error),
    /// The edited body would not be a valid request.
    #[error("edit would make the request invalid: {0}")]
    InvalidRequest(#[from] BadRequest),
    /// The new body names another model.
    #[error("edit would change the model from `{from}` to `{to}`")]
    ModelChanged {
        /// Model of the request.
        from: String,
        /// Model of the new body.
        to: String,
    },
    /// The new body asks for a stream and the client does not, or vice versa.
    #[error("edit would change `stream`: expected `{requested}` as requested by the client")]
    StreamChanged {
        /// True if the client asked for a stream.
        requested: bool,
    },
    /// The edit concerns messages, but the request is not a chat request.
    #[error("only chat requests have messages")]
    NotChat,
    /// The request has no `messages`.
    #[error("request has no `messages`")]
    NoMessages,
    /// The `messages` of the request are not an array.
    #[error("`messages` is not an array")]
    MessagesNotArray,
    /// The header name is invalid.
    #[error("invalid header name `{name}`")]
    HeaderName {
        /// The name.
        name: String,
        /// Error of the parser.
        source: InvalidHeaderName,
    },
    /// The header value has characters that are not allowed.
    #[error("invalid value for header `{name}`")]
    HeaderValue {
        /// Name of the header.
        name: HeaderName,
        /// Error of the parser.
        source: InvalidHeaderValue,
    },
}

/// Returns the request with one edit applied.
///
/// # Errors
/// If the edit cannot be applied or would make the request invalid; the request is then unchanged.
pub(crate) fn apply(request: &Request, edit: &Edit) -> Result<Request, EditError> {
    let body = request.json().trim_ascii();
    let body = match edit {
        Edit::SetModel(model) => {
            json::set(body, &["model".to_owned()], &Value::from(model.as_str()).to_string())?
        }
        Edit::CapOutputTokens(limit) => cap_output(body, *limit)?,
        Edit::SetField(pointer, value) => {
            serde_json::from_str::<serde::de::IgnoredAny>(value).map_err(EditError::Value)?;
            json::set(body, &json::tokens(pointer)?, value.trim_ascii())?
        }
        Edit::RemoveField(pointer) => json::remove(body, &json::tokens(pointer)?)?,
        Edit::PrependSystem(text) => prepend_system(request.endpoint(), body, text)?,
        Edit::KeepLastMessages(count) => keep_last(request.endpoint(), body, *count as usize)?,
        Edit::SetHeader(name, value) => return set_header(request, name, Some(value)),
        Edit::RemoveHeader(name) => return set_header(request, name, None),
        Edit::ReplaceBody(body) => return replace_body(request, body),
    };
    with_body(request, body)
}

fn with_body(request: &Request, body: String) -> Result<Request, EditError> {
    let edited = Request::parse(request.endpoint(), Bytes::from(body), request.head().clone())?;
    Ok(edited)
}

/// Replaces the whole body. Lanes were selected by the model, and the client expects either a
/// stream or a single response, so neither may change.
fn replace_body(request: &Request, body: &str) -> Result<Request, EditError> {
    let replaced = with_body(request, body.to_owned())?;
    if replaced.model() != request.model() {
        let (from, to) = (request.model().to_owned(), replaced.model().to_owned());
        return Err(EditError::ModelChanged { from, to });
    }
    if replaced.streaming() != request.streaming() {
        return Err(EditError::StreamChanged { requested: request.streaming() });
    }
    Ok(replaced)
}

/// Lowers the limits that the request has. If it has none, sets `max_tokens`, which every engine
/// supports.
fn cap_output(body: &str, max: u32) -> Result<String, PointerError> {
    let mut body = body.to_owned();
    let mut limited = false;
    for name in ["max_completion_tokens", "max_tokens"] {
        let path = [name.to_owned()];
        let limit = json::find(&body, &path)
            .filter(|limit| *limit != "null")
            .map(|limit| limit.parse::<u64>().ok());
        let Some(limit) = limit else { continue };
        limited = true;
        if limit.is_none_or(|limit| limit > u64::from(max)) {
            body = json::set(&body, &path, &max.to_string())?;
        }
    }
    if limited { Ok(body) } else { json::set(&body, &["max_tokens".to_owned()], &max.to_string()) }
}

fn prepend_system(endpoint: Endpoint, body: &str, text: &str) -> Result<String, EditError> {
    let messages = messages(endpoint, body)?;
    let comma = if json::is_empty(messages) { "" } else { "," };
    let message = format!("{{\"role\":\"system\",\"content\":{}}}{comma}", Value::from(text));
    let start = json::range_in(body, messages).start + 1;
    Ok(json::splice(body, start..start, &message))
}

/// Keeps the system messages and the last `count` others. A tool result is kept only together with
/// the message that made the call, because engines reject one without the other.
fn keep_last(endpoint: Endpoint, body: &str, count: usize) -> Result<String, EditError> {
    let array = messages(endpoint, body)?;
    let messages = json::elements(array).ok_or(EditError::MessagesNotArray)?;
    let role = |message: &str| json::find(message, &["role".to_owned()]).unwrap_or("").to_owned();
    let is_system =
        |message: &str| matches!(role(message).as_str(), "\"system\"" | "\"developer\"");
    let others = messages.iter().filter(|message| !is_system(message)).count();
    let mut to_drop = others.saturating_sub(count);
    let mut kept: Vec<&str> = Vec::new();
    let mut dropping = to_drop > 0;
    for message in messages {
        if is_system(message) {
            kept.push(message);
        } else if to_drop > 0 {
            to_drop -= 1;
        } else if dropping && matches!(role(message).as_str(), "\"tool\"" | "\"function\"") {
            // The call that this result belongs to was just dropped.
        } else {
            dropping = false;
            kept.push(message);
        }
    }
    Ok(json::splice(body, json::range_in(body, array), &format!("[{}]", kept.join(","))))
}

fn messages(endpoint: Endpoint, body: &str) -> Result<&str, EditError> {
    if endpoint != Endpoint::ChatCompletions {
        return Err(EditError::NotChat);
    }
    json::find(body, &["messages".to_owned()]).ok_or(EditError::NoMessages)
}

fn set_header(request: &Request, name: &str, value: Option<&str>) -> Result<Request, EditError> {
    let name: HeaderName =
        name.parse().map_err(|source| EditError::HeaderName { name: name.to_owned(), source })?;
    let mut head: Head = request.head().clone();
    match value {
        Some(value) => {
            let value = HeaderValue::from_str(value)
                .map_err(|source| EditError::HeaderValue { name: name.clone(), source })?;
            head.headers.insert(name, value);
        }
        None => {
            head.headers.remove(name);
        }
    }
    Ok(Request::parse(request.endpoint(), request.body().clone(), head)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(endpoint: Endpoint, body: &str, edit: Edit) -> Result<String, EditError> {
        let request =
            Request::parse(endpoint, Bytes::from(body.to_owned()), Head::default()).unwrap();
        apply(&request, &edit).map(|request| request.json().to_owned())
    }

    fn chat(body: &str, edit: Edit) -> Result<String, EditError> {
        edited(Endpoint::ChatCompletions, body, edit)
    }

    const BODY: &str = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"x":1.50}"#;

    #[test]
    fn edits_change_only_their_target() {
        for (edit, expected) in [
            (
                Edit::SetModel("b\"".into()),
                r#"{"model":"b\"","messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
            ),
            (
                Edit::CapOutputTokens(9),
                concat!(
                    r#"{"max_tokens":9,"model":"a","#,
                    r#""messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
                ),
            ),
            (
                Edit::SetField("/x".into(), " 2 ".into()),
                r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"x":2}"#,
            ),
            (
                Edit::SetField("/messages/0/content".into(), "\"yo\"".into()),
                r#"{"model":"a","messages":[{"role":"user","content":"yo"}],"x":1.50}"#,
            ),
            (
                Edit::RemoveField("/x".into()),
                r#"{"model":"a","messages":[{"role":"user","content":"hi"}]}"#,
            ),
            (
                Edit::PrependSystem("be \"kind\"".into()),
                concat!(
                    r#"{"model":"a","messages":[{"role":"system","content":"be \"kind\""},"#,
                    r#"{"role":"user","content":"hi"}],"x":1.50}"#,
                ),
            ),
        ] {
            assert_eq!(chat(BODY, edit.clone()).unwrap(), expected, "{edit:?}");
        }
    }

    #[test]
    fn edits_that_would_break_the_request_are_rejected() {
        type Expected = fn(&EditError) -> bool;
        let rejected: [(Edit, Expected); 6] = [
            (Edit::SetField("/x".into(), "{".into()), |error| matches!(error, EditError::Value(_))),
            (Edit::SetField("".into(), "{}".into()), |error| {
                matches!(error, EditError::Pointer(PointerError::Empty))
            }),
            (Edit::SetField("/model".into(), "5".into()), |error| {
                matches!(
                    error,
                    EditError::InvalidRequest(BadRequest::Invalid { name: "model", .. })
                )
            }),
            (Edit::RemoveField("/messages".into()), |error| {
                matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "messages" }))
            }),
            (
                Edit::SetHeader("bad name".into(), "v".into()),
                |error| matches!(error, EditError::HeaderName { name, .. } if name == "bad name"),
            ),
            (
                Edit::SetHeader("x-a".into(), "a\nb".into()),
                |error| matches!(error, EditError::HeaderValue { name, .. } if name == "x-a"),
            ),
        ];
        for (edit, expected) in rejected {
            let result = chat(BODY, edit.clone());
            assert!(result.as_ref().is_err_and(expected), "{edit:?}: {result:?}");
        }
        let prompt = edited(
            Endpoint::Completions,
            r#"{"model":"a","prompt":"p"}"#,
            Edit::PrependSystem("s".into()),
        );
        assert!(matches!(prompt, Err(EditError::NotChat)), "{prompt:?}");
    }

    #[test]
    fn replaced_body_keeps_model_and_stream() {
        let new = |body: &str| chat(BODY, Edit::ReplaceBody(body.to_owned()));
        for body in
            [r#" {"messages":[],"model":"a"}"#, r#"{"model":"a","messages":[],"stream":false}"#]
        {
            assert_eq!(new(body).unwrap(), body);
        }
        type Expected = fn(&EditError) -> bool;
        let rejected: [(&str, Expected); 7] = [
            ("", |error| matches!(error, EditError::InvalidRequest(BadRequest::Json(_)))),
            ("[]", |error| matches!(error, EditError::InvalidRequest(BadRequest::NotAnObject))),
            (r#"{"model":"a","messages":[]"#, |error| {
                matches!(error, EditError::InvalidRequest(BadRequest::Json(_)))
            }),
            (r#"{"model":"a","prompt":"p"}"#, |error| {
                matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "messages" }))
            }),
            (r#"{"messages":[]}"#, |error| {
                matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "model" }))
            }),
            (r#"{"model":"b","messages":[]}"#, |error| match error {
                EditError::ModelChanged { from, to } => from == "a" && to == "b",
                _ => false,
            }),
            (r#"{"model":"a","messages":[],"stream":true}"#, |error| {
                matches!(error, EditError::StreamChanged { requested: false })
            }),
        ];
        for (body, expected) in rejected {
            let result = new(body);
            assert!(result.as_ref().is_err_and(expected), "{body}: {result:?}");
        }
    }

    #[test]
    fn output_limits_are_only_ever_lowered() {
        let body = |limits: &str| format!(r#"{{"model":"a","messages":[],{limits}}}"#);
        for (limits, expected) in [
            (r#""max_tokens":100"#, r#""max_tokens":10"#),
            (r#""max_tokens":5"#, r#""max_tokens":5"#),
            (r#""max_completion_tokens":100"#, r#""max_completion_tokens":10"#),
            (
                r#""max_tokens":100,"max_completion_tokens":7"#,
                r#""max_tokens":10,"max_completion_tokens":7"#,
            ),
            (r#""max_tokens":-1"#, r#""max_tokens":10"#),
        ] {
            assert_eq!(
                chat(&body(limits), Edit::CapOutputTokens(10)).unwrap(),
                body(expected),
                "{limits}"
            );
        }
    }

    #[test]
    fn old_messages_are_dropped_together_with_their_tool_results() {
        let body = |messages: &str| format!(r#"{{"model":"a","messages":[{messages}]}}"#);
        let message = |role: &str| format!(r#"{{"role":"{role}","content":"x"}}"#);
        let list = |roles: &[&str]| {
            body(&roles.iter().map(|role| message(role)).collect::<Vec<_>>().join(","))
        };
        for (roles, count, expected) in [
            (vec!["system", "user", "assistant", "user"], 1, vec!["system", "user"]),
            (vec!["user", "system", "user"], 1, vec!["system", "user"]),
            (vec!["user", "assistant", "tool", "tool", "assistant"], 3, vec!["assistant"]),
            (vec!["user", "assistant", "tool"], 5, vec!["user", "assistant", "tool"]),
            (vec!["developer", "user"], 0, vec!["developer"]),
        ] {
            assert_eq!(
                chat(&list(&roles), Edit::KeepLastMessages(count)).unwrap(),
                list(&expected),
                "{roles:?}, {count}"
            );
        }
    }
}
