//! Components that were built for vLLM Router, at work here without a change.

use std::fs;

use pointsman_tests::client::{Reply, chat, send};
use pointsman_tests::guests::{build, middleware};
use pointsman_tests::host::{Host, program};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const ALL: &str = "[allow]\nbody = true\nheaders = [\"x-set\", \"x-bad\", \"x-old\", \"x-gone\", \"authorization\", \"host\", \"content-length\"]";

/// A host with these middlewares as its policies and one lane, whose engine tells what it got.
fn host(guests: &[(&str, Vec<u8>)], manifest: &str, link: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let mut config = String::from("[policies]\n");
    for (name, component) in guests {
        let folder = dir.path().join("policies").join(name);
        fs::create_dir_all(&folder).unwrap();
        let head =
            format!("name = {name:?}\nversion = \"1\"\napi = \"vllm-router-middleware-0.1\"\n");
        fs::write(folder.join("policy.toml"), head + manifest).unwrap();
        fs::write(folder.join("policy.wasm"), component).unwrap();
        config += &format!("[[policies.chain]]\nname = {name:?}\n{link}\n");
    }
    let engine = lane("a", &["a"], &["--script", r#"{"echo": true}"#]);
    Host::start_in(&program(FAKE_ENGINE), dir, &(config + &engine), &[]).ready()
}

fn one(name: &str, manifest: &str) -> Host {
    host(&[(name, middleware(name))], manifest, "")
}

fn ask_with(host: &Host, headers: &[(&str, &str)], body: &Value) -> Reply {
    let headers = [&[("content-type", "application/json")], headers].concat();
    send(host.port, "POST", CHAT, &headers, body.to_string().as_bytes())
}

fn ask(host: &Host) -> Reply {
    ask_with(host, &[], &chat("a", json!({})))
}

/// The body that came to the engine.
fn arrived(reply: &Reply) -> Value {
    serde_json::from_str(reply.json()["body"].as_str().unwrap()).unwrap()
}

fn dropped(host: &Host, what: &str) -> f64 {
    host.metric("pointsman_policy_advice_dropped_total", &format!("what=\"{what}"))
}

#[test]
fn a_middleware_lets_requests_go_on() {
    let host = one("continue", "");
    let reply = ask(&host);
    assert_eq!((reply.status, arrived(&reply)), (200, chat("a", json!({}))));
    assert!(reply.header("x-pointsman-policy").unwrap().starts_with("continue@1+"));
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"ok\""), 1.0);
    host.assert_nothing_lost();
}

#[test]
fn it_refuses_requests_with_the_statuses_that_policies_have() {
    for (name, status, invalid) in
        [("reject-429", 429, 0.0), ("reject-500", 503, 0.0), ("reject-200", 403, 1.0)]
    {
        let host = one(name, "");
        let reply = ask(&host);
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (status, &json!("rejected_by_policy"))
        );
        assert_eq!(dropped(&host, "reject-status"), invalid, "{name}");
        host.assert_nothing_lost();
    }
}

#[test]
fn it_changes_the_headers_that_it_may() {
    let host = one("headers", ALL);
    let sent = [("x-old", "one"), ("x-old", "two"), ("x-gone", "v"), ("x-stays", "v")];
    let reply = ask_with(&host, &sent, &chat("a", json!({})));
    let headers = &reply.json()["headers"];
    assert_eq!((&headers["x-set"], &headers["x-old"]), (&json!("1"), &json!("one, two, added")));
    assert_eq!((&headers["x-stays"], headers.get("x-gone")), (&json!("v"), None));
    assert_eq!((headers.get("authorization"), headers.get("x-bad")), (None, None));
    assert_ne!(headers["host"], "1");
    assert_eq!(arrived(&reply), chat("a", json!({})), "its length is what it was");
    // Three that nobody may set, and one value that may not stand in a header.
    assert_eq!(dropped(&host, "set-header"), 4.0, "{}", host.log());
    // Without leave it changes nothing.
    let strict = one("headers", "");
    let headers = ask_with(&strict, &sent, &chat("a", json!({}))).json()["headers"].clone();
    assert_eq!((headers.get("x-set"), &headers["x-gone"]), (None, &json!("v")));
    assert_eq!((dropped(&strict, "set-header"), dropped(&strict, "remove-header")), (6.0, 1.0));
}

#[test]
fn it_never_sees_credentials() {
    let host = one("count-headers", "");
    let count = |headers: &[(&str, &str)]| ask_with(&host, headers, &chat("a", json!({}))).status;
    let base = count(&[]);
    assert!(base > 400);
    assert_eq!(count(&[("x-one", "v"), ("x-one", "v")]), base + 2);
    assert_eq!(count(&[("authorization", "Bearer k"), ("cookie", "c"), ("x-api-key", "k")]), base);
}

#[test]
fn it_puts_another_body_in_place_where_its_manifest_allows_it() {
    let asked = chat("a", json!({ "temperature": 1 }));
    let host = one("temperature", ALL);
    let seen = arrived(&ask_with(&host, &[], &asked));
    assert_eq!(
        (&seen["temperature"], &seen["messages"][0]["content"]),
        (&json!(0), &json!("other"))
    );
    // What the client asked for as such stays: a stream stays a stream.
    let reply = ask_with(&host, &[], &chat("a", json!({ "stream": true })));
    assert_eq!((reply.status, dropped(&host, "replace-body")), (200, 1.0), "{}", reply.text());
    host.assert_nothing_lost();
    let strict = one("temperature", "[allow]\nfields = [\"\"]\nmodel = true\nsystem = true\n");
    assert_eq!(arrived(&ask_with(&strict, &[], &asked)), asked);
    assert_eq!(dropped(&strict, "replace-body"), 1.0);
}

