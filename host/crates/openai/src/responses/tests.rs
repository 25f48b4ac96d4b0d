use bytes::Bytes;
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::convert::chat_body;
use super::events::EventBuffer;
use super::turn::{TurnRequest, referenced};
use crate::request::{Head, Request};
use crate::translate::Translation;

fn translation(body: &Value) -> Translation {
    let head = Head { response_id: Some("resp_ab".into()), ..Head::default() };
    let request = Request::parse(Endpoint::Responses, body.to_string().into(), head).unwrap();
    request.translated().unwrap().unwrap()
}

fn chat(body: Value) -> Value {
    Value::Object(chat_body(&body).unwrap())
}

#[test]
fn request_becomes_a_chat_request() {
    let body = json!({
        "model": "m", "instructions": "Be short.", "store": false, "metadata": { "a": "b" },
        "previous_response_id": null, "include": ["message.output_text.logprobs"],
        "max_output_tokens": 9, "temperature": 0.5, "top_logprobs": 2, "top_k": 4,
        "reasoning": { "effort": "low", "summary": "auto" }, "parallel_tool_calls": false,
        "text": { "format": {
            "type": "json_schema", "name": "x", "schema": { "type": "object" }, "strict": true,
        } },
        "tools": [
            { "type": "function", "name": "f", "parameters": { "type": "object" }, "strict": null },
            { "type": "function", "name": "g", "parameters": {} },
        ],
        "tool_choice": {
            "type": "allowed_tools", "mode": "required",
            "tools": [{ "type": "function", "name": "f" }],
        },
        "input": [
            { "role": "developer", "content": "Rules." },
            { "role": "user", "content": [
                { "type": "input_text", "text": "see" },
                { "type": "input_image", "image_url": "data:x", "detail": "low" },
            ] },
            { "type": "reasoning", "id": "rs_1", "summary": [],
              "content": [{ "type": "reasoning_text", "text": "hm" }] },
            { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{ "type": "output_text", "text": "ok", "annotations": [] }] },
            { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}" },
            { "type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c1", "output": "1" },
            { "type": "function_call_output", "call_id": "c2",
              "output": [{ "type": "input_text", "text": "2" }] },
            { "role": "user", "content": "go" },
        ],
    });
    let call = |id: &str| {
        let function = json!({ "name": "f", "arguments": "{}" });
        json!({ "id": id, "type": "function", "function": function })
    };
    let expected = json!({
        "model": "m", "temperature": 0.5, "top_k": 4, "parallel_tool_calls": false,
        "messages": [
            { "role": "system", "content": "Be short.\n\nRules." },
            { "role": "user", "content": [
                { "type": "text", "text": "see" },
                { "type": "image_url", "image_url": { "url": "data:x", "detail": "low" } },
            ] },
            { "role": "assistant", "reasoning_content": "hm", "content": "ok",
              "tool_calls": [call("c1"), call("c2")] },
            { "role": "tool", "tool_call_id": "c1", "content": "1" },
            { "role": "tool", "tool_call_id": "c2", "content": "2" },
            { "role": "user", "content": "go" },
        ],
        "max_completion_tokens": 9, "reasoning_effort": "low", "logprobs": true,
        "top_logprobs": 2,
        "response_format": { "type": "json_schema", "json_schema": {
            "name": "x", "schema": { "type": "object" }, "strict": true,
        } },
        "tools": [{ "type": "function", "function": {
            "name": "f", "parameters": { "type": "object" },
        } }],
        "tool_choice": "required",
    });
    assert_eq!(chat(body), expected);
}

