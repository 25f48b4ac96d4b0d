use super::*;

fn messages(body: &Value) -> Request {
    parse(Endpoint::Messages, &body.to_string()).unwrap()
}

#[test]
fn texts_of_blocks_and_of_the_system_prompt_are_seen() {
    let request = messages(&json!({
        "model": "m", "max_tokens": 7, "tools": [{ "name": "f" }],
        "system": [{ "type": "text", "text": "be " }, { "type": "text", "text": "kind" }],
        "messages": [
            { "role": "user", "content": [
                { "type": "text", "text": "look" },
                { "type": "image", "source": { "type": "url", "url": "https://x" } },
                { "type": "document", "source": { "type": "text", "data": "paper" } },
                { "type": "document", "source": { "type": "base64", "data": "AA" } },
            ] },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": "s" },
                { "type": "tool_use", "id": "t", "name": "f", "input": { "x": "hidden" } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "t", "content": [
                    { "type": "text", "text": "found" },
                    { "type": "image", "source": { "type": "url", "url": "https://x" } },
                ] },
                { "type": "tool_result", "tool_use_id": "u", "content": "plain" },
                { "type": "search_result", "content": [{ "type": "text", "text": "page" }] },
            ] },
        ],
    }));
    for text in ["be ", "kind", "look", "paper", "hm", "found", "plain", "page"] {
        assert!(request.contains(text, false), "{text}");
    }
    for (index, text) in ["lookpaper", "hm", "foundplainpage", "be kind", ""].iter().enumerate() {
        assert_eq!(request.text(index as u32, 0, 100), *text, "{index}");
    }
    assert_eq!(request.text(3, 3, 2), "ki");
    let info = request.info();
    assert!(info.has_media && info.has_tools);
    assert_eq!((info.messages, info.max_output_tokens), (3, 7));
    let media: Vec<u32> = request.messages().iter().map(|message| message.media_parts).collect();
    assert_eq!(media, [2, 0, 1]);
    let bytes: Vec<u64> = request.messages().iter().map(|message| message.text_bytes).collect();
    assert_eq!(bytes, [9, 2, 14]);
    let literals = "be kindlookpaperhmfoundplainpage".len() + 2 * 9;
    assert_eq!(request.text_size(), literals as u64 - 2);
}

#[test]
fn the_system_prompt_may_be_a_text() {
    for (system, text) in [
        (json!("be kind"), "be kind"),
        (json!(["be ", "kind"]), "be kind"),
        (json!(null), ""),
        (json!(5), ""),
    ] {
        let request = messages(&json!({ "model": "m", "system": system, "messages": [
            { "role": "user", "content": "hi" }] }));
        assert_eq!(request.text(1, 0, 100), text);
        assert_eq!(request.text(0, 0, 100), "hi");
    }
    let ignored = json!({ "model": "m", "system": "x", "messages": [] });
    assert!(!chat(&ignored).contains("x", false));
    for system in [json!([[]]), json!({ "text": "x" })] {
        let invalid = json!({ "model": "m", "system": system, "messages": [] }).to_string();
        let error = parse(Endpoint::Messages, &invalid);
        assert!(matches!(error, Err(BadRequest::Invalid { name: "system", .. })), "{invalid}");
    }
}

#[test]
fn the_system_prompt_is_the_beginning_of_the_prompt() {
    let index = PrefixIndex::new(1);
    let long = "some words ".repeat(2000);
    let request = |system: &str| {
        messages(&json!({ "model": "m", "system": system, "messages": [
            { "role": "user", "content": long }] }))
    };
    let hashes = |system: &str| request(system).prompt_hashes(index.hasher()).clone();
    assert_eq!(hashes("a"), hashes("a"));
    assert_ne!(hashes("a"), hashes("b"));
    assert_ne!(request("a").prefix_hashes(64, 4), request("b").prefix_hashes(64, 4));
}
