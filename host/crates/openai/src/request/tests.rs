use pointsman_domain::Role;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn parse(endpoint: Endpoint, body: &str) -> Result<Request, BadRequest> {
    Request::parse(endpoint, Bytes::from(body.to_owned()), Head::default())
}

fn chat(body: &Value) -> Request {
    parse(Endpoint::ChatCompletions, &body.to_string()).unwrap()
}

#[test]
fn figures_tell_what_the_request_is_like() {
    let request = chat(&json!({
        "model": "m", "stream": true, "max_tokens": 7, "tools": [{}], "response_format": {"type": "json_object"},
        "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "abcdefgh"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": null, "tool_calls": []},
        ],
    }));
    let figures = request.figures();
    assert!(figures.streaming && figures.has_tools && figures.has_media && figures.has_grammar);
    assert_eq!(
        (figures.max_output_tokens, figures.messages, figures.prompt_tokens),
        (7, 3, 3 * 4 + 2 + 2)
    );
    let info =
        |role, text_bytes, parts, media_parts| MessageInfo { role, text_bytes, parts, media_parts };
    let expected =
        [info(Role::System, 7, 1, 0), info(Role::User, 8, 2, 1), info(Role::Assistant, 0, 0, 0)];
    assert_eq!(request.messages(), expected);

    let plain = chat(
        &json!({"model": "m", "messages": [], "tools": [], "response_format": {"type": "text"}}),
    );
    let figures = plain.figures();
    assert!(!(figures.streaming || figures.has_tools || figures.has_media || figures.has_grammar));
}

#[test]
fn prompts_come_in_four_shapes() {
    for (prompt, tokens, text) in [
        (json!("abcdefgh"), 4 + 2, "abcdefgh"),
        (json!(["abcd", "efgh"]), 4 + 2, "abcdefgh"),
        (json!([1, 2, 3]), 4 + 3, ""),
        (json!([[1, 2], [3]]), 4 + 3, ""),
    ] {
        let body = json!({"model": "m", "prompt": prompt}).to_string();
        let request = parse(Endpoint::Completions, &body).unwrap();
        assert_eq!(request.figures().prompt_tokens, tokens, "{prompt}");
        assert_eq!(request.text(0, 0, 100), text, "{prompt}");
        assert_eq!(request.figures().messages, 0);
    }
}

