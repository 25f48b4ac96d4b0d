use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{Endpoint, LaneAdvice, LaneState, Scalar};
use serde_json::{Value, json};

use super::*;

fn redact(config: &str) -> Redact {
    Redact::configure(config).unwrap()
}

/// A lane that may see everything and one that may not.
fn host() -> FakeHost {
    let mut fleet = FakeFleet::new(&["cloud", "home"]);
    fleet.lane_mut("home").labels.push(("private".into(), "true".into()));
    FakeHost::new(fleet)
}

fn chat(messages: &Value) -> FakeRequest {
    FakeRequest::chat(&json!({"model": "auto", "messages": messages}).to_string())
}

fn saying(text: &str) -> FakeRequest {
    chat(&json!([{"role": "user", "content": text}]))
}

/// The edits, and the reason.
fn edits(policy: &Redact, request: &FakeRequest) -> (Vec<(String, Value)>, String) {
    let advice = host().advise(policy, request).unwrap();
    assert!(advice.reject.is_none(), "{advice:?}");
    let edit = |edit: &Edit| match edit {
        Edit::SetField((pointer, json)) => (pointer.clone(), serde_json::from_str(json).unwrap()),
        other => panic!("{other:?}"),
    };
    let why = match advice.notes.first().map(|note| &note.value) {
        Some(Scalar::Text(why)) => why.clone(),
        _ => String::new(),
    };
    (advice.edits.iter().map(edit).collect(), why)
}

#[test]
fn what_is_found_is_masked_and_the_rest_stays() {
    let request = chat(&json!([
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "I am jane@example.org"},
                                     {"type": "image_url", "image_url": {"url": "https://x/jane@example.org"}}]},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "1", "function": {"name": "call", "arguments": "{\"to\": \"+49 30 1234567\"}"}}]},
    ]));
    let (edits, why) = edits(&redact("{}"), &request);
    assert_eq!(why, "masked: 1 email, 1 phone");
    let [(pointer, messages)] = &edits[..] else { panic!("{edits:?}") };
    assert_eq!(pointer, "/messages");
    assert_eq!(messages[0], json!({"role": "system", "content": "be kind"}));
    assert_eq!(messages[1]["content"][0]["text"], "I am [email]");
    assert_eq!(messages[1]["content"][1]["image_url"]["url"], "https://x/jane@example.org");
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], "{\"to\": \"[phone]\"}");
}

#[test]
fn nothing_found_is_nothing_said() {
    assert_eq!(host().advise(&redact("{}"), &saying("what is 2 + 2?")).unwrap(), Advice::any());
}

#[test]
fn every_endpoints_prompt_is_looked_through() {
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
        let (edits, _) = edits(&redact("{}"), &FakeRequest::to(endpoint, &body.to_string()));
        let [(got, value)] = &edits[..] else { panic!("{edits:?}") };
        assert!(got == pointer && value.to_string().contains("[email]"), "{body}: {edits:?}");
    }
}

