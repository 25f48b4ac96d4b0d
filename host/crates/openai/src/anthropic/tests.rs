//! Tests of the translation: fixed cases, goldens of streams, and properties of generated
//! conversations.

mod properties;
mod streams;

use bytes::Bytes;
use pointsman_domain::Endpoint;
use serde_json::{Value, json};

use crate::bad_request::BadRequest;
use crate::request::{Head, Request};
use crate::translate::Translation;

fn request(body: &Value) -> Request {
    let head = Head { id: "r1".to_owned(), ..Head::default() };
    Request::parse(Endpoint::Messages, Bytes::from(body.to_string()), head).unwrap()
}

fn translate(body: &Value) -> Result<Translation, BadRequest> {
    super::translate(&request(body))
}

/// Returns the chat request for a request with these fields besides the model.
fn chat(fields: Value) -> Value {
    let mut body = json!({ "model": "m", "max_tokens": 9, "messages": [] });
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let translation = translate(&body).unwrap();
    assert_eq!(translation.request.endpoint(), Endpoint::ChatCompletions);
    serde_json::from_slice(translation.request.body()).unwrap()
}

/// Returns the message for a completion.
fn message(request: Value, completion: &Value) -> Value {
    let mut translation = translate(&request).unwrap();
    let body = completion.to_string();
    for chunk in body.as_bytes().chunks(10) {
        assert!(translation.response.chunk(chunk).is_empty());
    }
    serde_json::from_slice(&translation.response.finish(true)).unwrap()
}

fn plain() -> Value {
    json!({ "model": "m", "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] })
}

#[test]
fn parameters_become_those_of_chat_completions() {
    let body = r#"{"model":"m","max_tokens":64,"temperature":0.50,"top_p":1,"top_k":4,
        "stop_sequences":["END"],"metadata":{"user_id":"u"},"stream":true,"service_tier":"auto",
        "thinking":{"type":"disabled"},"anything":{"else":1},
        "output_config":{"effort":"low","format":{"type":"json_schema","schema":{"b":1,"a":1.0}}},
        "messages":[{"role":"user","content":"hi"}]}"#;
    let request =
        Request::parse(Endpoint::Messages, Bytes::from(body.to_owned()), Head::default()).unwrap();
    let translation = super::translate(&request).unwrap();
    let chat = String::from_utf8(translation.request.body().to_vec()).unwrap();
    insta::assert_snapshot!(chat);
    assert!(translation.request.streaming());
    assert_eq!(translation.response.content_type(), "text/event-stream; charset=utf-8");
}

#[test]
fn conversations_have_the_order_of_chat_templates() {
    let chat = chat(json!({
        "system": [
            { "type": "text", "text": "x-anthropic-billing-header: cch=1;" },
            { "type": "text", "text": "be kind", "cache_control": { "type": "ephemeral" } },
            { "type": "text", "text": "be short" },
        ],
        "messages": [
            { "role": "user", "content": [
                { "type": "text", "text": "look" },
                { "type": "image", "source":
                    { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
                { "type": "image", "source": { "type": "url", "url": "https://x/y.png" } },
            ] },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": "s" },
                { "type": "redacted_thinking", "data": "x" },
                { "type": "text", "text": "wait" },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "b": 1.0, "a": [] } },
                { "type": "tool_use", "id": "t2", "name": "g", "input": {} },
            ] },
            { "role": "user", "content": [
                { "type": "text", "text": "and now?" },
                { "type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": "no" },
                { "type": "tool_result", "tool_use_id": "t1", "content": [
                    { "type": "text", "text": "one" },
                    { "type": "image", "source": { "type": "url", "url": "https://x/r.png" } },
                    { "type": "text", "text": "two" },
                ] },
            ] },
            { "role": "assistant", "content": [
                { "type": "tool_use", "id": "t3", "name": "f", "input": {} },
            ] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t3" }] },
            { "role": "user", "content": [
                { "type": "document", "title": "T", "source":
                    { "type": "text", "media_type": "text/plain", "data": "D" } },
                { "type": "text", "text": "sum up" },
            ] },
            { "role": "assistant", "content": "I" },
        ],
    }));
    let expected = json!([
        { "role": "system", "content": "be kind\nbe short" },
        { "role": "user", "content": [
            { "type": "text", "text": "look" },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
            { "type": "image_url", "image_url": { "url": "https://x/y.png" } },
        ] },
        { "role": "assistant", "content": "wait", "reasoning_content": "hm", "tool_calls": [
            { "id": "t1", "type": "function", "function":
                { "name": "f", "arguments": "{\"b\":1.0,\"a\":[]}" } },
            { "id": "t2", "type": "function", "function": { "name": "g", "arguments": "{}" } },
        ] },
        { "role": "tool", "content": "Error: no", "tool_call_id": "t2" },
        { "role": "tool", "content": "one\ntwo", "tool_call_id": "t1" },
        { "role": "user", "content": [
            { "type": "image_url", "image_url": { "url": "https://x/r.png" } },
            { "type": "text", "text": "and now?" },
        ] },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "t3", "type": "function", "function": { "name": "f", "arguments": "{}" } },
        ] },
        { "role": "tool", "content": "", "tool_call_id": "t3" },
        { "role": "user", "content": "T\nD\nsum up" },
        { "role": "assistant", "content": "I" },
    ]);
    assert_eq!(chat["messages"], expected);
}

