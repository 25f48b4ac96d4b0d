//! A response, taken into the next request, is what the engine has said.

use proptest::prelude::*;

use super::streams::{delta, events, stream};
use super::*;

/// A message of an assistant, as an engine sends it.
#[derive(Debug, Clone)]
struct Assistant {
    reasoning: String,
    text: String,
    calls: Vec<Value>,
}

fn assistant() -> impl Strategy<Value = Assistant> {
    let calls = proptest::collection::vec(("[a-z]{1,5}", "[ -~é\"\\\\]{0,8}", 0..100_u32), 0..4);
    ("[ -~é]{0,12}", "[ -~é\n]{0,12}", calls).prop_map(|(reasoning, text, calls)| {
        let calls = calls.into_iter().enumerate().map(|(index, (name, key, value))| {
            let mut input = serde_json::Map::new();
            input.insert(key, value.into());
            input.insert("z".to_owned(), json!(["}", { "a": null }]));
            json!({ "id": format!("call_{index}"), "type": "function", "function":
                { "name": name, "arguments": Value::Object(input).to_string() } })
        });
        Assistant { reasoning, text, calls: calls.collect() }
    })
}

impl Assistant {
    /// Returns the message of a completion, and of a chat request.
    fn message(&self) -> Value {
        let is_call_only = self.text.is_empty() && !self.calls.is_empty();
        let content = if is_call_only { Value::Null } else { self.text.as_str().into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.as_str().into();
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.clone().into();
        }
        message
    }

    /// Returns the chunks of the message: texts in two parts, and the calls one after the other, or
    /// mixed byte by byte.
    fn chunks(&self, is_mixed: bool) -> String {
        let mut chunks = vec![delta(json!({ "role": "assistant", "content": "" }))];
        for (key, text) in [("reasoning_content", &self.reasoning), ("content", &self.text)] {
            let middle = text.floor_char_boundary(text.len() / 2);
            for part in [&text[..middle], &text[middle..]] {
                chunks.push(delta(json!({ key: part })));
            }
        }
        let part = |index: usize, arguments: &str| {
            delta(json!({ "tool_calls": [{ "index": index, "function":
                { "arguments": arguments } }] }))
        };
        let arguments: Vec<Vec<char>> = self
            .calls
            .iter()
            .map(|call| call["function"]["arguments"].as_str().unwrap().chars().collect())
            .collect();
        for (index, call) in self.calls.iter().enumerate() {
            chunks.push(delta(json!({ "tool_calls": [{ "index": index, "id": call["id"],
                "function": { "name": call["function"]["name"], "arguments": "" } }] })));
            if !is_mixed {
                chunks.push(part(index, &arguments[index].iter().collect::<String>()));
            }
        }
        let longest = arguments.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..if is_mixed { longest } else { 0 } {
            for (index, arguments) in arguments.iter().enumerate() {
                chunks.extend(arguments.get(at).map(|c| part(index, &c.to_string())));
            }
        }
        chunks.push(json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 2 } }));
        stream(&chunks) + "data: [DONE]\n\n"
    }
}

