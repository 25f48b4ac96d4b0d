use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{Endpoint, LaneAdvice, LaneState, Scalar};
use serde_json::{Value, json};

use super::*;

fn redact(config: &str) -> Redact {
    Redact::configure(config).unwrap()
}

/// Creates a host with a public lane and a private one.
fn host() -> FakeHost {
    let mut fleet = FakeFleet::new(&["cloud", "home"]);
    fleet.lane_mut("home").labels.push(("private".into(), "true".into()));
    FakeHost::new(fleet)
}

fn chat(messages: &Value) -> FakeRequest {
    FakeRequest::chat(&json!({"model": "auto", "messages": messages}).to_string())
}

fn user_message(text: &str) -> FakeRequest {
    chat(&json!([{"role": "user", "content": text}]))
}

/// Returns the edits and the reason.
fn edits(policy: &Redact, request: &FakeRequest) -> (Vec<(String, Value)>, String) {
    let advice = host().advise(policy, request).unwrap();
    assert!(advice.reject.is_none(), "{advice:?}");
    let edit = |edit: &Edit| match edit {
        Edit::SetField((pointer, json)) => (pointer.clone(), serde_json::from_str(json).unwrap()),
        other => panic!("{other:?}"),
    };
    let reason = match advice.notes.first().map(|note| &note.value) {
        Some(Scalar::Text(reason)) => reason.clone(),
        _ => String::new(),
    };
    (advice.edits.iter().map(edit).collect(), reason)
}

#[test]
fn matches_are_masked_and_other_content_is_unchanged() {
    let request = chat(&json!([
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "I am jane@example.org"},
                                     {"type": "image_url",
                    "image_url": {"url": "https://x/jane@example.org"}}]},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "1", "function": {"name": "call", "arguments": "{\"to\": \"+49 30 \
          1234567\"}"}}]},
    ]));
    let (edits, reason) = edits(&redact("{}"), &request);
    assert_eq!(reason, "masked: 1 email, 1 phone");
    let [(pointer, messages)] = &edits[..] else { panic!("{edits:?}") };
    assert_eq!(pointer, "/messages");
    assert_eq!(messages[0], json!({"role": "system", "content": "be kind"}));
    assert_eq!(messages[1]["content"][0]["text"], "I am [email]");
    assert_eq!(messages[1]["content"][1]["image_url"]["url"], "https://x/jane@example.org");
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], "{\"to\": \"[phone]\"}");
}

#[test]
fn prompt_without_matches_gets_no_advice() {
    assert_eq!(
        host().advise(&redact("{}"), &user_message("what is 2 + 2?")).unwrap(),
        Advice::any()
    );
}

#[test]
fn prompts_of_all_endpoints_are_scanned() {
    for (endpoint, body, pointer) in [
        (Endpoint::Completions, json!({"model": "auto", "prompt": "mail a@b.de"}), "/prompt"),
        (
            Endpoint::Completions,
            json!({"model": "auto", "prompt": ["none", "mail a@b.de"]}),
            "/prompt",
        ),
        (Endpoint::Embeddings, json!({"model": "auto", "input": ["a@b.de"]}), "/input"),
        (
            Endpoint::Responses,
            json!({"model": "auto", "input": [{"role": "user", "content": "a@b.de"}]}),
            "/input",
        ),
        (
            Endpoint::Responses,
            json!({"model": "auto", "input": "x", "instructions": "tell a@b.de"}),
            "/instructions",
        ),
    ] {
        let (edits, _) =
            edits(&redact("{}"), &FakeRequest::for_endpoint(endpoint, &body.to_string()));
        let [(got, value)] = &edits[..] else { panic!("{edits:?}") };
        assert!(got == pointer && value.to_string().contains("[email]"), "{body}: {edits:?}");
    }
}

/// Asserts that the address in each body is masked, at the field that the pointer names.
fn assert_masked(rows: &[(&str, serde_json::Value, &str)]) {
    for (kind, body, pointer) in rows {
        let request = FakeRequest::for_endpoint(Endpoint::Other, &body.to_string());
        let (edits, _) = edits(&redact("{}"), &request.with_endpoint_kind(kind));
        let [(got, value)] = &edits[..] else { panic!("{body}: {edits:?}") };
        let value = value.to_string();
        assert!(got == pointer && value.contains("[email]") && !value.contains('@'), "{body}");
    }
}

