mod blocks;

use pointsman_domain::Endpoint;

use super::*;

fn edited(endpoint: Endpoint, body: &str, edit: Edit) -> Result<String, EditError> {
    let request = Request::parse(endpoint, Bytes::from(body.to_owned()), Head::default()).unwrap();
    let (request, mut dropped) = apply(&request, &[edit]);
    dropped.pop().map_or_else(|| Ok(request.json().to_owned()), |(_, error)| Err(error))
}

fn chat(body: &str, edit: Edit) -> Result<String, EditError> {
    edited(Endpoint::ChatCompletions, body, edit)
}

const BODY: &str = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"x":1.50}"#;

#[test]
fn edits_change_only_their_target() {
    for (edit, expected) in [
        (
            Edit::SetModel("b\"".into()),
            r#"{"model":"b\"","messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
        ),
        (
            Edit::CapOutputTokens(9),
            concat!(
                r#"{"max_tokens":9,"model":"a","#,
                r#""messages":[{"role":"user","content":"hi"}],"x":1.50}"#,
            ),
        ),
        (
            Edit::SetField("/x".into(), " 2 ".into()),
            r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"x":2}"#,
        ),
        (
            Edit::SetField("/messages/0/content".into(), "\"yo\"".into()),
            r#"{"model":"a","messages":[{"role":"user","content":"yo"}],"x":1.50}"#,
        ),
        (
            Edit::RemoveField("/x".into()),
            r#"{"model":"a","messages":[{"role":"user","content":"hi"}]}"#,
        ),
        (
            Edit::PrependSystem("be \"kind\"".into()),
            concat!(
                r#"{"model":"a","messages":[{"role":"system","content":"be \"kind\""},"#,
                r#"{"role":"user","content":"hi"}],"x":1.50}"#,
            ),
        ),
    ] {
        assert_eq!(chat(BODY, edit.clone()).unwrap(), expected, "{edit:?}");
    }
}

#[test]
fn edits_that_would_break_the_request_are_rejected() {
    type Expected = fn(&EditError) -> bool;
    let rejected: [(Edit, Expected); 6] = [
        (Edit::SetField("/x".into(), "{".into()), |error| matches!(error, EditError::Value(_))),
        (Edit::SetField("".into(), "{}".into()), |error| {
            matches!(error, EditError::Pointer(PointerError::Empty))
        }),
        (Edit::SetField("/model".into(), "5".into()), |error| {
            matches!(error, EditError::InvalidRequest(BadRequest::Invalid { name: "model", .. }))
        }),
        (Edit::RemoveField("/messages".into()), |error| {
            matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "messages" }))
        }),
        (
            Edit::SetHeader("bad name".into(), "v".into()),
            |error| matches!(error, EditError::HeaderName { name, .. } if name == "bad name"),
        ),
        (
            Edit::SetHeader("x-a".into(), "a\nb".into()),
            |error| matches!(error, EditError::HeaderValue { name, .. } if name == "x-a"),
        ),
    ];
    for (edit, expected) in rejected {
        let result = chat(BODY, edit.clone());
        assert!(result.as_ref().is_err_and(expected), "{edit:?}: {result:?}");
    }
    let prompt = edited(
        Endpoint::Completions,
        r#"{"model":"a","prompt":"p"}"#,
        Edit::PrependSystem("s".into()),
    );
    assert!(matches!(prompt, Err(EditError::NotChat)), "{prompt:?}");
}

