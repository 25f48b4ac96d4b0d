use std::fmt::Write as _;

use super::*;

fn stream_request() -> Value {
    let mut body = plain();
    body["stream"] = true.into();
    body
}

/// Returns the events for chunks, sent in pieces of `size` bytes.
pub(super) fn events(request: &Value, chunks: &str, size: usize, is_complete: bool) -> String {
    let mut response = translate(request).unwrap().response;
    let mut events = Vec::new();
    for piece in chunks.as_bytes().chunks(size) {
        events.extend_from_slice(&response.chunk(piece));
    }
    events.extend_from_slice(&response.finish(is_complete));
    String::from_utf8(events).unwrap()
}

/// Returns the text of a stream with these chunks.
pub(super) fn stream(chunks: &[Value]) -> String {
    let mut stream = String::new();
    for chunk in chunks {
        write!(stream, "data: {chunk}\n\n").unwrap();
    }
    stream
}

pub(super) fn delta(delta: Value) -> Value {
    json!({ "id": "c", "model": "served", "choices": [{ "index": 0, "delta": delta }] })
}

fn end(finish: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": finish }] })
}

fn kinds(events: &str) -> Vec<&str> {
    events.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// The chunks of vLLM, as captured, with a reasoning parser and tools.
fn chunks() -> String {
    let call = |index: u32, id: Option<&str>, name: Option<&str>, arguments: &str| {
        delta(json!({ "tool_calls": [{ "index": index, "id": id, "type": "function",
            "function": { "name": name, "arguments": arguments } }] }))
    };
    stream(&[
        delta(json!({ "role": "assistant", "content": "" })),
        delta(json!({ "reasoning": "let me" })),
        delta(json!({ "reasoning": " see" })),
        delta(json!({ "content": "I " })),
        delta(json!({ "content": "call" })),
        call(0, Some("c0"), Some("f"), ""),
        call(0, None, None, "{\"a\": "),
        call(1, Some("c1"), Some("g"), "{\"x"),
        call(0, None, None, "\"}\"}"),
        call(1, None, None, "\": 1}"),
        end("tool_calls"),
        json!({ "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 7,
            "prompt_tokens_details": { "cached_tokens": 4 } } }),
    ]) + "data: [DONE]\n\n"
}

#[test]
fn chunks_become_the_events_of_a_message() {
    let whole = events(&stream_request(), &chunks(), usize::MAX, true);
    insta::assert_snapshot!(whole);
    for size in [1, 2, 7, 100] {
        assert_eq!(events(&stream_request(), &chunks(), size, true), whole, "{size}");
    }
}

#[test]
fn a_captured_stream_becomes_a_message() {
    const CAPTURE: &str = concat!(
        r#"data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1795231981,"#,
        r#""model":"orchestrator","choices":[{"index":0,"#,
        r#""delta":{"role":"assistant","content":""},"#,
        r#""logprobs":null,"finish_reason":null}],"prompt_token_ids":null}"#,
        "\n\n",
        r#"data: {"id":"chatcmpl-9","choices":[{"index":0,"delta":{"content":"hi"},"#,
        r#""logprobs":null,"finish_reason":null,"token_ids":null}]}"#,
        "\n\n",
        r#"data: {"id":"chatcmpl-9","choices":[{"index":0,"delta":{"content":""},"#,
        r#""finish_reason":"length","stop_reason":null,"token_ids":null}]}"#,
        "\n\n",
        r#"data: {"id":"chatcmpl-9","choices":[],"usage":{"prompt_tokens":19,"total_tokens":24,"#,
        r#""completion_tokens":5},"system_fingerprint":"vllm-0.32.0-431c467d"}"#,
        "\n\ndata: [DONE]\n\n",
    );
    insta::assert_snapshot!(events(&stream_request(), CAPTURE, 5, true));
}

#[test]
fn broken_streams_do_not_look_complete() {
    let whole = chunks();
    for cut in [0, 1, whole.len() / 2, whole.len() - "data: [DONE]\n\n".len()] {
        let events = events(&stream_request(), &whole[..cut], 9, false);
        assert!(!kinds(&events).contains(&"message_stop"), "{cut}");
        assert!(!kinds(&events).contains(&"message_delta"), "{cut}");
    }
}

#[test]
fn a_stream_without_done_ends_with_the_body() {
    let chunks = stream(&[delta(json!({ "content": "a" })), end("stop")]);
    let events = events(&stream_request(), chunks.trim_end(), 3, true);
    let kinds = kinds(&events);
    assert_eq!(kinds.last(), Some(&"message_stop"));
    // Without a usage, each delta is at least one token.
    assert!(events.contains("\"output_tokens\":1}"), "{events}");
}

#[test]
fn errors_of_the_engine_end_the_stream() {
    let first = stream(&[delta(json!({ "content": "a" }))]);
    let error = r#"data: {"error":{"message":"dead","type":"server_error","code":503}}"#;
    let chunks = format!("{first}{error}\n\ndata: [DONE]\n\n");
    let failed = events(&stream_request(), &chunks, 4, false);
    assert_eq!(
        kinds(&failed),
        ["message_start", "content_block_start", "content_block_delta", "error"]
    );
    assert!(failed.contains("\"message\":\"dead\""), "{failed}");
    for chunks in ["data: {]\n\n", "", "{\"choices\":[]}"] {
        let failed = events(&stream_request(), chunks, 4, true);
        assert_eq!(kinds(&failed), ["error"], "{chunks}");
    }
}

#[test]
fn what_waits_is_limited() {
    let call = |index: u32, arguments: &str| {
        delta(json!({ "tool_calls": [{ "index": index, "id": format!("c{index}"),
            "function": { "name": "f", "arguments": arguments } }] }))
    };
    let part = "x".repeat(1 << 20);
    let mut chunks = vec![call(0, "{")];
    chunks.extend((0..9).map(|_| call(1, &part)));
    let failed = events(&stream_request(), &stream(&chunks), 1 << 16, true);
    assert_eq!(kinds(&failed).last(), Some(&"error"));
    let many: Vec<Value> = (0..1_001).map(|index| call(index, "{}")).collect();
    let failed = events(&stream_request(), &stream(&many), 1 << 16, true);
    assert_eq!(kinds(&failed).last(), Some(&"error"));
}
