use bytes::Bytes;
use pointsman_domain::{Edit, Endpoint, RequestView as _};
use serde_json::{Value, json};

use super::LoadRequest;
use crate::request::{Head, Request};
use crate::translate::Translation;

fn parse(endpoint: Endpoint, body: &Value) -> Request {
    Request::parse(endpoint, body.to_string().into(), Head::default()).unwrap()
}

fn translated(endpoint: Endpoint, body: &Value) -> Translation {
    parse(endpoint, body).translated().unwrap().unwrap()
}

fn sent(endpoint: Endpoint, body: &Value) -> Value {
    serde_json::from_slice(translated(endpoint, body).request.body()).unwrap()
}

/// Returns the lines that the client gets for a response in pieces of `size`.
fn lines(translation: Translation, engine: &str, size: usize, is_complete: bool) -> Vec<Value> {
    let mut response = translation.response;
    let mut out = Vec::new();
    for chunk in engine.as_bytes().chunks(size) {
        out.extend_from_slice(&response.chunk(chunk));
    }
    out.extend_from_slice(&response.finish(is_complete));
    assert!(out.is_empty() || out.ends_with(b"\n"));
    let text = String::from_utf8(out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn chat_requests_are_translated() {
    let body = json!({
        "model": "m",
        "messages": [
            { "role": "system", "content": "brief" },
            { "role": "user", "content": "what?", "images": ["/9j/AA", "iVBOR"] },
            { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                { "function": { "name": "f", "arguments": { "b": 1, "a": [2.5] } } },
                { "function": { "name": "g", "arguments": {} } } ] },
            { "role": "tool", "content": "G", "tool_name": "g" },
            { "role": "tool", "content": "F" },
        ],
        "tools": [{ "type": "function", "function": { "name": "f" } }],
        "format": { "type": "object", "properties": { "z": {}, "a": {} } },
        "options": { "temperature": 0, "num_predict": 7, "num_ctx": 4096, "seed": 5,
            "stop": ["x"], "top_k": 3, "repeat_penalty": 1.5 },
        "think": false, "keep_alive": "5m", "max_tokens": 9,
    });
    let expected = json!({
        "model": "m",
        "messages": [
            { "role": "system", "content": "brief" },
            { "role": "user", "content": [
                { "type": "text", "text": "what?" },
                { "type": "image_url", "image_url": { "url": "data:image/jpeg;base64,/9j/AA" } },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBOR" } } ] },
            { "role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
                { "id": "call_0", "type": "function",
                    "function": { "name": "f", "arguments": "{\"b\":1,\"a\":[2.5]}" } },
                { "id": "call_1", "type": "function",
                    "function": { "name": "g", "arguments": "{}" } } ] },
            { "role": "tool", "content": "G", "tool_call_id": "call_1" },
            { "role": "tool", "content": "F", "tool_call_id": "call_0" },
        ],
        "tools": [{ "type": "function", "function": { "name": "f" } }],
        "stream": true,
        "temperature": 0, "seed": 5, "stop": ["x"], "top_k": 3,
        "repetition_penalty": 1.5, "repeat_penalty": 1.5, "max_tokens": 7,
        "response_format": { "type": "json_schema", "json_schema": { "name": "response",
            "schema": { "type": "object", "properties": { "z": {}, "a": {} } }, "strict": true } },
        "chat_template_kwargs": { "enable_thinking": false },
    });
    let sent = sent(Endpoint::OllamaChat, &body);
    assert_eq!(sent, expected);
    // The order of a schema's properties is that of the answer.
    assert!(sent.to_string().contains(r#""properties":{"z":{},"a":{}}"#));
}

#[test]
fn prompts_are_translated() {
    let stream = |more: Value| {
        let mut body = json!({ "model": "m", "prompt": "hi", "stream": false });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let Translation { request, .. } = translated(Endpoint::OllamaGenerate, &body);
        (request.endpoint(), serde_json::from_slice::<Value>(request.body()).unwrap())
    };
    let (endpoint, sent) = stream(json!({ "system": "s", "format": "json", "context": [1] }));
    assert_eq!(endpoint, Endpoint::ChatCompletions);
    assert_eq!(
        sent,
        json!({ "model": "m", "messages": [{ "role": "system", "content": "s" },
            { "role": "user", "content": "hi" }], "stream": false,
            "response_format": { "type": "json_object" } })
    );
    let (endpoint, sent) = stream(json!({ "raw": true, "options": { "num_predict": -1 } }));
    assert_eq!(endpoint, Endpoint::Completions);
    assert_eq!(sent, json!({ "model": "m", "prompt": "hi", "stream": false }));
    let (_, sent) = stream(json!({ "suffix": "end" }));
    assert_eq!(sent["suffix"], "end");
    let embed = json!({ "model": "m", "input": ["a", "b"], "truncate": true });
    assert_eq!(
        self::sent(Endpoint::OllamaEmbed, &embed),
        json!({ "model": "m", "input": ["a", "b"], "encoding_format": "float" })
    );
    let embeddings = json!({ "model": "m", "prompt": "a" });
    assert_eq!(self::sent(Endpoint::OllamaEmbeddings, &embeddings)["input"], "a");
}

#[test]
fn invalid_fields_are_rejected() {
    let chat = |more: Value| {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(Endpoint::OllamaChat, &body).translated().is_err()
    };
    assert!(!chat(json!({ "format": "" })));
    assert!(chat(json!({ "format": "xml" })));
    assert!(chat(json!({ "messages": [{ "role": "user", "images": [5] }] })));
}

#[test]
fn policies_see_requests_as_they_are() {
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x",
        "images": ["a"] }], "options": { "num_predict": 50 }, "format": "json" });
    let info = parse(Endpoint::OllamaChat, &body).info();
    assert!(info.streaming && info.has_media && info.has_grammar);
    assert_eq!((info.max_output_tokens, info.messages), (50, 1));
    let body = json!({ "model": "m", "prompt": "x", "images": ["a"], "stream": false });
    let info = parse(Endpoint::OllamaGenerate, &body).info();
    assert!(!info.streaming && info.has_media && !info.has_grammar);
    assert_eq!(info.max_output_tokens, 0);
}

