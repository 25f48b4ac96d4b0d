//! Typed edits: each replaces exactly the bytes that it is about, and is checked by parsing the outcome.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use serde_json::Value;

use crate::json;
use crate::request::{Head, Request};

/// Apply one edit.
///
/// # Errors
/// With the reason, in a sentence; the request is then unchanged.
pub(crate) fn apply(request: &Request, edit: &Edit) -> Result<Request, String> {
    let body = request.json().trim_ascii();
    let body = match edit {
        Edit::SetModel(model) => {
            json::set(body, &["model".to_owned()], &Value::from(model.as_str()).to_string())?
        }
        Edit::CapOutputTokens(most) => cap_output(body, *most)?,
        Edit::SetField(pointer, value) => {
            serde_json::from_str::<serde::de::IgnoredAny>(value)
                .map_err(|error| format!("the value is not JSON: {error}"))?;
            json::set(body, &json::tokens(pointer)?, value.trim_ascii())?
        }
        Edit::RemoveField(pointer) => json::remove(body, &json::tokens(pointer)?)?,
        Edit::PrependSystem(text) => prepend_system(request.endpoint(), body, text)?,
        Edit::KeepLastMessages(most) => keep_last(request.endpoint(), body, *most as usize)?,
        Edit::SetHeader(name, value) => return set_header(request, name, Some(value)),
        Edit::RemoveHeader(name) => return set_header(request, name, None),
        Edit::ReplaceBody(body) => return replace_body(request, body),
    };
    with_body(request, body)
}

fn with_body(request: &Request, body: String) -> Result<Request, String> {
    Request::parse(request.endpoint(), Bytes::from(body), request.head().clone())
        .map_err(|error| format!("it would make the request invalid: {error}"))
}

/// The lanes were found by the model's name, and the client waits for a stream or for one answer: neither may change with
/// the rest of the body.
fn replace_body(request: &Request, body: &str) -> Result<Request, String> {
    let replaced = with_body(request, body.to_owned())?;
    if replaced.model() != request.model() {
        let (from, to) = (request.model(), replaced.model());
        return Err(format!("it would change the model from `{from}` to `{to}`"));
    }
    if replaced.streaming() != request.streaming() {
        let asked = if request.streaming() { "a stream" } else { "one answer" };
        return Err(format!("it would change `stream`, and the client asked for {asked}"));
    }
    Ok(replaced)
}

/// Lower the limits that are there; where there is none, set `max_tokens`, which every engine knows.
fn cap_output(body: &str, most: u32) -> Result<String, String> {
    let mut body = body.to_owned();
    let mut limited = false;
    for name in ["max_completion_tokens", "max_tokens"] {
        let path = [name.to_owned()];
        let limit = json::find(&body, &path)
            .filter(|limit| *limit != "null")
            .map(|limit| limit.parse::<u64>().ok());
        let Some(limit) = limit else { continue };
        limited = true;
        if limit.is_none_or(|limit| limit > u64::from(most)) {
            body = json::set(&body, &path, &most.to_string())?;
        }
    }
    if limited { Ok(body) } else { json::set(&body, &["max_tokens".to_owned()], &most.to_string()) }
}

fn prepend_system(endpoint: Endpoint, body: &str, text: &str) -> Result<String, String> {
    let messages = messages(endpoint, body)?;
    let comma = if json::is_empty(messages) { "" } else { "," };
    let message = format!("{{\"role\":\"system\",\"content\":{}}}{comma}", Value::from(text));
    let start = json::range_in(body, messages).start + 1;
    Ok(json::splice(body, start..start, &message))
}

/// Keep the system messages and the last `most` others. The answer of a tool stays only together with the message that
/// called it: engines refuse one without the other.
fn keep_last(endpoint: Endpoint, body: &str, most: usize) -> Result<String, String> {
    let array = messages(endpoint, body)?;
    let messages = json::elements(array).ok_or("`messages` is no list")?;
    let role = |message: &str| json::find(message, &["role".to_owned()]).unwrap_or("").to_owned();
    let is_system =
        |message: &str| matches!(role(message).as_str(), "\"system\"" | "\"developer\"");
    let others = messages.iter().filter(|message| !is_system(message)).count();
    let mut to_drop = others.saturating_sub(most);
    let mut kept: Vec<&str> = Vec::new();
    let mut dropping = to_drop > 0;
    for message in messages {
        if is_system(message) {
            kept.push(message);
        } else if to_drop > 0 {
            to_drop -= 1;
        } else if dropping && matches!(role(message).as_str(), "\"tool\"" | "\"function\"") {
            // Its call was dropped just before.
        } else {
            dropping = false;
            kept.push(message);
        }
    }
    Ok(json::splice(body, json::range_in(body, array), &format!("[{}]", kept.join(","))))
}

fn messages(endpoint: Endpoint, body: &str) -> Result<&str, String> {
    if endpoint != Endpoint::ChatCompletions {
        return Err("only chat requests have messages".into());
    }
    json::find(body, &["messages".to_owned()]).ok_or_else(|| "there are no messages".into())
}

