mod blocks;
mod hidden;

use pointsman_domain::{LaneId, PrefixIndex, PromptHasher, Role};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(super) fn parse(endpoint: Endpoint, body: &str) -> Result<Request, BadRequest> {
    Request::parse(endpoint, Bytes::from(body.to_owned()), Head::default())
}

fn chat(body: &Value) -> Request {
    parse(Endpoint::ChatCompletions, &body.to_string()).unwrap()
}

#[test]
fn figures_describe_the_request() {
    let request = chat(&json!({
        "model": "m", "stream": true, "max_tokens": 7, "tools": [{}],
        "response_format": {"type": "json_object"},
        "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [
                {"type": "text", "text": "abcdefgh"},
                {"type": "image_url", "image_url": {}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": []},
        ],
    }));
    let figures = request.info();
    assert!(figures.streaming && figures.has_tools && figures.has_media && figures.has_grammar);
    assert_eq!(
        (figures.max_output_tokens, figures.messages, figures.prompt_tokens),
        (7, 3, 3 * 4 + 2 + 2)
    );
    let info =
        |role, text_bytes, parts, media_parts| MessageInfo { role, text_bytes, parts, media_parts };
    assert_eq!(request.text_size(), 9 + 10);
    let expected =
        [info(Role::System, 7, 1, 0), info(Role::User, 8, 2, 1), info(Role::Assistant, 0, 0, 0)];
    assert_eq!(request.messages(), expected);

    let plain = chat(
        &json!({"model": "m", "messages": [], "tools": [], "response_format": {"type": "text"}}),
    );
    let figures = plain.info();
    assert!(!(figures.streaming || figures.has_tools || figures.has_media || figures.has_grammar));
}

#[test]
fn visited_texts_are_at_their_place_in_the_messages() {
    let part = |text: &str| json!({ "type": "text", "text": text });
    let body = json!({
        "model": "m", "max_tokens": 9, "system": [part("rules"), part("more")],
        "messages": [
            { "role": "user", "content": [part("é\n"), part("second"), part("third")] },
            { "role": "assistant", "content": "" },
            { "role": "user", "content": "last" },
        ],
    });
    let request = parse(Endpoint::Messages, &body.to_string()).unwrap();
    let mut visited = Vec::new();
    request.visit_texts(&mut |message, begin, text| {
        assert_eq!(request.text(message, begin, text.len()), text);
        visited.push((message, begin));
        ControlFlow::Continue(())
    });
    // The system prompt follows the last message.
    assert_eq!(visited, [(3, 0), (3, 5), (0, 0), (0, 3), (0, 9), (1, 0), (2, 0)]);
    let mut count = 0;
    request.visit_texts(&mut |_, _, _| {
        count += 1;
        ControlFlow::Break(())
    });
    assert_eq!(count, 1);
}

#[test]
fn prompts_have_four_forms() {
    for (prompt, tokens, text, prompts) in [
        (json!("abcdefgh"), 4 + 2, "abcdefgh", 1),
        (json!(["abcd", "efgh"]), 4 + 2, "abcdefgh", 2),
        (json!([1, 2, 3]), 4 + 3, "", 1),
        (json!([[1, 2], [3]]), 4 + 3, "", 2),
    ] {
        let body = json!({"model": "m", "prompt": prompt, "max_tokens": 5}).to_string();
        let request = parse(Endpoint::Completions, &body).unwrap();
        assert_eq!(request.info().prompt_tokens, tokens, "{prompt}");
        assert_eq!(request.text(0, 0, 100), text, "{prompt}");
        let info = request.info();
        assert_eq!((info.messages, info.max_output_tokens), (0, 5 * prompts));
    }
}

