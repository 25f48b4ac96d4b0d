//! Edits of requests with content blocks.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn messages(body: &str, edit: Edit) -> Result<String, EditError> {
    edited(Endpoint::Messages, body, edit)
}

#[test]
fn texts_are_put_before_the_system_prompt() {
    let body = |system: &str| format!(r#"{{{system}"model":"a","messages":[]}}"#);
    for (before, after) in [
        ("", r#""system":"be \"kind\"","#),
        (r#""system":null,"#, r#""system":"be \"kind\"","#),
        (r#""system" : "caf\u00e9","#, r#""system" : "be \"kind\"\n\ncaf\u00e9","#),
        (r#""system":[],"#, r#""system":[{"type":"text","text":"be \"kind\"\n\n"}],"#),
        (
            r#""system":[ {"text":"x"}],"#,
            r#""system":[{"type":"text","text":"be \"kind\"\n\n"}, {"text":"x"}],"#,
        ),
    ] {
        let edit = Edit::PrependSystem("be \"kind\"".into());
        assert_eq!(messages(&body(before), edit).unwrap(), body(after), "{before}");
    }
    let twice = [Edit::PrependSystem("b".into()), Edit::PrependSystem("a".into())];
    let body = Bytes::from(body(r#""system":"c","#));
    let request = Request::parse(Endpoint::Messages, body, Head::default()).unwrap();
    let (request, dropped) = apply(&request, &twice);
    assert!(dropped.is_empty() && request.json().contains(r#""a\n\nb\n\nc""#));
}

#[test]
fn output_is_limited_by_max_tokens() {
    let body = r#"{"model":"a","messages":[],"max_tokens":100}"#;
    let capped = messages(body, Edit::CapOutputTokens(10)).unwrap();
    assert_eq!(capped, body.replace("100", "10"));
}

/// Returns the messages of turns: of a user, or of an agent with calls and their results.
fn turns() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec((0..4_usize, 0..3_usize, any::<bool>()), 1..10).prop_map(|turns| {
        let mut messages = Vec::new();
        for (turn, (kind, results, has_text)) in turns.into_iter().enumerate() {
            let id = |call: usize| format!("{turn}-{call}");
            match kind {
                0 => messages.push(json!({"role": "user", "content": turn.to_string()})),
                1 => messages.push(json!({"role": "assistant", "content": turn.to_string()})),
                _ => {
                    let call = |call| json!({"type": "tool_use", "id": id(call), "input": {}});
                    let calls: Vec<Value> = (0..=results).map(call).collect();
                    messages.push(json!({"role": "assistant", "content": calls}));
                    let result = |call| json!({"type": "tool_result", "tool_use_id": id(call)});
                    let mut content: Vec<Value> = (0..=results).map(result).collect();
                    if has_text {
                        content.push(json!({"type": "text", "text": "and"}));
                    }
                    messages.push(json!({"role": "user", "content": content}));
                }
            }
        }
        messages
    })
}

fn ids<'a>(messages: &'a [Value], key: &str) -> Vec<&'a str> {
    let contents = messages.iter().filter_map(|message| message["content"].as_array());
    let mut ids: Vec<&str> = contents.flatten().filter_map(|block| block[key].as_str()).collect();
    ids.sort_unstable();
    ids
}

proptest! {
    #[test]
    fn edits_keep_calls_and_results_together(
        before in turns(),
        edits in prop::collection::vec(
            prop_oneof![
                (0..12_u32).prop_map(Edit::KeepLastMessages),
                (0..12_u32).prop_map(|at| Edit::RemoveField(format!("/messages/{at}"))),
                Just(Edit::PrependSystem("s".into())),
            ],
            1..4,
        ),
    ) {
        let body = json!({"model": "a", "messages": before}).to_string();
        let request = Request::parse(Endpoint::Messages, body.into(), Head::default()).unwrap();
        let (edited, _) = request.apply(&edits);
        let after: Value = serde_json::from_slice(edited.body()).unwrap();
        let after = after["messages"].as_array().unwrap();
        prop_assert_eq!(ids(after, "id"), ids(after, "tool_use_id"));
    }
}
