use std::sync::Arc;

use pointsman_domain::{
    Advice, Edit, FallbackAdvice, FallbackStep, LaneId, Note, PolicyRef, QueueAdvice, Read, Scalar,
    Triggers,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tests::fixtures;
use crate::{DecisionRecord, Record, RequestRecord};

fn rules(text: Rule, tenant: Rule) -> Redact {
    Redact {
        text,
        tenant,
        state: text,
        headers: vec!["x-forwarded-for".to_owned()],
        fields: vec!["/metadata".to_owned(), "/tools/*/function/name".to_owned()],
        key: Key::from_secret("test"),
    }
}

fn redacted(rules: &Redact, body: &Value) -> Value {
    let mut value = body.clone();
    rules.json(&mut value, &mut Vec::new());
    value
}

#[test]
fn texts_are_redacted_and_structure_is_kept() {
    let body = json!({
        "model": "auto",
        "stream": true,
        "temperature": 0.5,
        "user": "u-17",
        "metadata": { "ticket": 17 },
        "messages": [
            { "role": "user", "content": "hello" },
            { "role": "secret0a0a", "content": [{ "type": "text", "text": "hello" }] },
        ],
        "prompt": [[1, 2, 3], [4]],
        "tokens": [5, 6],
        "tools": [{ "type": "function", "function": { "name": 5, "description": "d" } }],
        "type": "not at a known place",
    });
    let hash = rules(Rule::Hash, Rule::Keep);
    let hello = hash.redacted(Rule::Hash, "hello");
    assert!(
        hello.starts_with("redacted:5:")
            && hello.len() == "redacted:5:".len() + 16
            && is_redacted(&hello)
    );
    let after = redacted(&hash, &body);
    assert_eq!(after["messages"][0], json!({ "role": "user", "content": hello }));
    assert_eq!(
        after["messages"][1]["content"][0],
        json!({ "type": "text", "text": hello }),
        "equal texts have equal hashes"
    );
    for (kept, value) in [
        ("/model", json!("auto")),
        ("/stream", json!(true)),
        ("/temperature", json!(0.5)),
        ("/tools/0/type", json!("function")),
    ] {
        assert_eq!(after.pointer(kept), Some(&value));
    }
    for pointer in [
        "/user",
        "/metadata",
        "/messages/1/role",
        "/prompt/0",
        "/prompt/1",
        "/tokens",
        "/tools/0/function/name",
        "/tools/0/function/description",
        "/type",
    ] {
        let value = after.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(is_redacted(value), "{pointer}: {value}");
    }
    let dropped = redacted(&rules(Rule::Drop, Rule::Keep), &body);
    assert_eq!(dropped["messages"][0]["content"], "redacted:5");
    assert_eq!(dropped["metadata"], "redacted:13");
    let kept = redacted(&rules(Rule::Keep, Rule::Keep), &body);
    assert_eq!(
        (&kept["user"], &kept["messages"], &kept["prompt"]),
        (&body["user"], &body["messages"], &body["prompt"])
    );
    assert!(is_redacted(kept["metadata"].as_str().unwrap()), "listed fields are always redacted");
}

#[test]
fn hashes_depend_on_the_key() {
    let hash_with = |secret| {
        Redact { key: Key::from_secret(secret), ..rules(Rule::Hash, Rule::Keep) }
            .redacted(Rule::Hash, "x")
    };
    assert_eq!(hash_with("a"), hash_with("a"));
    assert_ne!(hash_with("a"), hash_with("b"));
    assert_ne!(Key::random().unwrap(), Key::random().unwrap());
    assert_eq!(format!("{:?}", Key::from_secret("a")), "Key");
}

#[test]
fn headers_that_suggest_a_secret_are_never_written() {
    let nothing = Redact::nothing(Key::from_secret("test"));
    for (name, rule) in [
        ("X-Auth-Token", Rule::Hash),
        ("ocp-apim-subscription-key", Rule::Hash),
        ("set-cookie", Rule::Hash),
        ("user-agent", Rule::Keep),
        ("x-forwarded-for", Rule::Keep),
    ] {
        assert_eq!(nothing.rule_for_header(name), rule, "{name}");
    }
    assert_eq!(rules(Rule::Drop, Rule::Keep).rule_for_header("X-Forwarded-For"), Rule::Drop);
    let all = Redact { headers: vec!["*".to_owned()], ..nothing };
    assert_eq!(all.rule_for_header("user-agent"), Rule::Hash);
}

#[test]
fn bodies_without_redacted_fields_are_kept_byte_for_byte() {
    let body = "{ \"model\":\"auto\",\n\"messages\":[ {\"role\":\"user\",\"content\":\"hi\"} ] }";
    let with = |rules: &Redact, body: &str| {
        let request = RequestRecord { headers: Vec::new(), body: Some(body.to_owned()) };
        let mut record = DecisionRecord { request: Some(request), ..fixtures::plain("a") };
        rules.apply(&mut record);
        record.request.unwrap().body.unwrap()
    };
    assert_eq!(with(&rules(Rule::Keep, Rule::Keep), body), body);
    assert!(!with(&rules(Rule::Hash, Rule::Keep), body).contains("hi"));
    assert!(!with(&rules(Rule::Hash, Rule::Keep), "{ secret, not JSON").contains("secret"));
}

#[test]
fn tenant_is_replaced_where_it_is_a_whole_word() {
    for (text, after) in [
        ("quota:acme:day", Some("quota:T:day")),
        ("acme", Some("T")),
        ("acme acme, acme!", Some("T T, T!")),
        ("acmeology", None),
        ("other", None),
    ] {
        assert_eq!(replace_word(text, "acme", "T").as_deref(), after, "{text}");
    }
}

/// Returns a record with a secret and a tenant in every field that may contain text of a request.
#[expect(clippy::too_many_lines, reason = "one record, written out")]
fn record_with(secret: &str, tenant: &str) -> DecisionRecord {
    let body = json!({
        "model": "auto",
        "messages": [
            { "role": "user", "content": secret },
            { "role": secret, "content": [{ "type": "text", "text": secret }] },
        ],
        "metadata": { "deep": [[{ "x": secret }]] },
        "prompt": secret,
        "tool_choice": { "type": "function", "function": { "name": secret } },
    });
    let text = body.to_string();
    let read = |call: &str, with: Value, gave: Value| Read {
        call: call.to_owned(),
        with: with.as_array().cloned().unwrap_or_default(),
        gave,
    };
    let edits = vec![
        Edit::SetField("/messages/0/content".to_owned(), json!(secret).to_string()),
        Edit::SetField("/user".to_owned(), format!("{{ {secret}")),
        Edit::PrependSystem(secret.to_owned()),
        Edit::ReplaceBody(text.clone()),
        Edit::SetHeader("x-api-token".to_owned(), secret.to_owned()),
        Edit::SetHeader("x-tenant".to_owned(), format!("for {tenant}.")),
    ];
    let flow =
        || Some(QueueAdvice { flow: Some(format!("{tenant}/batch")), ..QueueAdvice::default() });
    let step = FallbackStep { lane: LaneId(0), edits: edits.clone() };
    let fallback =
        || Some(FallbackAdvice { on: Triggers::ALL, steps: vec![step.clone()], first_token: None });
    let note =
        Note { key: "why".to_owned(), value: Scalar::Text(format!("{tenant}: has a quota")) };
    let mut record = fixtures::full();
    record.tenant = Some(tenant.into());
    if let Some(outcome) = &mut record.outcome {
        outcome.tenant = Some(tenant.into());
    }
    let call = &mut record.consulted[0];
    call.note = Some(format!("no advice for {tenant}"));
    call.reads = vec![
        read("request.text", json!([0, 0, 100]), json!(secret)),
        read("request.body", json!([0, 100]), json!({ "text": text })),
        read(
            "request.field",
            json!(["/messages/0/content", 100]),
            json!({ "json": json!(secret).to_string() }),
        ),
        read("request.field", json!(["", 100]), json!({ "json": text })),
        read(
            "request.field",
            json!(["/metadata/deep", 100]),
            json!({ "json": body["metadata"]["deep"].to_string() }),
        ),
        read("request.header", json!(["x-forwarded-for"]), json!(secret)),
        read("request.tenant", json!([]), json!(tenant)),
        read("request.key-group", json!([]), json!(format!("{tenant}-group"))),
        read("request.key-name", json!([]), json!(format!("k_{tenant}"))),
        read("state.get", json!([format!("of k_{tenant}")]), json!(null)),
        read("request.prefix-hashes", json!([1, 4]), json!([471_147_114_711_471_147_u64])),
        read("state.get", json!([format!("quota:{tenant}")]), json!({ "text": secret })),
        read("state.put", json!(["k", { "text": secret }, 0]), json!({ "ok": null })),
        read("request.hash_with-a-later-contract", json!([]), json!([{ "x": secret }])),
    ];
    call.advice = Some(Advice {
        queue: flow(),
        fallback: fallback(),
        edits: edits.clone(),
        notes: vec![note.clone()],
        ..Advice::default()
    });
    let mut after_failure = call.clone();
    let retry = FallbackStep { lane: LaneId(0), edits: edits.clone() };
    after_failure.note =
        Some(serde_json::to_string(&pointsman_domain::Recovery::Retry(retry)).unwrap());
    record.consulted.push(after_failure);
    let merged = Arc::make_mut(&mut record.merged);
    merged.queue = flow();
    merged.fallback = fallback();
    merged.edits = edits;
    merged.notes = vec![(PolicyRef::new("p", "1"), note)];
    if let pointsman_domain::Decision::Route(plan) = &mut record.decision {
        plan.flow = Some(tenant.to_owned());
        plan.steps[0].edits = vec![Edit::PrependSystem(secret.to_owned())];
    }
    record.request = Some(RequestRecord {
        headers: vec![
            ("x-session-id".to_owned(), secret.to_owned()),
            ("x-team".to_owned(), tenant.to_owned()),
        ],
        body: Some(text),
    });
    record
}

proptest! {
    #[test]
    fn redacted_values_do_not_reach_the_line(
        secret in "SECRET[a-z0-9 \"\\\\\n\u{e9}]{4,40}",
        tenant in "TENANT[a-z0-9-]{1,20}[a-z0-9]",
        drop in any::<bool>(),
    ) {
        let rule = if drop { Rule::Drop } else { Rule::Hash };
        let mut record = record_with(&secret, &tenant);
        let before = Record::Decision(Box::new(record.clone())).to_line().unwrap();
        let secrets = String::from_utf8_lossy(&before).matches("SECRET").count();
        prop_assert!(secrets >= 20, "the record contains the secret in {secrets} places");
        rules(rule, rule).apply(&mut record);
        let line = Record::Decision(Box::new(record)).to_line().unwrap();
        let line = String::from_utf8(line).unwrap();
        prop_assert!(!line.contains("SECRET"), "{line}");
        prop_assert!(!line.contains("TENANT"), "{line}");
        let hash = "471147114711471147";
        prop_assert!(!line.contains(hash), "hashes of single bytes reveal the text: {line}");
    }

    #[test]
    fn arbitrary_records_can_be_redacted(
        mut record in fixtures::decision(),
        secret in any::<String>(),
    ) {
        let rules = Redact { key: Key::from_secret(&secret), ..rules(Rule::Hash, Rule::Hash) };
        rules.apply(&mut record);
        let once = record.clone();
        prop_assert!(Record::Decision(Box::new(record)).to_line().is_ok());
        prop_assert_eq!(once.fleet.len(), 1);
    }
}