/// Every field of which an engine reads text, at the endpoints for conversations.
#[test]
fn texts_of_conversations_are_scanned() {
    let user = json!([{"role": "user", "content": "hi"}]);
    assert_masked(&[
        ("messages", json!({"system": "a@b.de", "messages": user}), "/system"),
        ("messages", json!({"system": [{"type": "text", "text": "a@b.de"}]}), "/system"),
        (
            "messages",
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result",
                "tool_use_id": "t", "content": [{"type": "text", "text": "a@b.de"}]}]}]}),
            "/messages",
        ),
        (
            "messages",
            json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t",
                "input": {"to": {"id": "a@b.de"}}}]}]}),
            "/messages",
        ),
        (
            "messages",
            json!({"messages": [{"role": "assistant", "content": [{"type": "thinking",
                "thinking": "a@b.de", "signature": "x"}]}]}),
            "/messages",
        ),
        (
            "messages",
            json!({"messages": [{"role": "user", "content": [{"type": "document",
                "source": {"type": "text", "data": "a@b.de"}}]}]}),
            "/messages",
        ),
        ("messages", json!({"tools": [{"name": "f", "description": "a@b.de"}]}), "/tools"),
        ("chat-completions", json!({"messages": [{"role": "a@b.de"}]}), "/messages"),
        ("chat-completions", json!({"documents": [{"text": "a@b.de"}]}), "/documents"),
        ("chat-completions", json!({"chat_template": "a@b.de"}), "/chat_template"),
        (
            "chat-completions",
            json!({"chat_template_kwargs": {"a@b.de": 1}}),
            "/chat_template_kwargs",
        ),
        (
            "chat-completions",
            json!({"response_format": {"json_schema": {"description": "a@b.de"}}}),
            "/response_format",
        ),
        ("responses", json!({"prompt": {"id": "p", "variables": {"name": "a@b.de"}}}), "/prompt"),
        (
            "responses",
            json!({"input": [{"type": "function_call_output", "output": "a@b.de"}]}),
            "/input",
        ),
    ]);
}

/// The same at the other endpoints.
#[test]
fn texts_of_other_endpoints_are_scanned() {
    assert_masked(&[
        ("embeddings", json!({"messages": [{"role": "user", "content": "a@b.de"}]}), "/messages"),
        ("rerank", json!({"query": "a@b.de"}), "/query"),
        ("rerank", json!({"documents": [{"text": "a@b.de"}]}), "/documents"),
        ("rerank", json!({"texts": ["a@b.de"]}), "/texts"),
        ("score", json!({"text_1": "a@b.de"}), "/text_1"),
        ("score", json!({"text_2": ["a@b.de"]}), "/text_2"),
        ("score", json!({"queries": ["a@b.de"]}), "/queries"),
        ("score", json!({"data_1": {"content": [{"text": "a@b.de"}]}}), "/data_1"),
        ("score", json!({"data_2": "a@b.de"}), "/data_2"),
        ("pooling", json!({"data": {"a": "a@b.de"}}), "/data"),
        ("tokenize", json!({"content": "a@b.de"}), "/content"),
        ("image-generations", json!({"prompt": "a@b.de"}), "/prompt"),
        ("speech", json!({"instructions": "a@b.de"}), "/instructions"),
        ("llama-completion", json!({"prompt": {"prompt_string": "a@b.de"}}), "/prompt"),
        ("llama-infill", json!({"input_prefix": "a@b.de"}), "/input_prefix"),
        ("llama-infill", json!({"input_suffix": "a@b.de"}), "/input_suffix"),
        ("llama-infill", json!({"input_extra": [{"text": "a@b.de"}]}), "/input_extra"),
        (
            "ollama-chat",
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function":
                {"name": "f", "arguments": {"image_url": "a@b.de"}}}]}]}),
            "/messages",
        ),
        ("ollama-generate", json!({"template": "a@b.de"}), "/template"),
        ("ollama-generate", json!({"system": "a@b.de", "images": ["aGk="]}), "/system"),
    ]);
}