#[test]
fn caps_limit_the_output() {
    let prompt = |more: Value| {
        let mut body = json!({ "model": "m", "prompt": "x" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(Endpoint::OllamaGenerate, &body)
    };
    for (more, expected) in [
        (json!({}), 10),
        (json!({ "options": { "num_predict": 5 } }), 5),
        (json!({ "options": { "num_predict": -1 } }), 10),
        (json!({ "options": { "num_predict": 50, "seed": 1 } }), 10),
        (json!({ "options": null }), 10),
        (json!({ "options": [] }), 10),
    ] {
        let (edited, dropped) = prompt(more.clone()).apply(&[Edit::CapOutputTokens(10)]);
        assert!(dropped.is_empty(), "{more}");
        assert_eq!(edited.info().max_output_tokens, expected, "{more}");
        let sent = edited.translated().unwrap().unwrap().request;
        assert_eq!(sent.info().max_output_tokens, expected, "{more}");
        // An engine that has the endpoint reads it too.
        let body: Value = serde_json::from_slice(edited.body()).unwrap();
        assert_eq!(body["options"]["num_predict"], expected, "{more}");
    }
    let edit = Edit::SetField("/max_tokens".to_owned(), "3".to_owned());
    let (edited, _) = prompt(json!({ "options": { "num_predict": 5 } })).apply(&[edit]);
    assert_eq!(edited.translated().unwrap().unwrap().request.info().max_output_tokens, 3);
    let (edited, dropped) =
        prompt(json!({ "stream": false })).apply(&[Edit::RemoveField("/stream".to_owned())]);
    assert!(!edited.streaming() && dropped.len() == 1);
}

const STREAM: &str = concat!(
    ": comment\n\ndata: null\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}]}\r\n\r\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hé\"}}],\"usage\":null}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c\",",
    "\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\"\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,",
    "\"function\":{\"arguments\":\":1}\"}}]},\"finish_reason\":\"tool_calls\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n",
);

fn chat_stream() -> Translation {
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }] });
    translated(Endpoint::OllamaChat, &body)
}

#[test]
fn streams_become_lines() {
    for size in [1, 7, 10_000] {
        let stream = format!("{STREAM}data: [DONE]\n\n");
        let lines = lines(chat_stream(), &stream, size, true);
        let messages: Vec<&Value> = lines.iter().map(|line| &line["message"]).collect();
        assert_eq!(
            messages,
            [
                &json!({ "role": "assistant", "content": "", "thinking": "hm" }),
                &json!({ "role": "assistant", "content": "Hé" }),
                &json!({ "role": "assistant", "content": "", "tool_calls": [{
                    "function": { "name": "f", "arguments": { "a": 1 } } }] }),
                &json!({ "role": "assistant", "content": "" }),
            ]
        );
        let done: Vec<bool> = lines.iter().map(|line| line["done"].as_bool().unwrap()).collect();
        assert_eq!(done, [false, false, false, true]);
        let last = lines.last().unwrap();
        assert_eq!((&last["model"], &last["done_reason"]), (&json!("m"), &json!("stop")));
        assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(7), &json!(3)));
        for name in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
            assert!(last[name].is_u64(), "{name}");
        }
    }
}

