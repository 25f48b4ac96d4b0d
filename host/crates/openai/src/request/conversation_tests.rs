//! What identifies a conversation, and the slot of an engine that it gets.

use serde_json::{Value, json};

use super::tests::parse;
use super::*;

#[test]
fn conversation_hashes_grow_with_the_conversation() {
    let long = "word ".repeat(100);
    let request = |turns: usize, more: &str| {
        let messages: Vec<Value> = (0..turns)
            .map(|turn| json!({ "role": "user", "content": format!("{turn} {long}") }))
            .collect();
        let messages = Value::from(messages);
        let body = format!("{{\"model\":\"m\",{more}\"messages\":{messages}}}");
        parse(Endpoint::ChatCompletions, &body).unwrap().conversation_hashes()
    };
    let (first, second) = (request(1, ""), request(2, ""));
    assert!(first.len() >= 3 && second.len() > first.len());
    assert_eq!(second[..first.len()], first);
    // Of the template, and nothing else of the body.
    assert_eq!(request(1, "\"temperature\":1,"), first);
    assert_ne!(request(1, "\"reasoning_effort\":\"low\","), first);
    assert!(request(1, "\"cache_prompt\":false,").is_empty());
}

#[test]
fn slot_of_an_engine_is_added_unless_a_policy_chose_one() {
    let sent = |body: &str, slot| {
        let request = parse(Endpoint::ChatCompletions, body).unwrap();
        let body = request.body_for_engine(Some("n"), true, slot).body;
        String::from_utf8(body.to_vec()).unwrap()
    };
    let body = r#" {"model":"m","stream":true,"messages":[]}"#;
    let usage = r#""stream_options":{"include_usage":true},"#;
    let rest = r#""model":"n","stream":true,"messages":[]}"#;
    assert_eq!(sent(body, Some(3)), format!(" {{\"id_slot\":3,{usage}{rest}"));
    assert_eq!(sent(body, None), format!(" {{{usage}{rest}"));
    let chosen = r#"{"id_slot":1,"model":"n","messages":[]}"#;
    assert_eq!(sent(chosen, Some(3)), chosen);
}