#[test]
fn what_a_chat_request_cannot_express_is_refused() {
    let user = json!([{ "role": "user", "content": "x" }]);
    for (body, name) in [
        (json!({ "input": "x", "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "input": "x", "tools": [{ "type": "mcp", "server_label": "a" }] }), "tools"),
        (json!({ "input": "x", "tools": [{ "type": "custom", "name": "a" }] }), "tools"),
        (json!({ "input": "x", "tools": [{ "type": "function" }] }), "tools"),
        (json!({ "input": user, "prompt": { "id": "p" } }), "prompt"),
        (json!({ "input": [{ "type": "computer_call_output" }] }), "input"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input"),
        (json!({ "input": [{ "role": "critic", "content": "x" }] }), "input"),
        (
            json!({ "input": [{ "role": "user", "content": [
            { "type": "input_file", "file_data": "data:text/plain;base64,aGk=" },
        ] }] }),
            "input",
        ),
        (
            json!({ "input": [{ "role": "user", "content": [
            { "type": "input_image", "file_id": "f" },
        ] }] }),
            "input",
        ),
        (json!({}), "input"),
        (json!({ "input": 5 }), "input"),
    ] {
        let error = chat_body(&body).unwrap_err();
        assert_eq!(error.body().param.as_deref(), Some(name), "{body}");
    }
}

fn sse(chunks: &[Value]) -> String {
    let data = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
    data.chain(["data: [DONE]\n\n".to_owned()]).collect()
}

fn delta(delta: Value, finish: Option<&str>) -> Value {
    json!({ "created": 5, "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] })
}

fn events(stream: &[u8]) -> Vec<Value> {
    let mut buffer = EventBuffer::default();
    buffer.push(stream);
    let next = || buffer.next_event();
    std::iter::from_fn(next)
        .map(|event| serde_json::from_slice(&EventBuffer::data(&event)).unwrap())
        .collect()
}

fn kinds(events: &[Value]) -> Vec<String> {
    let kind = |event: &Value| {
        let kind = event["type"].as_str().unwrap().trim_start_matches("response.");
        match event.get("output_index") {
            Some(index) => format!("{kind} {index}"),
            None => kind.to_owned(),
        }
    };
    events.iter().map(kind).collect()
}

fn agent_stream() -> String {
    let call = |index: u64, id: Value, name: Value, arguments: &str| {
        json!({ "tool_calls": [{
            "index": index, "id": id, "function": { "name": name, "arguments": arguments },
        }] })
    };
    sse(&[
        delta(json!({ "role": "assistant", "content": "" }), None),
        delta(json!({ "reasoning_content": "hm" }), None),
        delta(json!({ "content": "Let " }), None),
        delta(json!({ "content": "me" }), None),
        delta(call(0, json!("c1"), json!("f"), ""), None),
        delta(call(0, Value::Null, Value::Null, "{\"a\":1}"), None),
        delta(call(1, json!("c2"), json!("g"), "{}"), None),
        delta(json!({}), Some("tool_calls")),
        json!({ "choices": [], "usage": {
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": { "cached_tokens": 2 },
        } }),
    ])
}

#[test]
fn stream_has_all_events_in_order() {
    let stream = agent_stream();
    let whole = {
        let body = json!({ "model": "m", "input": "x", "stream": true });
        let mut response = translation(&body).response;
        let begin = response.chunk(stream.as_bytes());
        [begin, response.finish(true)].concat()
    };
    let seen = events(&whole);
    let expected = [
        "created",
        "in_progress",
        "output_item.added 0",
        "content_part.added 0",
        "reasoning_text.delta 0",
        "reasoning_text.done 0",
        "content_part.done 0",
        "output_item.done 0",
        "output_item.added 1",
        "content_part.added 1",
        "output_text.delta 1",
        "output_text.delta 1",
        "output_text.done 1",
        "content_part.done 1",
        "output_item.done 1",
        "output_item.added 2",
        "function_call_arguments.delta 2",
        "function_call_arguments.done 2",
        "output_item.done 2",
        "output_item.added 3",
        "function_call_arguments.delta 3",
        "function_call_arguments.done 3",
        "output_item.done 3",
        "completed",
    ];
    assert_eq!(kinds(&seen), expected);
    let numbers: Vec<_> = seen.iter().map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..seen.len() as u64).map(Some).collect::<Vec<_>>());
    let response = &seen.last().unwrap()["response"];
    assert_eq!(response["id"], "resp_ab");
    assert_eq!((&response["status"], &response["created_at"]), (&json!("completed"), &json!(5)));
    assert_eq!(response["output"][1]["content"][0]["text"], "Let me");
    assert_eq!(response["output"][2]["arguments"], "{\"a\":1}");
    assert_eq!(response["output"][3]["call_id"], "c2");
    assert_eq!(response["usage"]["input_tokens_details"]["cached_tokens"], 2);
    assert_eq!(response["usage"]["total_tokens"], 7);
    // Wherever the network cuts the stream.
    for size in [1, 2, 3, 7, 50] {
        let body = json!({ "model": "m", "input": "x", "stream": true });
        let mut response = translation(&body).response;
        let chunks = stream.as_bytes().chunks(size).map(|chunk| response.chunk(chunk));
        let written: Vec<Bytes> = chunks.collect();
        assert_eq!(written.concat(), whole, "{size}");
    }
}

#[test]
fn limit_makes_a_response_incomplete() {
    let stream = sse(&[delta(json!({ "content": "Le" }), Some("length"))]);
    let body = json!({ "model": "m", "input": "x", "stream": true });
    let seen = events(&translation(&body).response.chunk(stream.as_bytes()));
    let last = &seen.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[test]
fn broken_stream_has_no_end() {
    let stream = format!("data: {}\n\n", delta(json!({ "content": "Le" }), None));
    let body = json!({ "model": "m", "input": "x", "stream": true });
    let mut response = translation(&body).response;
    let begin = response.chunk(stream.as_bytes());
    let seen = events(&[begin, response.finish(false)].concat());
    assert_eq!(seen.last().unwrap()["type"], "response.output_text.delta");
    let error = "data: {\"error\":{\"message\":\"lost\"}}\n\n";
    let mut response = translation(&body).response;
    let seen = events(&response.chunk([&stream, error].concat().as_bytes()));
    let last = seen.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["error"]["message"], "lost");
    assert!(response.finish(true).is_empty());
}

#[test]
fn event_that_is_not_json_fails_the_response() {
    let begin = format!("data: {}\n\n", delta(json!({ "content": "he" }), None));
    for rest in ["data: {\"choices\":[{\n\ndata: [DONE]\n\n", "data: {\"choices\":"] {
        let body = json!({ "model": "m", "input": "hi", "stream": true });
        let mut response = translation(&body).response;
        let mut seen = response.chunk(format!("{begin}{rest}").as_bytes()).to_vec();
        seen.extend(response.finish(true));
        let kinds = kinds(&events(&seen));
        assert_eq!(kinds.last().map(String::as_str), Some("failed"), "{rest}");
        assert!(!kinds.iter().any(|kind| kind == "completed"), "{kinds:?}");
    }
}

#[test]
fn completion_becomes_a_response() {
    let completion = json!({
        "id": "c", "created": 7, "choices": [{ "index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "hi", "reasoning": "hm", "tool_calls": [],
        } }], "usage": { "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3 },
    });
    let body = json!({ "model": "m", "input": "x", "temperature": 0.25, "user": "u" });
    let mut translation = translation(&body);
    assert_eq!(translation.request.endpoint(), Endpoint::ChatCompletions);
    assert!(translation.request.contains("x", false));
    assert!(translation.response.chunk(completion.to_string().as_bytes()).is_empty());
    let response: Value = serde_json::from_slice(&translation.response.finish(true)).unwrap();
    assert_eq!(response["output"][0]["type"], "reasoning");
    assert_eq!(response["output"][1]["content"][0]["text"], "hi");
    assert_eq!(response["status"], "completed");
    assert_eq!((&response["temperature"], &response["user"]), (&json!(0.25), &json!("u")));
    for field in [
        "error",
        "incomplete_details",
        "instructions",
        "metadata",
        "parallel_tool_calls",
        "tool_choice",
        "tools",
        "top_p",
    ] {
        assert!(response.get(field).is_some(), "{field}");
    }
}

#[test]
fn edits_of_policies_are_translated() {
    let body = r#"{"model":"m","input":"x","instructions":"Old.","max_output_tokens":90}"#;
    let parse = |body: &'static str| {
        Request::parse(Endpoint::Responses, body.into(), Head::default()).unwrap()
    };
    let edits = [Edit::PrependSystem("New.".into()), Edit::CapOutputTokens(9)];
    let (edited, dropped) = parse(body).apply(&edits);
    assert!(dropped.is_empty());
    let chat: Value =
        serde_json::from_slice(edited.translated().unwrap().unwrap().request.body()).unwrap();
    assert_eq!(chat["messages"][0], json!({ "role": "system", "content": "New.\n\nOld." }));
    assert_eq!(chat["max_completion_tokens"], 9);
    let bare = r#"{"model":"m","input":"x","max_tokens":500,"n":3}"#;
    let (edited, _) = parse(bare).apply(&edits);
    let chat: Value =
        serde_json::from_slice(edited.translated().unwrap().unwrap().request.body()).unwrap();
    assert_eq!(chat["messages"][0]["content"], "New.");
    assert_eq!((&chat["max_completion_tokens"], chat.get("max_tokens")), (&json!(9), None));
    assert_eq!(chat.get("n"), None);
}

proptest! {
    /// What a model says comes back to it as the same message in the next turn.
    #[test]
    fn output_is_the_message_again_as_input(
        reasoning in prop::option::of("[a-z]{1,9}"),
        content in prop::option::of("\\PC{1,20}"),
        calls in prop::collection::vec(("[a-z]{1,5}", "[a-z]{0,5}"), 0..4),
    ) {
        let mut message = json!({ "role": "assistant", "content": content });
        if let Some(reasoning) = &reasoning {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        let calls = calls.iter().enumerate().map(|(at, (name, value))| json!({
            "id": format!("c{at}"), "type": "function",
            "function": { "name": name, "arguments": json!({ "v": value }).to_string() },
        }));
        let calls: Vec<Value> = calls.collect();
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let completion = json!({ "choices": [{ "message": message, "finish_reason": "stop" }] });
        let mut response = translation(&json!({ "model": "m", "input": "x" })).response;
        response.chunk(completion.to_string().as_bytes());
        let response: Value = serde_json::from_slice(&response.finish(true)).unwrap();
        let mut input = vec![json!({ "role": "user", "content": "x" })];
        input.extend(response["output"].as_array().unwrap().iter().cloned());
        let chat = chat(json!({ "model": "m", "input": input }));
        let again = chat["messages"].get(1).cloned();
        let is_empty = message.as_object().unwrap().len() == 2 && content.is_none();
        prop_assert_eq!(again, (!is_empty).then_some(message));
    }
}

#[test]
fn body_keeps_the_bytes_of_other_fields() {
    let body = r#" {"model":"m","x":1.50,"store":true,"input":"hi" ,"store":false,"n":1E5} "#;
    let mut turn = TurnRequest::read(body.as_bytes()).unwrap();
    assert_eq!(turn.flag("store").unwrap(), Some(false));
    turn.set("store", &false);
    turn.remove("input");
    turn.set("input", &turn.items().unwrap());
    let written = String::from_utf8(turn.write()).unwrap();
    assert_eq!(written, r#"{"model":"m","x":1.50,"store":false,"n":1E5,"input":[]}"#);
    assert!(TurnRequest::read(b"[]").is_none() && TurnRequest::read(b"{} x").is_none());
    let item = |json: &str| serde_json::value::RawValue::from_string(json.to_owned()).unwrap();
    for (json, id) in [
        (r#"{"type":"item_reference","id":"a"}"#, Some("a")),
        (r#"{"id":"a"}"#, Some("a")),
        (r#"{"id":"a","role":"user"}"#, None),
        (r#"{"type":"message","id":"a"}"#, None),
        (r#""a""#, None),
    ] {
        assert_eq!(referenced(&item(json)).as_deref(), id, "{json}");
    }
}
