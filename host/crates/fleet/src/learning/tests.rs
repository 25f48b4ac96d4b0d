use serde_json::json;

use super::*;

/// Returns the body of a captured response.
fn capture(text: &str) -> Value {
    serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn captured_model_lists_are_read() {
    let list = capture(include_str!("../../../../../tests/captures/vllm-0.32.0/models.http"));
    let vllm = ModelCard {
        root: Some("model".to_owned()),
        owner: Some("vllm".to_owned()),
        context: Some(512),
        ..ModelCard::default()
    };
    assert_eq!(read_models(&list, &names(&["orchestrator"])), vllm);
    assert_eq!(read_models(&list, &[]), vllm, "it is the only model");
    let list =
        capture(include_str!("../../../../../tests/captures/llama-server-b115xx/models.http"));
    let llama_cpp = ModelCard {
        owner: Some("llamacpp".to_owned()),
        context: Some(1024),
        trained_context: Some(8192),
        ..ModelCard::default()
    };
    assert_eq!(read_models(&list, &[]), llama_cpp);
    let props =
        capture(include_str!("../../../../../tests/captures/llama-server-b115xx/props.http"));
    let described = ModelCard {
        root: Some("SmolLM2-135M-Instruct.Q4_1.gguf".to_owned()),
        context: Some(1024),
        ..ModelCard::default()
    };
    assert_eq!(read_props(&props, EndpointSet::default()), described);
    let both = llama_cpp.completed(&described);
    assert_eq!((both.root, both.trained_context), (described.root, Some(8192)));
}

#[test]
fn adapters_of_the_own_model_are_read() {
    let card = |id: &str, root: &str, parent: Value| {
        let length = 4096;
        json!({ "id": id, "root": root, "parent": parent, "max_model_len": length })
    };
    let list = json!({ "data": [
        card("coder", "/m/coder", Value::Null),
        card("coder-32b", "/m/coder", Value::Null),
        card("other", "/m/other", Value::Null),
        card("sql", "/lora/sql", "coder".into()),
        card("css", "/lora/css", "coder-32b".into()),
        card("elsewhere", "/lora/x", "other".into()),
        card("two\nlines", "/lora/x", "coder".into()),
        card(&"x".repeat(MAX_NAME + 1), "/lora/x", "coder".into()),
        { "id": 5, "parent": "coder" }, 5, null,
    ] });
    let learned = read_models(&list, &names(&["coder-32b"]));
    let adapter = |name: &str| Adapter { name: name.to_owned(), root: Some(name.to_owned()) };
    assert_eq!(learned.adapters, [adapter("sql"), adapter("css")]);
    assert_eq!((learned.root.as_deref(), learned.context), (Some("coder"), Some(4096)));
    // Of several models none is the lane's.
    assert_eq!(read_models(&list, &names(&["nope"])), ModelCard::default());
}

#[test]
fn nothing_is_learned_from_other_answers() {
    for list in [json!(null), json!([]), json!({ "data": 5 }), json!({ "data": [] })] {
        assert_eq!(read_models(&list, &[]), ModelCard::default(), "{list}");
        assert_eq!(read_props(&list, EndpointSet::default()), ModelCard::default(), "{list}");
    }
    let odd = json!({ "data": [{ "id": "a", "max_model_len": -1, "meta": { "n_ctx": 0 },
        "context_length": 8192, "owned_by": "a\u{7}" }] });
    let learned = read_models(&odd, &[]);
    assert_eq!((learned.context, learned.owner), (Some(8192), None));
}

#[test]
fn endpoints_are_read_from_what_engines_say() {
    let set = |endpoints: &[Endpoint]| EndpointSet::new(endpoints.iter().copied());
    let route = json!({ "post": {} });
    let routes = json!({ "openapi": "3.1.0", "paths": { "/health": { "get": {} },
        "/v1/embeddings": route, "/v1/rerank": route, "/rerank": route, "/tokenize": route,
        "/v1/messages/count_tokens": route, "/v1/score": 5 } });
    let expected =
        [Endpoint::Embeddings, Endpoint::Rerank, Endpoint::Tokenize, Endpoint::CountTokens];
    assert_eq!(read_routes(&routes), Some(set(&expected)));
    for odd in [json!(null), json!({ "paths": [] }), json!({ "paths": { "/health": {} } })] {
        assert_eq!(read_routes(&odd), None, "{odd}");
    }
    let chat = set(&[Endpoint::ChatCompletions]);
    let props =
        |takes_audio: bool| json!({ "modalities": { "vision": false, "audio": takes_audio } });
    assert_eq!(read_props(&props(false), chat).endpoints, None);
    let both = set(&[Endpoint::ChatCompletions, Endpoint::Transcriptions]);
    assert_eq!(read_props(&props(true), chat).endpoints, Some(both));
}