fn set_header(request: &Request, name: &str, value: Option<&str>) -> Result<Request, String> {
    let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is no name of a header"))?;
    let mut head: Head = request.head().clone();
    match value {
        Some(value) => {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of `{name}` may not stand in a header"))?;
            head.headers.insert(name, value);
        }
        None => {
            head.headers.remove(name);
        }
    }
    Request::parse(request.endpoint(), request.body().clone(), head)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(endpoint: Endpoint, body: &str, edit: Edit) -> Result<String, String> {
        let request =
            Request::parse(endpoint, Bytes::from(body.to_owned()), Head::default()).unwrap();
        apply(&request, &edit).map(|request| request.json().to_owned())
    }

    fn chat(body: &str, edit: Edit) -> Result<String, String> {
        edited(Endpoint::ChatCompletions, body, edit)
    }

    const BODY: &str = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"x":1.50}"#;

    #[test]
    fn edits_change_what_they_say() {
        for (edit, expected) in [
            (
                Edit::SetModel("b\"".into()),
                r#"{"model":"b\"","messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
            ),
            (
                Edit::CapOutputTokens(9),
                r#"{"max_tokens":9,"model":"a","messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
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
                r#"{"model":"a","messages":[{"role":"system","content":"be \"kind\""},{"role":"user","content":"hi"}],"x":1.50}"#,
            ),
        ] {
            assert_eq!(chat(BODY, edit.clone()).as_deref(), Ok(expected), "{edit:?}");
        }
    }

    #[test]
    fn edits_that_would_break_the_request_are_refused() {
        for (edit, reason) in [
            (Edit::SetField("/x".into(), "{".into()), "not JSON"),
            (Edit::SetField("".into(), "{}".into()), "empty"),
            (Edit::SetField("/model".into(), "5".into()), "must be a string"),
            (Edit::RemoveField("/messages".into()), "`messages` is required"),
            (Edit::SetHeader("bad name".into(), "v".into()), "no name of a header"),
            (Edit::SetHeader("x-a".into(), "a\nb".into()), "may not stand in a header"),
        ] {
            let result = chat(BODY, edit.clone());
            assert!(
                result.as_ref().is_err_and(|text| text.contains(reason)),
                "{edit:?}: {result:?}"
            );
        }
        let prompt = edited(
            Endpoint::Completions,
            r#"{"model":"a","prompt":"p"}"#,
            Edit::PrependSystem("s".into()),
        );
        assert_eq!(prompt, Err("only chat requests have messages".into()));
    }

    #[test]
    fn a_new_body_is_the_same_kind_of_request() {
        let new = |body: &str| chat(BODY, Edit::ReplaceBody(body.to_owned()));
        for good in
            [r#" {"messages":[],"model":"a"}"#, r#"{"model":"a","messages":[],"stream":false}"#]
        {
            assert_eq!(new(good).as_deref(), Ok(good));
        }
        for (bad, reason) in [
            ("", "would make the request invalid"),
            ("[]", "must be a JSON object"),
            (r#"{"model":"a","messages":[]"#, "would make the request invalid"),
            (r#"{"model":"a","prompt":"p"}"#, "`messages` is required"),
            (r#"{"messages":[]}"#, "must provide a model"),
            (r#"{"model":"b","messages":[]}"#, "change the model from `a` to `b`"),
            (r#"{"model":"a","messages":[],"stream":true}"#, "the client asked for one answer"),
        ] {
            let result = new(bad);
            assert!(result.as_ref().is_err_and(|text| text.contains(reason)), "{bad}: {result:?}");
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
                chat(&body(limits), Edit::CapOutputTokens(10)),
                Ok(body(expected)),
                "{limits}"
            );
        }
    }

    #[test]
    fn old_messages_go_and_no_tool_answer_is_left_without_its_call() {
        let body = |messages: &str| format!(r#"{{"model":"a","messages":[{messages}]}}"#);
        let message = |role: &str| format!(r#"{{"role":"{role}","content":"x"}}"#);
        let list = |roles: &[&str]| {
            body(&roles.iter().map(|role| message(role)).collect::<Vec<_>>().join(","))
        };
        for (roles, most, expected) in [
            (vec!["system", "user", "assistant", "user"], 1, vec!["system", "user"]),
            (vec!["user", "system", "user"], 1, vec!["system", "user"]),
            (vec!["user", "assistant", "tool", "tool", "assistant"], 3, vec!["assistant"]),
            (vec!["user", "assistant", "tool"], 5, vec!["user", "assistant", "tool"]),
            (vec!["developer", "user"], 0, vec!["developer"]),
        ] {
            assert_eq!(
                chat(&list(&roles), Edit::KeepLastMessages(most)),
                Ok(list(&expected)),
                "{roles:?}, {most}"
            );
        }
    }
}