#[test]
fn bad_bodies_say_what_is_wrong() {
    use Endpoint::{ChatCompletions, Completions};
    for (endpoint, body, param, part) in [
        (ChatCompletions, "", None, "EOF while parsing"),
        (ChatCompletions, "{\"model\": ", None, "line 1 column"),
        (ChatCompletions, "[]", None, "must be a JSON object"),
        (ChatCompletions, "{}", Some("model"), "you must provide a model"),
        (ChatCompletions, r#"{"model":5,"messages":[]}"#, Some("model"), "must be a string"),
        (ChatCompletions, r#"{"model":"m"}"#, Some("messages"), "required"),
        (ChatCompletions, r#"{"model":"m","messages":"hi"}"#, None, "expected a sequence"),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[{"content":"x"}]}"#,
            Some("messages"),
            "`role`",
        ),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[{"role":"user","content":5}]}"#,
            Some("messages"),
            "`content`",
        ),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[],"stream":"yes"}"#,
            Some("stream"),
            "true or false",
        ),
        (
            ChatCompletions,
            r#"{"model":"a","model":"b","messages":[]}"#,
            None,
            "duplicate field `model`",
        ),
        (ChatCompletions, r#"{"model":"a","messages":[]} x"#, None, "trailing characters"),
        (Completions, r#"{"model":"m"}"#, Some("prompt"), "required"),
        (Completions, r#"{"model":"m","prompt":{}}"#, Some("prompt"), "must be a string"),
    ] {
        let error = parse(endpoint, body).unwrap_err();
        assert!(error.to_string().contains(part), "{body}: {error}");
        assert_eq!(error.body().param.as_deref(), param, "{body}");
    }
    let error =
        Request::parse(ChatCompletions, Bytes::from_static(b"{\"a\":\"\xff\"}"), Head::default())
            .unwrap_err();
    assert_eq!(error, BadRequest::Encoding(6));
}

#[test]
fn a_deep_body_is_refused_and_not_a_crash() {
    let deep = format!(
        r#"{{"model":"m","messages":[],"x":{}{}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    let request = parse(Endpoint::ChatCompletions, &deep);
    if let Ok(request) = request {
        assert!(matches!(request.field("/x", 10), FieldValue::TooLarge(_)));
        let _edited = request.apply(&[Edit::SetField("/x".into(), "1".into())]);
    }
}

#[test]
fn text_is_read_with_escapes_resolved() {
    let request = parse(
        Endpoint::ChatCompletions,
        r#"{"model":"m","messages":[{"role":"user","content":"caf\u00e9\n"}]}"#,
    )
    .unwrap();
    assert_eq!(request.text(0, 0, 100), "café\n");
    assert_eq!(request.text(0, 3, 1), "");
    assert_eq!(request.text(1, 0, 100), "");
    assert!(
        request.contains("fé", false)
            && request.contains("FÉ", false) == request.contains("FÉ", true)
    );
    assert!(
        request.contains("CAF", true)
            && !request.contains("CAF", false)
            && request.contains("", false)
    );
    let half = parse(
        Endpoint::ChatCompletions,
        r#"{"model":"m","messages":[{"role":"user","content":"\ud800"}]}"#,
    )
    .unwrap();
    assert_eq!(half.text(0, 0, 100), r"\ud800");
}

#[test]
fn fields_are_found_by_pointer_and_measured() {
    let request = chat(
        &json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "a/b": {"c~d": [1, "two"]}}),
    );
    for (pointer, expected) in [
        ("/a~1b/c~0d/1", FieldValue::Json("\"two\"".into())),
        ("/messages/0/role", FieldValue::Json("\"user\"".into())),
        ("/none", FieldValue::Absent),
        ("/model/x", FieldValue::Absent),
        ("", FieldValue::Absent),
        ("/a~1b", FieldValue::TooLarge(17)),
    ] {
        assert_eq!(request.field(pointer, 10), expected, "{pointer}");
    }
    assert_eq!(request.bytes(1, 7), b"\"model\"");
    assert_eq!(request.bytes(u64::MAX, 7), b"");
}

#[test]
fn credentials_end_here() {
    let mut headers = HeaderMap::new();
    for name in ["authorization", "cookie", "x-api-key", "x-task"] {
        headers.insert(name, "v".parse().unwrap());
    }
    let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
    let request =
        Request::parse(Endpoint::ChatCompletions, body, Head { headers, ..Head::default() })
            .unwrap();
    assert_eq!(request.header("X-Task"), Some("v"));
    assert_eq!(request.header("authorization"), None);
    assert_eq!(request.headers().len(), 1);
    assert_eq!(RequestView::headers(&request), [("x-task", b"v".as_slice())]);
}

#[test]
fn another_model_name_changes_nothing_else() {
    let request =
        parse(Endpoint::ChatCompletions, r#" {"x":1e5, "model" : "a", "messages":[]} "#).unwrap();
    assert_eq!(
        &request.body_with_model("b\n")[..],
        br#" {"x":1e5, "model" : "b\n", "messages":[]} "#
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body: Vec<u8>) {
        let _result = Request::parse(Endpoint::ChatCompletions, body.into(), Head::default());
    }

    /// Cutting, doubling or swapping bytes of a good body gives an error or a request, and never a panic; and a request
    /// can be read and edited.
    #[test]
    fn damaged_bodies_never_panic(at in 0usize..200, with: u8, cut: bool) {
        let body = json!({"model": "m", "stream": false, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "caf\u{e9} \" \\"}]}, {"role": "tool", "content": null}],
            "tools": [{}], "max_tokens": 5}).to_string();
        let mut body = body.into_bytes();
        let at = at % body.len();
        if cut { body.truncate(at) } else { body[at] = with }
        if let Ok(request) = Request::parse(Endpoint::ChatCompletions, body.into(), Head::default()) {
            request.messages();
            request.prefix_hashes(3, 5);
            let edits = [Edit::KeepLastMessages(1), Edit::PrependSystem("s".into()), Edit::CapOutputTokens(1)];
            let (edited, _) = request.apply(&edits);
            prop_assert!(serde_json::from_slice::<Value>(edited.bytes(0, usize::MAX)).is_ok());
        }
    }
}