#[test]
fn tools_become_functions() {
    let tools = json!([
        { "name": "f", "description": "d", "strict": true, "cache_control": {},
            "input_schema": { "type": "object", "properties": { "z": {}, "a": {} } } },
        { "type": "custom", "name": "g", "input_schema": { "type": "object" } },
    ]);
    let chat_with = |choice: Value| chat(json!({ "tools": tools, "tool_choice": choice }));
    let functions = json!([
        { "type": "function", "function": { "name": "f", "description": "d",
            "parameters": { "type": "object", "properties": { "z": {}, "a": {} } },
            "strict": true } },
        { "type": "function", "function":
            { "name": "g", "parameters": { "type": "object" } } },
    ]);
    for (choice, expected, is_parallel) in [
        (json!(null), json!(null), json!(null)),
        (json!({ "type": "auto" }), json!("auto"), json!(null)),
        (
            json!({ "type": "any", "disable_parallel_tool_use": true }),
            json!("required"),
            json!(false),
        ),
        (json!({ "type": "none" }), json!("none"), json!(null)),
        (
            json!({ "type": "tool", "name": "g", "disable_parallel_tool_use": false }),
            json!({ "type": "function", "function": { "name": "g" } }),
            json!(null),
        ),
    ] {
        let chat = chat_with(choice.clone());
        assert_eq!(chat["tools"], functions);
        assert_eq!(chat["tool_choice"], expected, "{choice}");
        assert_eq!(chat["parallel_tool_calls"], is_parallel, "{choice}");
    }
    let without = chat(json!({ "tools": [], "tool_choice": { "type": "auto" } }));
    assert!(without.get("tools").is_none() && without.get("tool_choice").is_none());
}