#[test]
fn input_is_the_prompt_of_embeddings_and_responses() {
    use Endpoint::{Embeddings, Responses};
    for (endpoint, body, tokens, text) in [
        (Embeddings, json!({"input": "abcdefgh"}), 4 + 2, "abcdefgh"),
        (Embeddings, json!({"input": ["abcd", "efgh"]}), 4 + 2, "abcdefgh"),
        (Embeddings, json!({"input": [1, 2, 3]}), 4 + 3, ""),
        (Responses, json!({"input": "abcdefgh"}), 4 + 2, "abcdefgh"),
        (Responses, json!({"instructions": "abcd", "input": "efgh"}), 4 + 2, "abcdefgh"),
        (Responses, json!({}), 4, ""),
        (
            Responses,
            json!({"input": [
                {"role": "user", "content": [
                    {"type": "input_text", "text": "abcd"},
                    {"type": "input_image", "image_url": "x"},
                ]},
                {"type": "function_call", "arguments": "efgh"},
                {"type": "function_call_output", "output": "ijkl"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "mnop"}]},
                {"type": "item_reference", "id": "1"},
                "unknown",
            ]}),
            4 + 6 * 4 + 4 + 2,
            "abcdefghijklmnopunknown",
        ),
    ] {
        let mut whole = json!({"model": "m"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let request = parse(endpoint, &whole.to_string()).unwrap();
        let info = request.info();
        assert_eq!((info.prompt_tokens, info.messages), (tokens, 0), "{whole}");
        assert_eq!(request.text(0, 0, 100), text, "{whole}");
        assert_eq!(info.has_media, whole.to_string().contains("input_image"), "{whole}");
    }
    let limited = json!({
        "model": "m", "input": "", "max_output_tokens": 7,
        "text": {"format": {"type": "json_schema"}},
    });
    let info = parse(Responses, &limited.to_string()).unwrap().info();
    assert_eq!((info.max_output_tokens, info.has_grammar), (7, true));
}

#[test]
fn texts_of_fields_are_the_prompt() {
    use Endpoint::{
        Classify, Detokenize, Embeddings, Moderations, Pooling, Rerank, Score, Tokenize,
    };
    let url = "data:image/png;base64,iVBORw0KGgo=";
    let parts = json!([
        {"type": "text", "text": "abcd"},
        {"type": "image_url", "image_url": {"url": url}},
    ]);
    for (endpoint, fields, tokens, text, has_media) in [
        (
            Rerank,
            json!({"query": "abcd", "documents": ["efgh", {"text": "ijkl"}]}),
            3,
            "abcdefghijkl",
            false,
        ),
        (Rerank, json!({"query": "abcd", "texts": ["efgh"], "top_n": 1}), 2, "abcdefgh", false),
        (Rerank, json!({"query": "abcd", "documents": {"content": parts}}), 2, "abcdabcd", true),
        (Rerank, json!({"query": url, "documents": [url]}), 0, "", true),
        (Score, json!({"text_1": "abcd", "text_2": ["efgh"]}), 2, "abcdefgh", false),
        (Score, json!({"queries": "abcd", "documents": ["efgh"]}), 2, "abcdefgh", false),
        (Score, json!({"data_1": "abcd", "data_2": {"content": parts}}), 2, "abcdabcd", true),
        (Classify, json!({"input": ["abcd", "efgh"]}), 2, "abcdefgh", false),
        (Pooling, json!({"messages": [{"role": "user", "content": parts}]}), 1, "abcd", true),
        (Tokenize, json!({"prompt": "abcd"}), 1, "abcd", false),
        (Tokenize, json!({"content": "abcd", "add_special": true}), 1, "abcd", false),
        (Detokenize, json!({"tokens": [1, 2, 3]}), 3, "", false),
        (Embeddings, json!({"input": [[1, 2], [3]]}), 3, "", false),
        (Embeddings, json!({"messages": [{"role": "user", "content": "abcd"}]}), 1, "abcd", false),
        (Embeddings, json!({"content": "abcd", "encoding_format": "base64"}), 1, "abcd", false),
        (Moderations, json!({"input": parts}), 1, "abcd", true),
        // The engine's to judge.
        (Rerank, json!({"query": 5, "documents": null}), 0, "", false),
        (Embeddings, json!({}), 0, "", false),
    ] {
        let mut whole = json!({"model": "m"});
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = parse(endpoint, &whole.to_string()).unwrap();
        let info = request.info();
        assert_eq!((info.prompt_tokens, info.messages), (4 + tokens, 0), "{whole}");
        assert_eq!(request.text(0, 0, 100), text, "{whole}");
        assert_eq!((info.has_media, info.max_output_tokens), (has_media, 0), "{whole}");
    }
}

#[test]
fn content_is_the_engines_to_judge() {
    for (content, text, parts, media) in [
        (r#"["ab",{"type":"text","text":"cd"},"ef"]"#, "abcdef", 3, 0),
        (r#"["ab",{"type":"image_url","image_url":{"url":"x"}}]"#, "ab", 2, 1),
        (r#"[1,true,null,"ab"]"#, "ab", 4, 0),
        (r#"{"type":"text","text":"ab"}"#, "ab", 1, 0),
        (r#"{"type":"image_url"}"#, "", 1, 1),
        ("5", "", 1, 0),
        ("true", "", 1, 0),
        ("[]", "", 0, 0),
        ("null", "", 0, 0),
    ] {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#);
        let request = parse(Endpoint::ChatCompletions, &body).unwrap();
        assert_eq!(request.body(), &body, "{content}");
        assert_eq!(request.text(0, 0, 100), text, "{content}");
        let message = request.messages()[0];
        assert_eq!((message.parts, message.media_parts), (parts, media), "{content}");
        assert_eq!(request.contains("ef", false), text.contains("ef"), "{content}");
    }
}

#[test]
fn halves_of_surrogate_pairs_are_read_as_replacement_characters() {
    let body = concat!(
        r#"{"model":"m","messages":[{"role":"user","content":"cut \ud83d end"},"#,
        r#"{"role":"user","content":"\ud83d\ude00 \\ud83d"}],"x":1}"#,
    );
    let request = parse(Endpoint::ChatCompletions, body).unwrap();
    assert_eq!(request.text(0, 0, 100), "cut \u{fffd} end");
    assert_eq!(request.text(1, 0, 100), "\u{1f600} \\ud83d");
    assert!(request.contains("\u{fffd} END", true) && !request.contains("ud83d end", false));
    let FieldValue::Json(messages) = request.field("/messages", 1000) else { panic!("too large") };
    let messages: Value = serde_json::from_str(&messages).unwrap();
    assert_eq!(messages[0]["content"], "cut \u{fffd} end");
    assert_eq!(messages[1]["content"], "\u{1f600} \\ud83d");
    // The engine gets what the client has sent, as far as it was not edited.
    assert_eq!(request.body(), body);
    let (edited, dropped) =
        request.apply(&[Edit::SetField("/messages/1/content".into(), "\"x\"".into())]);
    assert!(dropped.is_empty());
    assert_eq!(edited.body(), &body.replace(r#""\ud83d\ude00 \\ud83d""#, "\"x\""));
}

#[test]
fn invalid_bodies_are_rejected_with_the_field() {
    use Endpoint::{ChatCompletions, Completions, Responses};
    for (body, message) in [
        // Messages of serde_json, which are to reach the client.
        ("", "EOF while parsing"),
        ("{\"model\": ", "line 1 column"),
        (r#"{"model":"m","messages":"hi"}"#, "expected a sequence"),
        (r#"{"model":"m","messages":[["user","hi"]]}"#, "expected an object"),
        (r#"{"model":"a","model":"b","messages":[]}"#, "duplicate field `model`"),
        (r#"{"model":"a","messages":[]} x"#, "trailing characters"),
    ] {
        let error = parse(ChatCompletions, body).unwrap_err();
        assert!(matches!(error, BadRequest::Json(_)), "{body}: {error}");
        assert!(error.to_string().contains(message), "{body}: {error}");
        assert_eq!(error.body().param, None, "{body}");
    }
    let error = parse(ChatCompletions, "[]").unwrap_err();
    assert!(matches!(error, BadRequest::NotAnObject), "{error}");
    assert_eq!(error.body().param, None);
    for (endpoint, body, field) in [
        (ChatCompletions, "{}", "model"),
        (ChatCompletions, r#"{"model":null,"messages":[]}"#, "model"),
        (ChatCompletions, r#"{"model":"","messages":[]}"#, "model"),
        (ChatCompletions, r#"{"model":"m"}"#, "messages"),
        (Completions, r#"{"model":"m"}"#, "prompt"),
    ] {
        let error = parse(endpoint, body).unwrap_err();
        assert!(matches!(error, BadRequest::Missing { name } if name == field), "{body}: {error}");
        assert_eq!(error.body().param.as_deref(), Some(field), "{body}");
    }
    for (endpoint, body, field, value) in [
        (ChatCompletions, r#"{"model":5,"messages":[]}"#, "model", "a string"),
        (ChatCompletions, r#"{"model":"m","messages":[{"content":"x"}]}"#, "messages", "`role`"),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[{"role":"user","content":[["x"]]}]}"#,
            "messages",
            "`content`",
        ),
        (
            ChatCompletions,
            r#"{"model":"m","messages":[],"stream":"yes"}"#,
            "stream",
            "true or false",
        ),
        (Completions, r#"{"model":"m","prompt":{}}"#, "prompt", "a string"),
        (Responses, r#"{"model":"m","input":5}"#, "input", "a string"),
    ] {
        let error = parse(endpoint, body).unwrap_err();
        let as_expected = matches!(
            &error,
            BadRequest::Invalid { name, expected } if *name == field && expected.contains(value)
        );
        assert!(as_expected, "{body}: {error}");
        assert_eq!(error.body().param.as_deref(), Some(field), "{body}");
    }
    let error =
        Request::parse(ChatCompletions, Bytes::from_static(b"{\"a\":\"\xff\"}"), Head::default())
            .unwrap_err();
    assert!(matches!(error, BadRequest::Encoding(6)), "{error}");
}

#[test]
fn output_limits_are_read_under_all_names() {
    for (endpoint, fields, limit) in [
        (Endpoint::ChatCompletions, r#""max_tokens":5"#, 5),
        (Endpoint::ChatCompletions, r#""max_completion_tokens":7,"max_tokens":5"#, 7),
        (Endpoint::ChatCompletions, r#""n_predict":40,"max_tokens":5"#, 40),
        (Endpoint::ChatCompletions, r#""n_predict":-1,"max_tokens":5"#, 0),
        (Endpoint::ChatCompletions, r#""min_tokens":9,"max_tokens":5"#, 9),
        (Endpoint::ChatCompletions, r#""min_tokens":9"#, 0),
        (Endpoint::ChatCompletions, r#""n_predict":null,"max_tokens":5.0"#, 5),
        (Endpoint::ChatCompletions, r#""max_tokens":100,"n":3"#, 300),
        (Endpoint::ChatCompletions, r#""max_tokens":100,"n_cmpl":3"#, 300),
        (Endpoint::Completions, r#""max_tokens":100,"n":2,"best_of":5"#, 500),
        (Endpoint::Completions, r#""max_tokens":4000000000,"n":2"#, u32::MAX),
        (Endpoint::Responses, r#""max_output_tokens":7,"n_predict":8"#, 8),
        (Endpoint::Embeddings, r#""max_tokens":5"#, 0),
        (Endpoint::ChatCompletions, r#""n":3"#, 0),
    ] {
        let body = format!(r#"{{"model":"m","messages":[],"prompt":"","input":"",{fields}}}"#);
        let request = parse(endpoint, &body).unwrap();
        assert_eq!(request.info().max_output_tokens, limit, "{endpoint:?} {fields}");
    }
}

#[test]
fn choices_are_counted_for_each_prompt() {
    for (endpoint, fields, choices) in [
        (Endpoint::ChatCompletions, r#""n":null"#, 1),
        (Endpoint::ChatCompletions, r#""n":3"#, 3),
        (Endpoint::ChatCompletions, r#""n":-1"#, 1),
        (Endpoint::Completions, r#""prompt":"a","n":2,"best_of":5"#, 2),
        (Endpoint::Completions, r#""prompt":["a","b"],"n":2"#, 4),
        (Endpoint::Completions, r#""prompt":[1,2,3]"#, 1),
        (Endpoint::Completions, r#""prompt":[[1,2],[3]]"#, 2),
    ] {
        let body = format!(r#"{{"model":"m","messages":[],{fields}}}"#);
        assert_eq!(parse(endpoint, &body).unwrap().choices(), choices, "{endpoint:?} {fields}");
    }
}

#[test]
fn parts_of_a_body_are_limited() {
    use Endpoint::{ChatCompletions, Completions, Embeddings, Responses};
    let list = |element: &str, count: usize| vec![element; count].join(",");
    let parts = |count| format!(r#""messages":[{{"role":"a","content":[{}]}}]"#, list("{}", count));
    type Body<'a> = Box<dyn Fn(usize) -> String + 'a>;
    let bodies: [(Endpoint, Body<'_>); 8] = [
        (Completions, Box::new(|count| format!(r#""prompt":[{}]"#, list("\"\"", count)))),
        (Completions, Box::new(|count| format!(r#""prompt":[{}]"#, list("[1]", count)))),
        (Embeddings, Box::new(|count| format!(r#""input":[{}]"#, list("\"\"", count)))),
        (Endpoint::Rerank, Box::new(|count| format!(r#""documents":[{}]"#, list("{}", count)))),
        (Responses, Box::new(|count| format!(r#""input":[{}]"#, list("{}", count)))),
        (ChatCompletions, {
            let message = r#"{"role":"a"}"#;
            Box::new(move |count| format!(r#""messages":[{}]"#, list(message, count)))
        }),
        (ChatCompletions, Box::new(parts)),
        (ChatCompletions, {
            Box::new(|count| {
                let members = "\"\":0";
                format!(r#""messages":[],"x":{{{}}}"#, list(members, 5 * count))
            })
        }),
    ];
    for (endpoint, body) in &bodies {
        let parse = |count| parse(*endpoint, &format!(r#"{{"model":"m",{}}}"#, body(count)));
        let valid = parse(limits::MAX_ITEMS - 1);
        assert!(valid.is_ok(), "{endpoint:?} {:.40}", body(1));
        let error = parse(limits::MAX_ITEMS + 1).unwrap_err();
        assert!(matches!(error, BadRequest::TooMany { .. }), "{endpoint:?} {:.40}", body(1));
    }
    // Token ids take no memory, so they are not limited.
    let ids = format!(r#"{{"model":"m","prompt":[{}]}}"#, list("1", 2 * limits::MAX_ITEMS));
    let request = parse(Completions, &ids).unwrap();
    assert_eq!(request.info().prompt_tokens as usize, 4 + 2 * limits::MAX_ITEMS);
    let deep = format!(r#"{{"model":"m","x":{}{}}}"#, "[".repeat(128), "]".repeat(128));
    assert!(matches!(parse(ChatCompletions, &deep), Err(BadRequest::TooDeep { .. })));
}

/// Returns the bytes that are scanned or copied if all messages are read, in all ways.
fn work_of_reading(messages: usize) -> usize {
    let message = json!({"role": "user", "content": [{"text": "a\nb"}, {"text": "four"}]});
    let body = json!({"model": "m", "messages": vec![message; messages]}).to_string();
    json::work::counted(|| {
        let request = parse(Endpoint::ChatCompletions, &body).unwrap();
        assert_eq!(request.messages().len(), messages);
        for index in 0..messages {
            for pointer in ["", "/content", "/content/1/text"] {
                let found = request.field(&format!("/messages/{index}{pointer}"), 1000);
                assert!(matches!(found, FieldValue::Json(_)));
            }
            assert_eq!(request.text(u32::try_from(index).unwrap(), 2, 3), "bfo");
        }
    })
}

#[test]
fn reading_all_messages_takes_linear_time() {
    let (few, many) = (work_of_reading(2_000), work_of_reading(20_000));
    assert!(many <= 15 * few, "{few} bytes for 2,000 messages, {many} for 20,000");
}

/// Returns the bytes that are scanned or copied if the text of one message is read in windows.
fn work_of_windows(parts: usize) -> usize {
    let content = vec![json!({"text": "a\nb and more"}); parts];
    let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
    let request = chat(&body);
    let whole = "a\nb and more".repeat(parts);
    json::work::counted(|| {
        for offset in (0..whole.len()).step_by(100) {
            let expected = &whole[offset..whole.len().min(offset + 100)];
            assert_eq!(request.text(0, offset as u64, 100), expected);
        }
    })
}

#[test]
fn reading_a_text_in_windows_takes_linear_time() {
    let (few, many) = (work_of_windows(1_000), work_of_windows(10_000));
    assert!(many <= 15 * few, "{few} bytes for 1,000 parts, {many} for 10,000");
}

proptest! {
    #[test]
    fn windows_of_a_text_are_those_of_the_whole(
        texts in prop::collection::vec("[aé€\\n]{0,4}", 0..5),
        offset in 0_usize..20,
        max in 0_usize..20,
    ) {
        let parts: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
        let request = chat(&json!({"model": "m", "messages": [
            {"role": "user", "content": "before"},
            {"role": "user", "content": parts},
        ]}));
        let whole = texts.concat();
        prop_assert_eq!(
            request.text(1, offset as u64, max),
            pointsman_domain::char_slice(&whole, offset as u64, max)
        );
        prop_assert_eq!(request.messages()[1].text_bytes, whole.len() as u64);
    }
}

#[test]
fn deeply_nested_body_does_not_overflow_the_stack() {
    let deep = format!(
        r#"{{"model":"m","messages":[],"x":{}{}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    let request = parse(Endpoint::ChatCompletions, &deep);
    if let Ok(request) = request {
        assert!(matches!(request.field("/x", 10), FieldValue::TooLarge(_)));
        // Only has to return: whether the edit succeeds depends on the parser's depth limit.
        drop(request.apply(&[Edit::SetField("/x".into(), "1".into())]));
    }
}

#[test]
fn text_is_read_with_escapes_resolved() {
    let request = parse(
        Endpoint::ChatCompletions,
        r#"{"model":"m","messages":[{"role":"user","content":"caf\u00e9\n"}]}"#,
    )
    .unwrap();
    assert_eq!(request.text(0, 0, 100), "café\n");
    assert_eq!(request.text(0, 3, 1), "");
    assert_eq!(request.text(1, 0, 100), "");
    assert!(
        request.contains("fé", false)
            && request.contains("FÉ", false) == request.contains("FÉ", true)
    );
    assert!(
        request.contains("CAF", true)
            && !request.contains("CAF", false)
            && request.contains("", false)
    );
    let unpaired = parse(
        Endpoint::ChatCompletions,
        r#"{"model":"m","messages":[{"role":"user","content":"\ud800"}]}"#,
    )
    .unwrap();
    assert_eq!(unpaired.text(0, 0, 100), "\u{fffd}");
}

#[test]
fn fields_are_found_by_pointer_up_to_the_size_limit() {
    let request = chat(&json!({
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "a/b": {"c~d": [1, "two"]},
    }));
    for (pointer, expected) in [
        ("/a~1b/c~0d/1", FieldValue::Json("\"two\"".into())),
        ("/messages/0/role", FieldValue::Json("\"user\"".into())),
        ("/none", FieldValue::Absent),
        ("/model/x", FieldValue::Absent),
        ("", FieldValue::Absent),
        ("/a~1b", FieldValue::TooLarge(17)),
    ] {
        assert_eq!(request.field(pointer, 10), expected, "{pointer}");
    }
    assert_eq!(request.bytes(1, 7), b"\"model\"");
    assert_eq!(request.bytes(u64::MAX, 7), b"");
}

#[test]
fn credential_headers_are_removed() {
    let mut headers = HeaderMap::new();
    for name in ["authorization", "cookie", "x-api-key", "x-task"] {
        headers.insert(name, "v".parse().unwrap());
    }
    let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
    let request =
        Request::parse(Endpoint::ChatCompletions, body, Head { headers, ..Head::default() })
            .unwrap();
    assert_eq!(request.header("X-Task"), Some("v"));
    assert_eq!(request.header("authorization"), None);
    assert_eq!(request.headers().len(), 1);
    assert_eq!(RequestView::headers(&request), [("x-task", b"v".as_slice())]);
}

#[test]
fn response_model_is_the_name_that_the_client_asked_for() {
    let targets = [("alias".to_owned(), "target".to_owned())].into();
    let names = ModelNames { default: Some("fallback"), targets: &targets };
    for (model, parsed, response) in [
        (r#""model":"alias","#, "target", "alias"),
        (r#""model":"other","#, "other", "other"),
        ("", "fallback", "fallback"),
    ] {
        let body = format!(r#"{{{model}"priority":1,"messages":[]}}"#);
        let head = Head { query: "a=b".to_owned(), ..Head::default() };
        let chat = Endpoint::ChatCompletions;
        let request = Request::parse_with_names(chat, body.into(), head, names).unwrap();
        let request = request.without_operator_fields().unwrap();
        assert_eq!((request.model(), request.response_model()), (parsed, response));
        let (edited, dropped) = request.apply(&[Edit::SetModel("edited".to_owned())]);
        assert!(dropped.is_empty());
        assert_eq!((edited.model(), edited.response_model()), ("edited", response));
        assert_eq!(edited.path(true), "/v1/chat/completions?a=b");
        assert_eq!(edited.path(false), "/v1/chat/completions");
    }
}

#[test]
fn replacing_the_model_changes_nothing_else() {
    let request =
        parse(Endpoint::ChatCompletions, r#" {"x":1e5, "model" : "a", "messages":[]} "#).unwrap();
    assert_eq!(
        &request.body_with_model("b\n")[..],
        br#" {"x":1e5, "model" : "b\n", "messages":[]} "#
    );
}

#[test]
fn prompts_of_later_turns_extend_those_of_earlier_ones() {
    let hasher = PromptHasher::default();
    let index = PrefixIndex::new(1);
    let lane = LaneId(0);
    let message = |role: &str, content: Value| json!({ "role": role, "content": content });
    let long = "word ".repeat(200);
    let first = vec![message("system", json!(long)), message("user", json!("one \"quoted\""))];
    let second =
        [first.clone(), vec![message("assistant", json!("yes")), message("user", json!(long))]]
            .concat();
    let cached = |body: &Value| {
        let request = chat(body);
        index.cached_tokens(lane, request.prompt_hashes(index.hasher()))
    };
    let served = chat(&json!({ "model": "m", "messages": first }));
    index.served(lane, served.prompt_hashes(index.hasher()));
    // Other fields do not matter: temperature, stream, the order of keys.
    let turn = json!({ "messages": second, "stream": true, "model": "m", "temperature": 0.5 });
    assert!(cached(&turn) >= 200, "{}", cached(&turn));
    for other in [
        json!({ "model": "n", "messages": second }),
        json!({ "model": "m", "messages": second, "tools": [{ "type": "function" }] }),
        json!({ "model": "m", "messages": [message("user", json!(long))] }),
    ] {
        assert_eq!(cached(&other), 0, "{other}");
    }
    // Images and tool calls are part of the prompt.
    let with = |what: &str| {
        let image = json!([{ "type": "image_url", "image_url": { "url": what.repeat(200) } }]);
        let calls = json!([{ "function": { "name": "f", "arguments": what.repeat(200) } }]);
        let parts = |content, calls| {
            let call = json!({ "role": "assistant", "content": null, "tool_calls": calls });
            let body = json!({ "model": "m", "messages": [message("user", content), call] });
            chat(&body).prompt_hashes(&hasher).clone()
        };
        (parts(image, json!([])), parts(json!("x"), calls))
    };
    let (cat, dog) = (with("cat"), with("dog"));
    assert!(cat.0 != dog.0 && cat.1 != dog.1 && cat == with("cat"));
    // Other endpoints have a prompt too, but embeddings no prefix cache.
    for (endpoint, has_prompt) in
        [(Endpoint::Completions, true), (Endpoint::Responses, true), (Endpoint::Embeddings, false)]
    {
        let body = json!({ "model": endpoint.label(), "prompt": long, "input": long }).to_string();
        let request = parse(endpoint, &body).unwrap();
        let prompt = request.prompt_hashes(index.hasher());
        index.served(lane, prompt);
        assert_eq!(index.cached_tokens(lane, prompt) > 0, has_prompt, "{endpoint:?}");
    }
}