#[test]
fn files_and_token_ids_are_unreadable() {
    for (kind, body) in [
        ("transcriptions", json!({})),
        ("translations", json!({})),
        ("image-edits", json!({})),
        ("image-variations", json!({})),
        ("completions", json!({"prompt": [1, 2]})),
        ("embeddings", json!({"input": [[1, 2], [3]]})),
        ("llama-completion", json!({"prompt": ["text", 7, "text"]})),
        ("ollama-generate", json!({"prompt": "hi", "context": [1, 2]})),
    ] {
        let mut body = body;
        body["model"] = json!("auto");
        let request = FakeRequest::for_endpoint(Endpoint::Other, &body.to_string());
        let request = request.with_endpoint_kind(kind);
        let ask = |config: &str| host().advise(&redact(config), &request).unwrap();
        assert_eq!(ask("{}").reject.unwrap().code, "prompt_not_reviewable", "{kind} {body}");
        assert_eq!(ask(r#"{"unreadable": "private"}"#).lanes, LaneAdvice::Only(vec![1]));
        assert_eq!(ask(r#"{"unreadable": "pass"}"#), Advice::any());
    }
}

#[test]
fn long_values_of_all_endpoints_are_scanned() {
    let long = format!("{} a@b.de", "word ".repeat(20_000));
    let block = json!({"type": "tool_result", "tool_use_id": "t", "content": long});
    let input = json!({"type": "tool_use", "id": "t", "input": {"0": "x", "file_text": long}});
    for (kind, body, pointer) in [
        (
            "messages",
            json!({"messages": [{"role": "user", "content": [block]}]}),
            "/messages/0/content/0/content",
        ),
        (
            "messages",
            json!({"messages": [{"role": "assistant", "content": [input]}]}),
            "/messages/0/content/0/input",
        ),
        (
            "messages",
            json!({"messages": [{"role": "user", "content": long}]}),
            "/messages/0/content",
        ),
        ("embeddings", json!({"input": [long]}), "/input/0"),
        ("llama-completion", json!({"prompt": {"prompt_string": long}}), "/prompt/prompt_string"),
        ("ollama-generate", json!({"system": "s", "prompt": long}), "/prompt"),
        ("tokenize", json!({"content": long}), "/content"),
    ] {
        let request = FakeRequest::for_endpoint(Endpoint::Other, &body.to_string());
        let (edits, _) = edits(&redact("{}"), &request.with_endpoint_kind(kind));
        let [(got, value)] = &edits[..] else { panic!("{kind}: {} edits", edits.len()) };
        assert_eq!(got, pointer);
        let text = value.to_string();
        assert!(text.contains("[email]") && !text.contains('@'), "{kind} {pointer}");
    }
}

#[test]
fn kinds_words_and_mask_are_configurable() {
    let policy =
        redact(r#"{"find": ["iban"], "words": ["Project Falcon"], "mask": "<{kind} gone>"}"#);
    let (edits, reason) =
        edits(&policy, &user_message("project falcon: a@b.de pays DE89370400440532013000"));
    assert_eq!(edits[0].1[0]["content"], "<word gone>: a@b.de pays <iban gone>");
    assert_eq!(reason, "masked: 1 iban, 1 word");
}

#[test]
fn rejection_names_kinds_but_not_the_content() {
    let advice = host()
        .advise(&redact(r#"{"action": "reject"}"#), &user_message("I am jane@example.org"))
        .unwrap();
    let rejection = advice.reject.unwrap();
    assert_eq!((rejection.status, rejection.code.as_str()), (400, "sensitive_content"));
    assert!(rejection.message.contains("1 email") && !rejection.message.contains("jane"));
}

#[test]
fn private_action_allows_private_lanes_only() {
    let policy = redact(r#"{"action": "private"}"#);
    let mut host = host();
    let request = user_message("I am jane@example.org");
    let advice = host.advise(&policy, &request).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Only(vec![1]));
    let steps: Vec<LaneId> = advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect();
    assert_eq!((steps, advice.edits), (vec![1], vec![]), "private fallbacks only");
    assert_eq!(host.advise(&policy, &user_message("hello")).unwrap(), Advice::any());
    host.fleet.stat_mut("home").state = LaneState::Down;
    assert_eq!(host.advise(&policy, &request).unwrap().reject.unwrap().code, "no_private_lane");
    let label = redact(r#"{"action": "private", "private": {"label": "zone", "value": "eu"}}"#);
    host.fleet.lane_mut("cloud").labels.push(("zone".into(), "eu".into()));
    assert_eq!(host.advise(&label, &request).unwrap().lanes, LaneAdvice::Only(vec![0]));
}

#[test]
fn long_conversations_are_edited_per_message() {
    let filler = "word ".repeat(4_000);
    let message = |text: &str| json!({"role": "user", "content": format!("{filler}{text}")});
    let request =
        chat(&json!([message("a@b.de"), message("none"), message("c@d.de"), message("none")]));
    let (edits, _) = edits(&redact("{}"), &request);
    let pointers: Vec<&str> = edits.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(pointers, ["/messages/0", "/messages/2"]);
    assert!(edits[1].1["content"].as_str().unwrap().ends_with("word [email]"));
}

#[test]
fn long_text_is_scanned_across_piece_boundaries() {
    // The address spans the end of the first piece, and so do two-byte characters.
    for shift in 0..24 {
        let text = format!(
            "{}{} a@b.de {}",
            "x".repeat(shift % 2),
            "ä".repeat(32_760 + shift / 2),
            "ö ".repeat(9_000)
        );
        for (request, pointer) in [
            (user_message(&text), "/messages/0/content"),
            (
                FakeRequest::for_endpoint(
                    Endpoint::Completions,
                    &json!({"model": "auto", "prompt": text}).to_string(),
                ),
                "/prompt",
            ),
        ] {
            let (edits, _) = edits(&redact("{}"), &request);
            assert_eq!(edits, [(pointer.to_owned(), json!(text.replace("a@b.de", "[email]")))]);
        }
    }
}

#[test]
fn large_media_are_skipped_and_text_next_to_them_is_scanned() {
    let url = format!("data:image/png;base64,{}", "A".repeat(90_000));
    let image = json!({"type": "image_url", "image_url": {"url": url}});
    let request =
        chat(&json!([{"role": "user", "content": [image, {"type": "text", "text": "a@b.de"}]}]));
    let (edits, _) = edits(&redact("{}"), &request);
    assert_eq!(
        edits,
        [("/messages/0/content/1".to_owned(), json!({"type": "text", "text": "[email]"}))]
    );
}

#[test]
fn unreadable_prompts_are_handled_as_configured() {
    let part = json!({"type": "text", "text": "x ".repeat(300_000)});
    let part_too_long =
        chat(&json!([{"role": "user", "content": [part, {"type": "text", "text": "a@b.de"}]}]));
    let too_much = user_message(&"word ".repeat(100_000)).with_read_limit(450_000);
    let almost_readable = user_message(&"word ".repeat(100_000)).with_read_limit(500_001);
    let readable = user_message(&"word ".repeat(100_000)).with_read_limit(600_000);
    let ask =
        |config: &str, request: &FakeRequest| host().advise(&redact(config), request).unwrap();
    for request in [&part_too_long, &too_much, &almost_readable] {
        let rejection = ask("{}", request).reject.unwrap();
        assert_eq!(
            (rejection.status, rejection.code.as_str()),
            (413, "prompt_too_large_to_review")
        );
        assert_eq!(ask(r#"{"unreadable": "private"}"#, request).lanes, LaneAdvice::Only(vec![1]));
        assert!(ask(r#"{"unreadable": "pass"}"#, request).reject.is_none());
    }
    assert_eq!(
        ask(r#"{"unreadable": "pass"}"#, &part_too_long).edits.len(),
        1,
        "matches are still masked"
    );
    assert_eq!(ask("{}", &readable), Advice::any());
}

#[test]
fn prompt_of_too_many_parts_is_unreadable() {
    let parts = vec![json!({"type": "text", "text": "x"}); 3_000];
    let message = json!({"role": "user", "content": parts});
    let request = chat(&Value::from(vec![message; 4]));
    assert_eq!(host().advise(&redact("{}"), &request).unwrap().reject.unwrap().status, 413);
    let passed = host().advise(&redact(r#"{"unreadable": "pass"}"#), &request).unwrap();
    assert!(passed.reject.is_none(), "{passed:?}");
}

#[test]
fn prompt_with_too_many_matches_is_unreadable() {
    let message = json!({"role": "user", "content": format!("{} a@b.de", "word ".repeat(500))});
    let request = chat(&Value::from(vec![message; 40]));
    assert_eq!(host().advise(&redact("{}"), &request).unwrap().reject.unwrap().status, 413);
    let passed = host().advise(&redact(r#"{"unreadable": "pass"}"#), &request).unwrap();
    assert!(passed.edits.is_empty() && passed.reject.is_none());
    let rejected = host().advise(&redact(r#"{"action": "reject"}"#), &request).unwrap();
    assert_eq!(rejected.reject.unwrap().code, "sensitive_content", "rejecting needs no edits");
}

#[test]
fn matches_are_counted() {
    let host = host();
    host.advise(&redact("{}"), &user_message("a@b.de c@d.de")).unwrap();
    assert_eq!((host.counter("found"), host.counter("unreadable")), (2, 0));
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (
            r#"{"find": ["mail"]}"#,
            "find[0]: expected \"email\", \"phone\", \"api-key\" or \"iban\", found \"mail\"",
        ),
        (r#"{"find": []}"#, "find: expected at least one kind"),
        (r#"{"words": [""]}"#, "words[0]: expected a non-empty string"),
        (r#"{"action": "mask"}"#, "action: expected \"rewrite\", \"reject\" or \"private\""),
        (r#"{"unreadable": "skip"}"#, "unreadable: expected \"reject\", \"private\" or \"pass\""),
        (r#"{"mask": ""}"#, "mask: expected a non-empty string"),
        (r#"{"private": {"key": "x"}}"#, "private.key: unknown key"),
        (r#"{"rules": []}"#, "rules: unknown key"),
    ] {
        match Redact::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