#[test]
fn rules_words_and_mask_are_the_operators() {
    let policy =
        redact(r#"{"find": ["iban"], "words": ["Project Falcon"], "mask": "<{kind} gone>"}"#);
    let (edits, why) =
        edits(&policy, &saying("project falcon: a@b.de pays DE89370400440532013000"));
    assert_eq!(edits[0].1[0]["content"], "<word gone>: a@b.de pays <iban gone>");
    assert_eq!(why, "masked: 1 iban, 1 word");
}

#[test]
fn requests_are_refused_without_telling_what_was_found() {
    let advice = host()
        .advise(&redact(r#"{"action": "refuse"}"#), &saying("I am jane@example.org"))
        .unwrap();
    let rejection = advice.reject.unwrap();
    assert_eq!((rejection.status, rejection.code.as_str()), (400, "sensitive_content"));
    assert!(rejection.message.contains("1 email") && !rejection.message.contains("jane"));
}

#[test]
fn private_lanes_only_or_nothing() {
    let policy = redact(r#"{"action": "private"}"#);
    let mut host = host();
    let request = saying("I am jane@example.org");
    let advice = host.advise(&policy, &request).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Only(vec![1]));
    let steps: Vec<LaneId> = advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect();
    assert_eq!((steps, advice.edits), (vec![1], vec![]), "no fallback leads out");
    assert_eq!(host.advise(&policy, &saying("hello")).unwrap(), Advice::any());
    host.fleet.stat_mut("home").state = LaneState::Down;
    assert_eq!(host.advise(&policy, &request).unwrap().reject.unwrap().code, "no_private_lane");
    let label = redact(r#"{"action": "private", "private": {"label": "zone", "value": "eu"}}"#);
    host.fleet.lane_mut("cloud").labels.push(("zone".into(), "eu".into()));
    assert_eq!(host.advise(&label, &request).unwrap().lanes, LaneAdvice::Only(vec![0]));
}

#[test]
fn long_conversations_are_edited_piece_by_piece() {
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
fn a_long_text_is_read_whole_whatever_is_cut_where() {
    // The address lies across the end of the first piece, and so do characters of two bytes.
    for shift in 0..24 {
        let text = format!(
            "{}{} a@b.de {}",
            "x".repeat(shift % 2),
            "ä".repeat(32_760 + shift / 2),
            "ö ".repeat(9_000)
        );
        for (request, pointer) in [
            (saying(&text), "/messages/0/content"),
            (
                FakeRequest::to(
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
fn large_media_are_no_text_and_small_texts_beside_them_are_read() {
    let image = json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", "A".repeat(90_000))}});
    let request =
        chat(&json!([{"role": "user", "content": [image, {"type": "text", "text": "a@b.de"}]}]));
    let (edits, _) = edits(&redact("{}"), &request);
    assert_eq!(
        edits,
        [("/messages/0/content/1".to_owned(), json!({"type": "text", "text": "[email]"}))]
    );
}

#[test]
fn what_cannot_be_read_whole_is_refused_unless_the_operator_says_otherwise() {
    let part = json!({"type": "text", "text": "x ".repeat(40_000)});
    let part_too_long =
        chat(&json!([{"role": "user", "content": [part, {"type": "text", "text": "a@b.de"}]}]));
    let too_much = saying(&"word ".repeat(100_000)).handing_out(450_000);
    let nearly = saying(&"word ".repeat(100_000)).handing_out(500_001);
    let enough = saying(&"word ".repeat(100_000)).handing_out(600_000);
    let ask =
        |config: &str, request: &FakeRequest| host().advise(&redact(config), request).unwrap();
    for request in [&part_too_long, &too_much, &nearly] {
        let refused = ask("{}", request).reject.unwrap();
        assert_eq!((refused.status, refused.code.as_str()), (413, "prompt_too_large_to_review"));
        assert_eq!(ask(r#"{"unreadable": "private"}"#, request).lanes, LaneAdvice::Only(vec![1]));
        assert!(ask(r#"{"unreadable": "pass"}"#, request).reject.is_none());
    }
    assert_eq!(
        ask(r#"{"unreadable": "pass"}"#, &part_too_long).edits.len(),
        1,
        "what was found is masked"
    );
    assert_eq!(ask("{}", &enough), Advice::any());
}

#[test]
fn more_edits_than_a_host_takes_are_none_at_all() {
    let message = json!({"role": "user", "content": format!("{} a@b.de", "word ".repeat(500))});
    let request = chat(&Value::from(vec![message; 40]));
    assert_eq!(host().advise(&redact("{}"), &request).unwrap().reject.unwrap().status, 413);
    let passing = host().advise(&redact(r#"{"unreadable": "pass"}"#), &request).unwrap();
    assert!(passing.edits.is_empty() && passing.reject.is_none());
    let refusing = host().advise(&redact(r#"{"action": "refuse"}"#), &request).unwrap();
    assert_eq!(
        refusing.reject.unwrap().code,
        "sensitive_content",
        "nothing has to be edited for that"
    );
}

#[test]
fn figures_are_kept() {
    let host = host();
    host.advise(&redact("{}"), &saying("a@b.de c@d.de")).unwrap();
    assert_eq!((host.counted("found"), host.counted("unreadable")), (2, 0));
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (
            r#"{"find": ["mail"]}"#,
            "find[0]: must be \"email\", \"phone\", \"api-key\" or \"iban\", and is \"mail\"",
        ),
        (r#"{"find": []}"#, "find: is empty"),
        (r#"{"words": [""]}"#, "words[0]: must be a text that is not empty"),
        (r#"{"action": "mask"}"#, "action: must be \"rewrite\", \"refuse\" or \"private\""),
        (r#"{"unreadable": "skip"}"#, "unreadable: must be \"refuse\", \"private\" or \"pass\""),
        (r#"{"mask": ""}"#, "mask: must be a text that is not empty"),
        (r#"{"private": {"key": "x"}}"#, "there is no key `private.key`"),
        (r#"{"rules": []}"#, "there is no key `rules`"),
    ] {
        match Redact::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