/// Puts a stream of events together as Anthropic's libraries do, and checks their order.
fn collect(events: &str) -> Value {
    let mut message = Value::Null;
    let mut open: Option<usize> = None;
    let mut input = String::new();
    for event in events.split_terminator("\n\n") {
        let (kind, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(kind.strip_prefix("event: ").unwrap(), data["type"].as_str().unwrap());
        match data["type"].as_str().unwrap() {
            "message_start" => {
                assert!(message.is_null());
                message = data["message"].clone();
            }
            "content_block_start" => {
                assert_eq!(open, None);
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(data["index"], content.len());
                open = Some(content.len());
                content.push(data["content_block"].clone());
                input.clear();
            }
            "content_block_delta" => {
                assert_eq!(data["index"].as_u64().map(|index| index as usize), open);
                let block = &mut message["content"][open.unwrap()];
                let delta = &data["delta"];
                let (key, part) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", &delta["text"]),
                    "thinking_delta" => ("thinking", &delta["thinking"]),
                    "signature_delta" => ("signature", &delta["signature"]),
                    "input_json_delta" => {
                        input.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    kind => panic!("{kind}"),
                };
                let text = block[key].as_str().unwrap().to_owned() + part.as_str().unwrap();
                block[key] = text.into();
            }
            "content_block_stop" => {
                let block = &mut message["content"][open.take().unwrap()];
                if !input.is_empty() {
                    block["input"] = serde_json::from_str(&input).unwrap();
                }
            }
            "message_delta" => {
                assert_eq!(open, None);
                for key in ["stop_reason", "stop_sequence"] {
                    message[key] = data["delta"][key].clone();
                }
                message["usage"] = data["usage"].clone();
            }
            "message_stop" => message["is_stopped"] = true.into(),
            kind => panic!("{kind}"),
        }
    }
    assert_eq!(message["is_stopped"], true);
    message.as_object_mut().unwrap().remove("is_stopped");
    message
}

proptest! {
    #[test]
    fn responses_keep_their_meaning_in_the_next_request(said in assistant()) {
        let completion = json!({ "choices": [{ "message": said.message(),
            "finish_reason": "stop" }], "usage": { "prompt_tokens": 3, "completion_tokens": 2 } });
        let message = message(plain(), &completion);
        let turn = json!({ "role": "assistant", "content": message["content"] });
        let chat = chat(json!({ "messages": [turn] }));
        // Without any content, the message has an empty text.
        prop_assert_eq!(&chat["messages"][0], &said.message());
    }

    #[test]
    fn streams_have_the_content_of_bodies(
        said in assistant(),
        is_mixed: bool,
        size in 1..200_usize,
    ) {
        let completion = json!({ "choices": [{ "message": said.message(),
            "finish_reason": "stop" }], "usage": { "prompt_tokens": 3, "completion_tokens": 2 } });
        let mut request = plain();
        request["stream"] = true.into();
        let events = events(&request, &said.chunks(is_mixed), size, true);
        prop_assert_eq!(collect(&events), message(plain(), &completion));
    }

    #[test]
    fn arbitrary_chunks_never_panic(
        chunks in proptest::collection::vec(
            "(data: |\n|\\{|\\}|\"choices\":|\\[|\\]|1|,|\"a\"){0,9}",
            0..9,
        ),
        is_complete: bool,
    ) {
        let mut request = plain();
        request["stream"] = true.into();
        let events = events(&request, &chunks.concat(), 3, is_complete);
        let is_stopped = events.contains("message_stop");
        prop_assert!(is_complete || !is_stopped);
    }

    #[test]
    fn results_follow_their_calls(
        turns in proptest::collection::vec((assistant(), "[a-z]{0,4}", any::<bool>()), 1..5),
    ) {
        let mut messages = vec![json!({ "role": "user", "content": "go" })];
        for (said, text, is_reversed) in &turns {
            let completion = json!({ "choices": [{ "message": said.message() }] });
            let content = message(plain(), &completion)["content"].clone();
            messages.push(json!({ "role": "assistant", "content": content }));
            let mut content: Vec<Value> = said.calls.iter().map(|call| {
                json!({ "type": "tool_result", "tool_use_id": call["id"], "content": text })
            }).collect();
            content.push(json!({ "type": "text", "text": text }));
            if *is_reversed {
                content.reverse();
            }
            messages.push(json!({ "role": "user", "content": content }));
        }
        let chat = chat(json!({ "messages": messages }));
        let mut calls: Vec<Value> = Vec::new();
        for message in chat["messages"].as_array().unwrap() {
            if message["role"] == "tool" {
                let at = calls.iter().position(|id| *id == message["tool_call_id"]);
                calls.remove(at.expect("a result without a call before it"));
            } else {
                prop_assert!(calls.is_empty(), "a call without its result");
                let new = message["tool_calls"].as_array().into_iter().flatten();
                calls.extend(new.map(|call| call["id"].clone()));
            }
        }
        prop_assert!(calls.is_empty());
    }
}
