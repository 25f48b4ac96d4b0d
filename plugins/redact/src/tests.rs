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
    let part = json!({"type": "text", "text": "x ".repeat(40_000)});
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