#[test]
fn what_chat_completions_cannot_express_is_refused() {
    let block = |block: Value| json!({ "messages": [{ "role": "user", "content": [block] }] });
    for (fields, name) in [
        (json!({ "tools": [{ "type": "web_search_20250305", "name": "web_search" }] }), "tools"),
        (json!({ "mcp_servers": [{ "url": "https://x" }] }), "mcp_servers"),
        (
            block(json!({ "type": "document", "source":
                { "type": "base64", "media_type": "application/pdf", "data": "AA" } })),
            "messages",
        ),
        (
            block(json!({ "type": "image", "source": { "type": "file", "file_id": "f" } })),
            "messages",
        ),
        (block(json!({ "type": "container_upload", "file_id": "f" })), "messages"),
    ] {
        let mut body = plain();
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        match translate(&body).map(|_| ()) {
            Err(BadRequest::Unsupported { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{fields}: {other:?}"),
        }
    }
    let choice = json!({ "model": "m", "messages": [], "tools": [{ "name": "f" }],
        "tool_choice": { "type": "tool" } });
    assert!(matches!(translate(&choice), Err(BadRequest::Invalid { name: "tool_choice", .. })));
}

#[test]
fn completions_become_messages() {
    let completion = json!({
        "id": "chatcmpl-1", "model": "served", "choices": [{ "index": 0,
            "message": { "role": "assistant", "reasoning_content": "hm", "content": "yes",
                "tool_calls": [
                    { "id": "c1", "type": "function", "function":
                        { "name": "f", "arguments": "{\"b\": 1, \"a\": 2}" } },
                    { "id": "c2", "type": "function", "function":
                        { "name": "g", "arguments": "{\"a\": " } },
                    { "id": "c3", "type": "function", "function": { "name": "h",
                        "arguments": "" } },
                ] },
            "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 3,
            "prompt_tokens_details": { "cached_tokens": 4 } },
    });
    let expected = json!({
        "id": "msg_r1", "type": "message", "role": "assistant", "model": "m",
        "content": [
            { "type": "thinking", "thinking": "hm", "signature": "" },
            { "type": "text", "text": "yes" },
            { "type": "tool_use", "id": "c1", "name": "f", "input": { "b": 1, "a": 2 } },
            { "type": "tool_use", "id": "c2", "name": "g",
                "input": { "INVALID_JSON": "{\"a\": " } },
            { "type": "tool_use", "id": "c3", "name": "h", "input": {} },
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": { "input_tokens": 6, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4, "output_tokens": 3 },
    });
    assert_eq!(message(plain(), &completion), expected);
    let mut without_thinking = plain();
    without_thinking["thinking"] = json!({ "type": "disabled" });
    assert_eq!(message(without_thinking, &completion)["content"][0]["type"], "text");
}

#[test]
fn stop_reasons_are_translated() {
    for (finish, engine_reason, reason, sequence) in [
        (json!("stop"), json!(null), "end_turn", json!(null)),
        (json!("stop"), json!(151_645), "end_turn", json!(null)),
        (json!("stop"), json!("END"), "stop_sequence", json!("END")),
        (json!("length"), json!(null), "max_tokens", json!(null)),
        (json!("content_filter"), json!(null), "refusal", json!(null)),
        (json!("tool_calls"), json!(null), "tool_use", json!(null)),
        (json!(null), json!(null), "end_turn", json!(null)),
        (json!("unheard-of"), json!(null), "end_turn", json!(null)),
    ] {
        let completion = json!({ "choices": [{ "message": { "content": "" },
            "finish_reason": finish, "stop_reason": engine_reason }] });
        let message = message(plain(), &completion);
        assert_eq!(
            (&message["stop_reason"], &message["stop_sequence"]),
            (&json!(reason), &sequence)
        );
        assert_eq!(message["content"], json!([]));
    }
}

#[test]
fn a_body_that_is_not_a_completion_becomes_an_error() {
    for body in ["", "{", "[]", r#"{"choices":[]}"#] {
        let mut translation = translate(&plain()).unwrap();
        translation.response.chunk(body.as_bytes());
        let error: Value = serde_json::from_slice(&translation.response.finish(true)).unwrap();
        assert_eq!(error["error"]["type"], "api_error", "{body}");
    }
    let mut translation = translate(&plain()).unwrap();
    translation.response.chunk(b"{");
    assert!(translation.response.finish(false).is_empty());
}

#[test]
fn conversations_that_the_server_should_keep_are_refused() {
    let messages = json!([{ "role": "user", "content": "hello" }]);
    for (thread, is_refused) in
        [(json!({ "type": "create" }), true), (json!({}), true), (Value::Null, false)]
    {
        let body = json!({ "model": "m", "max_tokens": 1, "messages": messages, "thread": thread });
        for endpoint in [Endpoint::Messages, Endpoint::CountTokens] {
            let body = body.to_string().into();
            let parsed = Request::parse(endpoint, body, Head::default());
            assert_eq!(matches!(parsed, Err(BadRequest::Thread)), is_refused, "{thread}");
        }
    }
}
