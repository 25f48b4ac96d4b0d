//! The policy `redact` at every endpoint: no engine gets a text that it should have masked.

use pointsman_domain::Endpoint;
use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::send;
use pointsman_tests::host::root;
use serde_json::{Value, json};

use crate::host;

const SECRET: &str = "jane.doe@example.org";
const FORM: &str = "multipart/form-data; boundary=b";

/// Returns a request that has the secret in all fields of which engines read texts, whatever the
/// endpoint.
fn body() -> Value {
    let messages = json!([
        { "role": "system", "content": SECRET },
        { "role": "user", "content": [{ "type": "text", "text": SECRET }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": SECRET, "signature": "x" },
            { "type": "tool_use", "id": "t1", "name": "f", "input": { SECRET: [SECRET] } },
        ] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1",
            "content": [{ "type": "text", "text": SECRET }] }] },
        { "role": "assistant", "content": "", "tool_calls": [{ "id": "t2", "type": "function",
            "function": { "name": "f", "arguments": format!("{{\"to\":\"{SECRET}\"}}") } }] },
        { "role": "tool", "tool_call_id": "t2", "name": SECRET, "content": SECRET },
    ]);
    let tool = json!({ "type": "function", "name": "f", "description": SECRET,
        "function": { "name": "f", "description": SECRET, "parameters": { "title": SECRET } },
        "input_schema": { "type": "object", "title": SECRET } });
    let mut body = json!({ "model": "a", "max_tokens": 5, "messages": messages, "tools": [tool] });
    for field in [
        "system",
        "prompt",
        "suffix",
        "input",
        "instructions",
        "query",
        "queries",
        "texts",
        "text_1",
        "text_2",
        "data_1",
        "data_2",
        "content",
        "input_prefix",
        "input_suffix",
        "template",
        "chat_template",
    ] {
        body[field] = SECRET.into();
    }
    body["documents"] = json!([SECRET, { "text": SECRET }]);
    body["input_extra"] = json!([{ "filename": SECRET, "text": SECRET }]);
    body["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "name": "n", "description": SECRET } });
    body["chat_template_kwargs"] = json!({ "name": SECRET });
    body
}

#[test]
fn no_endpoint_lets_a_secret_pass() {
    let policies = root().join("policies");
    let engine = HostileEngine::honest();
    let lane = external_lane("a", &["a"], &engine, "");
    let chain = "[[policies.chain]]\nname = \"redact\"\non-error = \"refuse\"";
    let host = host(&format!("[policies]\ndir = {policies:?}\ncache = \"cache\"\n{chain}\n{lane}"));
    let json = body().to_string();
    let form = format!(
        "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\na\r\n--b\r\n\
         content-disposition: form-data; name=\"prompt\"\r\n\r\n{SECRET}\r\n--b--\r\n"
    );
    for endpoint in Endpoint::ALL {
        let Some(path) = endpoint.path() else { continue };
        for (kind, body) in [("application/json", &json), (FORM, &form)] {
            let before = engine.requests().len();
            let response =
                send(host.port, "POST", path, &[("content-type", kind)], body.as_bytes());
            for request in &engine.requests()[before..] {
                assert!(!request.text().contains("example.org"), "{path} {kind}: {request:?}");
            }
            // What the host serves and can read is masked, and not rejected.
            let is_chat = matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
            assert!(!is_chat || kind == FORM || response.status == 200, "{}", response.text());
        }
    }
    assert!(!engine.requests().is_empty());
    host.assert_no_request_lost();
}