#[test]
fn replaced_body_keeps_model_and_stream() {
    let new = |body: &str| chat(BODY, Edit::ReplaceBody(body.to_owned()));
    for body in [r#" {"messages":[],"model":"a"}"#, r#"{"model":"a","messages":[],"stream":false}"#]
    {
        assert_eq!(new(body).unwrap(), body);
    }
    type Expected = fn(&EditError) -> bool;
    let rejected: [(&str, Expected); 7] = [
        ("", |error| matches!(error, EditError::InvalidRequest(BadRequest::Json(_)))),
        ("[]", |error| matches!(error, EditError::InvalidRequest(BadRequest::NotAnObject))),
        (r#"{"model":"a","messages":[]"#, |error| {
            matches!(error, EditError::InvalidRequest(BadRequest::Json(_)))
        }),
        (r#"{"model":"a","prompt":"p"}"#, |error| {
            matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "messages" }))
        }),
        (r#"{"messages":[]}"#, |error| {
            matches!(error, EditError::InvalidRequest(BadRequest::Missing { name: "model" }))
        }),
        (r#"{"model":"b","messages":[]}"#, |error| match error {
            EditError::ModelChanged { from, to } => from == "a" && to == "b",
            _ => false,
        }),
        (r#"{"model":"a","messages":[],"stream":true}"#, |error| {
            matches!(error, EditError::StreamChanged { requested: false })
        }),
    ];
    for (body, expected) in rejected {
        let result = new(body);
        assert!(result.as_ref().is_err_and(expected), "{body}: {result:?}");
    }
}

