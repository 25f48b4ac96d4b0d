//! Texts by which clients might try to get past policies.

use serde_json::{Value, json};

use super::*;

/// Whatever may become a part of the engine's prompt is a text for policies, or the request is
/// refused.
#[test]
fn no_text_is_hidden_from_policies() {
    let seen = |endpoint, body: &Value| {
        let mut body = body.clone();
        body["model"] = "m".into();
        Request::parse(endpoint, body.to_string().into(), Head::default())
    };
    let url = format!("data:text/plain;base64,\n{}", "SECRET");
    let document = |source: Value| {
        json!({ "messages": [{ "role": "user", "content": [
            { "type": "document", "title": "x", "source": source }] }] })
    };
    for (endpoint, body) in [
        (Endpoint::Responses, json!({ "input": ["SECRET"] })),
        (
            Endpoint::Responses,
            json!({ "instructions": [{ "role": "system", "content": "SECRET" }], "input": "x" }),
        ),
        (Endpoint::LlamaCompletion, json!({ "prompt": url })),
        (Endpoint::Embeddings, json!({ "input": [url] })),
        (Endpoint::Rerank, json!({ "query": "q", "documents": [{ "text": url }] })),
        (Endpoint::OllamaGenerate, json!({ "prompt": url })),
        (Endpoint::Messages, document(json!({ "type": "text", "data": "SECRET" }))),
        (
            Endpoint::Messages,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "document",
                "title": "SECRET", "source": { "type": "text", "data": "x" } }] }] }),
        ),
        (
            Endpoint::Messages,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "tool_result",
                "tool_use_id": "t", "content": url }] }] }),
        ),
    ] {
        let request = seen(endpoint, &body).unwrap();
        assert!(request.contains("SECRET", false), "{body}");
    }
    // What others might read differently: refused, or read in all ways.
    for (endpoint, body) in [
        (Endpoint::Responses, r#""input":[{"role":"user","content":"x","content":"SECRET"}]"#),
        (Endpoint::Responses, r#""input":[{"content":[{"type":"te\u0078t","text":"SECRET"}]}]"#),
        (
            Endpoint::Messages,
            concat!(
                r#""messages":[{"role":"user","content":[{"type":"document","#,
                r#""source":{"type":"te\u0078t","data":"SECRET"}}]}]"#,
            ),
        ),
        (
            Endpoint::ChatCompletions,
            r#""messages":[{"role":"user","content":[{"type":"te\u0078t","text":"SECRET"}]}]"#,
        ),
    ] {
        let body = format!(r#"{{"model":"m",{body}}}"#);
        match Request::parse(endpoint, body.clone().into(), Head::default()) {
            Ok(request) => assert!(request.contains("SECRET", false), "{body}"),
            Err(error) => assert!(matches!(error, BadRequest::Invalid { .. }), "{body}"),
        }
    }
}