#[test]
fn a_body_that_is_no_request_is_left_out_and_the_rest_applies() {
    for (name, header) in [("garbage", Some("done")), ("binary", None)] {
        let host = one(name, ALL);
        let reply = ask(&host);
        assert_eq!((reply.status, arrived(&reply)), (200, chat("a", json!({}))), "{name}");
        assert_eq!(reply.json()["headers"].get("x-set").and_then(Value::as_str), header);
        assert_eq!(dropped(&host, "replace-body"), 1.0, "{name}");
        assert_eq!(host.metric("pointsman_policy_faults_total", ""), 0.0);
        host.assert_nothing_lost();
    }
}

/// The body goes in and comes back whole, and again: the second guest frees nothing, and is replaced before it has no room.
#[test]
fn long_bodies_go_through() {
    for name in ["echo", "leaky-echo"] {
        let host = one(name, &format!("{ALL}\n[limits]\nmemory = \"16MiB\"\ndeadline = \"100ms\""));
        let long = chat("a", json!({ "user": "ä".repeat(500_000) }));
        for round in 0..25 {
            let reply = ask_with(&host, &[], &long);
            assert_eq!(reply.status, 200, "{name}, {round}: {}", reply.text());
            assert!(arrived(&reply) == long, "{name}, {round}");
        }
        assert_eq!(
            host.metric("pointsman_policy_calls_total", "result=\"ok\""),
            25.0,
            "{}",
            host.log()
        );
        assert_eq!(
            (host.metric("pointsman_policy_faults_total", ""), dropped(&host, "")),
            (0.0, 0.0)
        );
    }
}

#[test]
fn a_body_beyond_its_memory_is_a_fault_of_the_middleware() {
    let host = one("continue", "[limits]\nmemory = \"4MiB\"");
    let long = chat("a", json!({ "user": "x".repeat(5 << 20) }));
    let reply = ask_with(&host, &[], &long);
    assert!(reply.status == 200 && arrived(&reply) == long);
    assert_eq!(
        host.metric("pointsman_policy_faults_total", "kind=\"memory\""),
        1.0,
        "{}",
        host.log()
    );
}

#[test]
fn one_that_traps_is_dealt_with_as_the_operator_says() {
    for (mode, status) in [("skip", 200), ("refuse", 503)] {
        let host = host(&[("trap", middleware("trap"))], "", &format!("on-error = {mode:?}"));
        let reply = ask(&host);
        assert_eq!(reply.status, status, "{mode}: {}", reply.text());
        assert_eq!(host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 1.0);
        host.assert_nothing_lost();
    }
}

#[test]
fn later_middlewares_see_what_earlier_ones_made() {
    let guests = ["temperature", "echo"].map(|name| (name, middleware(name)));
    let host = host(&guests, ALL, "");
    let seen = arrived(&ask(&host));
    assert_eq!(seen["messages"][0]["content"], "other");
}

/// As much of WASI as is harmless is there, and the rest traps.
#[test]
fn the_world_outside_is_the_decision() {
    let host = one("random", "");
    let with_id = |id: &str| ask_with(&host, &[("x-request-id", id)], &chat("a", json!({}))).status;
    let ids: Vec<String> = (0..12).map(|number| format!("request-{number}")).collect();
    let luck: Vec<u16> = ids.iter().map(|id| with_id(id)).collect();
    assert!(luck.iter().all(|status| (400..490).contains(status)), "{luck:?}");
    assert!(
        luck.iter().any(|status| *status != luck[0]),
        "the numbers differ from request to request"
    );
    assert_eq!(
        luck,
        ids.iter().map(|id| with_id(id)).collect::<Vec<_>>(),
        "and only from request to request"
    );

    let guests = ["print", "connect"].map(|name| (name, middleware(name)));
    let host = self::host(&guests, "", "");
    assert_eq!(ask(&host).status, 200);
    assert_eq!(host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 2.0);
    let log = host.log();
    for part in ["it is", "the last word", "wasi:sockets/tcp-create-socket@0.2.3#create-tcp-socket"]
    {
        assert!(log.lines().any(|line| line.contains(part)), "{part}: {log}");
    }
}

#[test]
fn what_is_no_middleware_is_not_loaded_and_told_so() {
    let no_middleware =
        "it imports `pointsman:policy/types@0.1.0`, and a vLLM Router middleware may";
    let table: [(&str, Vec<u8>, &str, &str); 3] = [
        (
            "foreign",
            middleware("foreign"),
            "",
            "it imports `test:other/thing@1.0.0`, and a vLLM Router middleware may",
        ),
        ("no-opinion", build("no-opinion"), "", no_middleware),
        ("continue", middleware("continue"), "config = { limit = 5 }", "has no configuration"),
    ];
    for (name, component, link, part) in table {
        let host = host(&[(name, component)], "", link);
        let status = host.status();
        let policy = &status["policies"][0];
        let error = policy["error"]["what"].as_str().unwrap_or("none");
        assert!(policy["state"] == "failed" && error.contains(part), "{name}: {error}");
        assert_eq!(ask(&host).status, 200);
    }
}