#[test]
fn output_limits_are_only_ever_lowered() {
    let body = |limits: &str| format!(r#"{{"model":"a","messages":[],{limits}}}"#);
    for (limits, expected) in [
        (r#""max_tokens":100"#, r#""max_tokens":10"#),
        (r#""max_tokens":5"#, r#""max_tokens":5"#),
        (r#""max_completion_tokens":100"#, r#""max_completion_tokens":10"#),
        (
            r#""max_tokens":100,"max_completion_tokens":7"#,
            r#""max_tokens":10,"max_completion_tokens":7"#,
        ),
        (r#""max_tokens":-1"#, r#""max_tokens":10"#),
        (r#""n_predict":-1,"max_tokens":5"#, r#""n_predict":10,"max_tokens":5"#),
        (r#""max_tokens":5,"n_predict":40"#, r#""max_tokens":5,"n_predict":10"#),
        (r#""max_tokens":100000.0"#, r#""max_tokens":10"#),
        (r#""max_tokens":1e1"#, r#""max_tokens":1e1"#),
        (r#""max_tokens":"100""#, r#""max_tokens":10"#),
        (r#""max_tokens":"5""#, r#""max_tokens":5"#),
        (r#""max_tokens":[5]"#, r#""max_tokens":10"#),
        (r#""max_tokens":50,"min_tokens":40"#, r#""max_tokens":10,"min_tokens":10"#),
        (r#""max_tokens":5,"n_predict":null"#, r#""max_tokens":5,"n_predict":null"#),
    ] {
        assert_eq!(
            chat(&body(limits), Edit::CapOutputTokens(10)).unwrap(),
            body(expected),
            "{limits}"
        );
    }
}

#[test]
fn limits_that_an_engine_ignores_are_not_the_only_ones() {
    for (endpoint, limits, expected) in [
        (Endpoint::ChatCompletions, r#""n_predict":5"#, r#""max_tokens":10,"n_predict":5"#),
        (Endpoint::Completions, r#""n_predict":50"#, r#""max_tokens":10,"n_predict":10"#),
        (
            Endpoint::Completions,
            r#""max_completion_tokens":5"#,
            r#""max_tokens":10,"max_completion_tokens":5"#,
        ),
        (Endpoint::ChatCompletions, r#""max_completion_tokens":5"#, r#""max_completion_tokens":5"#),
        (Endpoint::Responses, r#""n_predict":5"#, r#""max_output_tokens":10,"n_predict":5"#),
    ] {
        let body = |limits: &str| {
            format!(r#"{{{limits},"model":"a","messages":[],"prompt":"p","input":"i"}}"#)
        };
        let capped = edited(endpoint, &body(limits), Edit::CapOutputTokens(10));
        assert_eq!(capped.unwrap(), body(expected), "{endpoint:?} {limits}");
    }
}

#[test]
fn body_keeps_its_bytes_if_no_limit_is_lowered() {
    let body = r#" {"model":"a","messages":[],"max_tokens":1e1, "n_predict": 5, "n":3} "#;
    assert_eq!(chat(body, Edit::CapOutputTokens(10)).unwrap(), body);
    let input = r#" {"model":"a","input":"x"} "#;
    let kept = edited(Endpoint::Embeddings, input, Edit::CapOutputTokens(10));
    assert_eq!(kept.unwrap(), input);
}

#[test]
fn fields_keep_model_and_stream() {
    let stream = r#"{"model":"a","messages":[],"stream":true}"#;
    for (body, edit, is_valid) in [
        (BODY, Edit::SetField("/stream".into(), "false".into()), true),
        (BODY, Edit::SetField("/stream".into(), "null".into()), true),
        (BODY, Edit::SetField("/stream".into(), "true".into()), false),
        (BODY, Edit::RemoveField("/stream".into()), true),
        (stream, Edit::SetField("/stream".into(), "true".into()), true),
        (stream, Edit::SetField("/stream".into(), "null".into()), false),
        (stream, Edit::RemoveField("/stream".into()), false),
    ] {
        let result = chat(body, edit.clone());
        let is_refused = matches!(result, Err(EditError::StreamChanged { .. }));
        assert_eq!((result.is_ok(), is_refused), (is_valid, !is_valid), "{body} {edit:?}");
    }
    let model = |to: &str| chat(BODY, Edit::SetField("/model".into(), to.into()));
    assert!(model(r#""a""#).is_ok());
    let other = model("\"b\"");
    assert!(matches!(&other, Err(EditError::ModelChanged { to, .. }) if to == "b"), "{other:?}");
}

#[test]
fn old_messages_are_dropped_together_with_their_tool_results() {
    let body = |messages: &str| format!(r#"{{"model":"a","messages":[{messages}]}}"#);
    let message = |role: &str| format!(r#"{{"role":"{role}","content":"x"}}"#);
    let list = |roles: &[&str]| {
        body(&roles.iter().map(|role| message(role)).collect::<Vec<_>>().join(","))
    };
    for (roles, count, expected) in [
        (vec!["system", "user", "assistant", "user"], 1, vec!["system", "user"]),
        (vec!["user", "system", "user"], 1, vec!["system", "user"]),
        (vec!["user", "assistant", "tool", "tool", "assistant"], 3, vec!["user", "assistant"]),
        (vec!["user", "assistant", "tool"], 5, vec!["user", "assistant", "tool"]),
        // An agent asks for what follows from the results.
        (vec!["system", "user", "assistant", "tool", "tool"], 2, {
            vec!["system", "user", "assistant", "tool", "tool"]
        }),
        (vec!["user", "user", "assistant", "tool", "assistant", "tool"], 1, {
            vec!["user", "assistant", "tool"]
        }),
        (vec!["user", "assistant", "tool", "user"], 2, vec!["user"]),
        (vec!["user", "assistant", "tool"], 0, vec!["user"]),
        (vec!["developer", "user"], 0, vec!["developer", "user"]),
    ] {
        assert_eq!(
            chat(&list(&roles), Edit::KeepLastMessages(count)).unwrap(),
            list(&expected),
            "{roles:?}, {count}"
        );
    }
}

mod conversations {
    //! After any edit, the result of a tool has its call, and the last message of the user is left.

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Returns the messages of turns: of a user, of an agent with calls and their results, or of
    /// the system.
    fn messages() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::vec((0..6_usize, 0..3_usize), 1..10).prop_map(|turns| {
            let mut messages = Vec::new();
            for (turn, (kind, results)) in turns.into_iter().enumerate() {
                let id = |call: usize| format!("{turn}-{call}");
                match kind {
                    0 => messages.push(json!({"role": "system", "content": turn.to_string()})),
                    1 | 2 => messages.push(json!({"role": "user", "content": turn.to_string()})),
                    3 => messages.push(json!({"role": "assistant", "content": turn.to_string()})),
                    _ => {
                        let calls: Vec<Value> =
                            (0..=results).map(|call| json!({"id": id(call)})).collect();
                        messages.push(json!({"role": "assistant", "content": null,
                            "tool_calls": calls}));
                        messages.extend((0..=results).map(|call| {
                            json!({"role": "tool", "tool_call_id": id(call), "content": "x"})
                        }));
                    }
                }
            }
            messages
        })
    }

    fn ids<'a>(messages: &'a [Value], role: &str) -> Vec<&'a str> {
        let of_role = messages.iter().filter(|message| message["role"] == role);
        let ids = of_role.flat_map(|message| {
            let calls = message["tool_calls"].as_array().into_iter().flatten();
            calls.map(|call| &call["id"]).chain([&message["tool_call_id"]])
        });
        let mut ids: Vec<&str> = ids.filter_map(Value::as_str).collect();
        ids.sort_unstable();
        ids
    }

    fn last_user(messages: &[Value]) -> Option<&Value> {
        messages.iter().rev().find(|message| message["role"] == "user")
    }

    proptest! {
        #[test]
        fn edits_keep_a_conversation_whole(
            before in messages(),
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
            let head = Head::default();
            let request = Request::parse(Endpoint::ChatCompletions, body.into(), head).unwrap();
            let (edited, _) = request.apply(&edits);
            let after: Value = serde_json::from_slice(edited.body()).unwrap();
            let after = after["messages"].as_array().unwrap();
            prop_assert_eq!(ids(after, "assistant"), ids(after, "tool"));
            prop_assert_eq!(last_user(after), last_user(&before));
        }
    }
}

mod one_by_one {
    //! Applying edits at once gives the same as applying them one by one, where each result is
    //! parsed in full, in bounded time.

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::json::work::counted;

    const POINTERS: &[&str] = &[
        "/model",
        "/stream",
        "/x",
        "/x/y",
        "/max_tokens",
        "/tools",
        "/tools/-",
        "/messages",
        "/messages/-",
        "/messages/0",
        "/messages/1",
        "/messages/9",
        "/messages/0/role",
        "/messages/0/name",
        "/messages/0/content",
        "/messages/1/content/0",
        "/messages/1/content/-",
        "/messages/1/content/0/text",
        "/messages/1/role/x",
        "/messages/1/content/0/content",
        "/messages/1/content/0/content/0",
        "/system",
        "/system/0",
        "/system/-",
        "/prompt",
        "/prompt/0",
        "/prompt/-",
        "/query",
        "/documents",
        "/documents/-",
        "/documents/1/text",
        "/prompt/0/0",
        "/input",
        "/input/0",
        "/input/0/content",
        "/instructions",
        "/input/-",
        "",
        "x",
    ];
    const VALUES: &[&str] = &[
        "null",
        "true",
        "5",
        "-5",
        "\"text\"",
        " \"padded\" ",
        "[]",
        "{}",
        "[1,2]",
        "[[1], [2]]",
        "[\"a\", \"b\"]",
        "{",
        "{\"y\": 1}",
        "{\"role\":\"user\"}",
        "{\"role\":null}",
        "{\"role\":\"user\",\"content\":[5]}",
        "[{\"role\":\"tool\",\"content\":\"r\"}]",
        "{\"role\":\"user\",\"role\":\"tool\"}",
        "{\"type\":\"text\",\"text\":\"t\"}",
        "{\"type\":\"tool_result\",\"content\":[[]]}",
        "{\"type\":\"tool_result\",\"content\":[{\"text\":\"t\"}]}",
        "[\"user\",\"x\"]",
        "{\"\\ud800\":1}",
    ];
    const BODIES: &[&str] = &[
        r#"{"model":"a","system":[{"type":"text","text":"s"}],"messages":[{"role":"user",
            "content":"hi"},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t",
            "content":[{"type":"text","text":"r"}]}]}]}"#,
        r#"{"model":"a","system":"s","messages":[{"role":"assistant","content":[
            {"type":"tool_use","id":"t"}]},{"role":"user","content":[
            {"type":"tool_result","tool_use_id":"t","content":"r"}]}]}"#,
        r#" {"model":"a","messages":[{"role":"user","content":"hi"},
            {"role":"tool","content":[{"text":"p"}]}],"x":{ } } "#,
        r#"{ "model" : "a" , "messages" : [ ] , "max_tokens":100, "input":["i"] }"#,
        r#"{"model":"a","prompt":["p",[1, 2],3],"messages":null,"input":{},"stream":true}"#,
        r#"{"model":"a","query":"q","documents":["d",{"text":"t"}],"top_n":1,"prompt":[1,"p"]}"#,
        r#"{"prompt":"p","model":"a","input":[{"role":"user","content":"hi"}],"messages":[{}]}"#,
    ];

    fn any_edit() -> impl Strategy<Value = Edit> {
        let (pointer, value) = (prop::sample::select(POINTERS), prop::sample::select(VALUES));
        prop_oneof![
            4 => (pointer.clone(), value.clone())
                .prop_map(|(pointer, value)| Edit::SetField(pointer.into(), value.into())),
            2 => pointer.prop_map(|pointer| Edit::RemoveField(pointer.into())),
            1 => Just(Edit::SetModel("b\"".into())),
            1 => (0u32..9).prop_map(Edit::CapOutputTokens),
            1 => Just(Edit::PrependSystem("s".into())),
            1 => (0u32..3).prop_map(Edit::KeepLastMessages),
            1 => Just(Edit::SetHeader("x-a".into(), "v".into())),
            1 => Just(Edit::SetHeader("authorization".into(), "v".into())),
            1 => Just(Edit::RemoveHeader("x-b".into())),
            1 => value.prop_map(|body| Edit::ReplaceBody(body.into())),
            1 => prop::sample::select(BODIES).prop_map(|body| Edit::ReplaceBody(body.into())),
        ]
    }

    fn indices(dropped: &[(usize, EditError)]) -> Vec<usize> {
        dropped.iter().map(|(index, _)| *index).collect()
    }

    /// Returns true if a pointer refers to a message, whose removal has a rule of its own.
    fn is_message(pointer: &str) -> bool {
        pointer.strip_prefix("/messages/").is_some_and(|index| !index.contains('/'))
    }

    /// Applies one edit without the rules of `check_field`: the parser alone decides.
    fn apply_and_parse(request: &Request, edit: &Edit) -> Option<Request> {
        let mut body = Node::new(request.json().trim_ascii());
        match edit {
            Edit::SetField(pointer, value) => {
                serde_json::from_str::<serde::de::IgnoredAny>(value).ok()?;
                body.set(&json::tokens(pointer).ok()?, value.trim_ascii().into()).ok()?;
            }
            Edit::RemoveField(pointer) if !is_message(pointer) => {
                body.remove(&json::tokens(pointer).ok()?).ok()?;
            }
            other => {
                let (edited, dropped) = apply(request, std::slice::from_ref(other));
                return dropped.is_empty().then_some(edited);
            }
        }
        let edited =
            Request::parse(request.endpoint(), body.write().into(), request.head().clone()).ok()?;
        let keeps_model = edited.model() == request.model();
        (keeps_model && edited.streaming() == request.streaming()).then_some(edited)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn edits_at_once_equal_edits_one_by_one(
            edits in prop::collection::vec(any_edit(), 0..8),
            body in prop::sample::select(BODIES),
            endpoint in prop::sample::select(&[
                Endpoint::ChatCompletions,
                Endpoint::Messages,
                Endpoint::Completions,
                Endpoint::Responses,
                Endpoint::Embeddings,
                Endpoint::Rerank,
                Endpoint::Tokenize,
                Endpoint::Other,
            ]),
        ) {
            let mut head = Head::default();
            head.headers.insert("x-b", "v".parse().unwrap());
            let Ok(request) = Request::parse(endpoint, Bytes::from(body), head) else {
                return Ok(());
            };
            let mut expected = request.clone();
            let mut expected_dropped = Vec::new();
            for (index, edit) in edits.iter().enumerate() {
                match apply_and_parse(&expected, edit) {
                    Some(edited) => expected = edited,
                    None => expected_dropped.push(index),
                }
            }
            let fallbacks = super::super::FALLBACKS.get();
            let (edited, dropped) = apply(&request, &edits);
            prop_assert_eq!(edited.json(), expected.json());
            prop_assert_eq!(indices(&dropped), expected_dropped);
            prop_assert_eq!(edited.headers(), expected.headers());
            prop_assert_eq!(edited.info(), expected.info());
            prop_assert_eq!(edited.messages(), expected.messages());
            prop_assert_eq!(super::super::FALLBACKS.get(), fallbacks, "edits were applied again");
        }
    }

    /// A chat of about a megabyte.
    fn large() -> Request {
        let messages: Vec<Value> = (0..100)
            .map(|index| {
                let text = "some words ".repeat(950);
                match index % 2 {
                    0 => json!({"role": "user", "content": text}),
                    _ => json!({
                        "role": "assistant",
                        "content": [{"type": "text", "text": text}],
                    }),
                }
            })
            .collect();
        let body = json!({"model": "a", "messages": messages}).to_string();
        assert!(body.len() > 1_000_000);
        Request::parse(Endpoint::ChatCompletions, Bytes::from(body), Head::default()).unwrap()
    }

    #[test]
    fn sixteen_edits_work_at_most_twice_as_much_as_one() {
        let request = large();
        let set = |pointer: &str| Edit::SetField(pointer.into(), "\"v\"".into());
        let edits = [
            Edit::SetModel("b".into()),
            set("/x"),
            Edit::CapOutputTokens(5),
            set("/metadata"),
            Edit::PrependSystem("s".into()),
            set("/messages/1/content"),
            Edit::RemoveField("/x".into()),
            Edit::KeepLastMessages(99),
            set("/messages/5/name"),
            set("/messages/9/content/0/text"),
            Edit::PrependSystem("t".into()),
            // Dropped: a role is required.
            Edit::RemoveField("/messages/3/role".into()),
            Edit::SetHeader("x-a".into(), "v".into()),
            set("/messages/80/name"),
            Edit::KeepLastMessages(98),
            Edit::RemoveField("/messages/7/content/0".into()),
        ];
        let work = |edits: &[Edit]| counted(|| drop(apply(&request, edits)));
        let one = work(&edits[..1]);
        let all = work(&edits);
        assert!(all <= 2 * one, "{all} bytes for {}, {one} for one", edits.len());
        for edit in &edits {
            let one = work(std::slice::from_ref(edit));
            let sixteen = work(&vec![edit.clone(); 16]);
            assert!(sixteen <= 2 * one, "{edit:?}: {sixteen} bytes for 16, {one} for one");
        }
        let (_, dropped) = apply(&request, &edits);
        assert_eq!(indices(&dropped), [11]);
    }

    #[test]
    fn many_members_are_edited_in_one_pass() {
        let members: Vec<String> = (0..60_000).map(|number| format!("\"k{number}\":0")).collect();
        let body = format!("{{\"model\":\"a\",\"messages\":[],{}}}", members.join(","));
        let request =
            Request::parse(Endpoint::ChatCompletions, Bytes::from(body), Head::default()).unwrap();
        let edits: Vec<Edit> =
            (0..32).map(|number| Edit::SetField(format!("/k{number}00"), "1".into())).collect();
        let one = counted(|| drop(apply(&request, &edits[..1])));
        let all = counted(|| drop(apply(&request, &edits)));
        assert!(all <= 2 * one, "{all} bytes for 32 edits, {one} for one");
    }

    #[test]
    fn headers_are_edited_without_reading_the_body() {
        let request = large();
        let edits = [
            Edit::SetHeader("x-a".into(), "v".into()),
            Edit::RemoveHeader("x-b".into()),
            Edit::SetHeader("bad name".into(), "v".into()),
        ];
        assert_eq!(counted(|| drop(apply(&request, &edits))), 0);
        let (edited, dropped) = apply(&request, &edits);
        assert_eq!(edited.body(), request.body());
        assert_eq!(edited.header("x-a"), Some("v"));
        assert_eq!(indices(&dropped), [2]);
    }
}