#[test]
fn stream_that_breaks_off_has_no_last_line() {
    for size in [1, 10_000] {
        let broken = lines(chat_stream(), STREAM, size, false);
        assert!(!broken.is_empty() && broken.iter().all(|line| line["done"] == false));
    }
    // The engine's own error is the last line, and nothing follows.
    let failed = format!("{STREAM}data: {{\"error\":{{\"message\":\"no memory\"}}}}\n\n");
    let lines = lines(chat_stream(), &failed, 5, false);
    assert_eq!(lines.last().unwrap(), &json!({ "error": "no memory" }));
    assert!(lines.iter().all(|line| line["done"] != true));
}

#[test]
fn whole_responses_are_one_line() {
    let engine = json!({ "choices": [{ "index": 0, "message": { "role": "assistant",
        "content": "hi", "reasoning": "hm" }, "finish_reason": "length" }],
        "usage": { "prompt_tokens": 7, "completion_tokens": 3 },
        "timings": { "prompt_ms": 1.5, "predicted_ms": 2.0 } });
    let body = json!({ "model": "m", "prompt": "x", "stream": false });
    let lines = lines(translated(Endpoint::OllamaGenerate, &body), &engine.to_string(), 9, true);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&line["response"], &line["thinking"]), (&json!("hi"), &json!("hm")));
    assert_eq!((&line["done"], &line["done_reason"]), (&json!(true), &json!("length")));
    assert_eq!(line["prompt_eval_duration"], 1_500_000);
    assert_eq!(line["eval_duration"], 2_000_000);
    let invalid = self::lines(translated(Endpoint::OllamaGenerate, &body), "{\"a\"", 9, true);
    assert!(invalid[0]["error"].is_string() && invalid.len() == 1);
}

#[test]
fn responses_are_limited() {
    let large =
        format!("data: {{\"choices\":[],\"x\":\"{}", "y".repeat(super::MAX_OLLAMA_RESPONSE));
    let call = |index| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{{\"index\":{index}}}]}}}}]}}\n"
        )
    };
    let calls: String = (0..2000).map(call).collect();
    for engine in [large, calls] {
        let lines = lines(chat_stream(), &format!("{engine}\ndata: [DONE]\n"), 1 << 20, true);
        assert!(lines.len() == 1 && lines[0]["error"].is_string(), "{lines:?}");
    }
}

#[test]
fn embeddings_keep_their_digits() {
    let engine = br#"{"data":[{"embedding":[0.10,-2e-3],"index":0},{"embedding":[1]}],
        "usage":{"prompt_tokens":4}}"#;
    let respond = |endpoint, body: &Value| {
        let mut response = translated(endpoint, body).response;
        assert_eq!(response.chunk(engine), Bytes::new());
        String::from_utf8(response.finish(true).to_vec()).unwrap()
    };
    let several = respond(Endpoint::OllamaEmbed, &json!({ "model": "m", "input": ["a", "b"] }));
    assert!(several.contains(r#""embeddings":[[0.10,-2e-3],[1]]"#), "{several}");
    assert_eq!(serde_json::from_str::<Value>(&several).unwrap()["prompt_eval_count"], 4);
    let one = respond(Endpoint::OllamaEmbeddings, &json!({ "model": "m", "prompt": "a" }));
    assert_eq!(one, r#"{"embedding":[0.10,-2e-3]}"#);
}

#[test]
fn requests_without_a_prompt_load_or_unload() {
    for (endpoint, body, reason) in [
        (Endpoint::OllamaChat, json!({ "model": "m" }), Some("load")),
        (Endpoint::OllamaChat, json!({ "model": "m", "messages": [] }), Some("load")),
        (Endpoint::OllamaGenerate, json!({ "model": "m", "keep_alive": 0 }), Some("unload")),
        (Endpoint::OllamaGenerate, json!({ "model": "m", "keep_alive": "0s" }), Some("unload")),
        (Endpoint::OllamaGenerate, json!({ "model": "m", "keep_alive": -1 }), Some("load")),
        (Endpoint::OllamaGenerate, json!({ "model": "m", "prompt": "", "images": ["a"] }), None),
        (Endpoint::OllamaGenerate, json!({ "model": "m", "prompt": "x" }), None),
        (Endpoint::Completions, json!({ "model": "m", "prompt": "" }), None),
    ] {
        let load = LoadRequest::from_request(&parse(endpoint, &body));
        let answer = load.map(|load| serde_json::from_str::<Value>(&load.to_json()).unwrap());
        let found = answer.as_ref().map(|answer| answer["done_reason"].as_str().unwrap());
        assert_eq!(found, reason, "{body}");
    }
}
