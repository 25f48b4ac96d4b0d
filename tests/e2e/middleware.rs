//! Middleware components that were built for vLLM Router run unchanged as policies.

use std::fs;

use pointsman_tests::client::{Response, chat, send};
use pointsman_tests::guests::{build, middleware};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const ALL: &str = "[allow]\nbody = true\nheaders = [\"x-set\", \"x-bad\", \"x-old\", \"x-gone\", \
    \"authorization\", \"host\", \"content-length\"]";

/// Starts a host with these middlewares as its policies and one lane, whose engine echoes requests.
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
    Host::start_in(&program(FAKE_ENGINE), dir, &(config + &engine), &[]).wait_until_ready()
}

fn single(name: &str, manifest: &str) -> Host {
    host(&[(name, middleware(name))], manifest, "")
}

fn send_with_headers(host: &Host, headers: &[(&str, &str)], body: &Value) -> Response {
    let headers = [&[("content-type", "application/json")], headers].concat();
    send(host.port, "POST", CHAT, &headers, body.to_string().as_bytes())
}

fn send_chat(host: &Host) -> Response {
    send_with_headers(host, &[], &chat("a", json!({})))
}

/// Returns the request body that the engine received.
fn engine_body(response: &Response) -> Value {
    serde_json::from_str(response.json()["body"].as_str().unwrap()).unwrap()
}

fn dropped(host: &Host, part: &str) -> f64 {
    host.metric("pointsman_policy_advice_dropped_total", &format!("part=\"{part}"))
}

#[test]
fn middleware_continues_request() {
    let host = single("continue", "");
    let response = send_chat(&host);
    assert_eq!((response.status, engine_body(&response)), (200, chat("a", json!({}))));
    assert!(response.header("x-pointsman-policy").unwrap().starts_with("continue@1+"));
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"ok\""), 1.0);
    host.assert_no_request_lost();
}

#[test]
fn middleware_rejects_with_allowed_statuses() {
    for (name, status, invalid) in
        [("reject-429", 429, 0.0), ("reject-500", 503, 0.0), ("reject-200", 403, 1.0)]
    {
        let host = single(name, "");
        let response = send_chat(&host);
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (status, &json!("rejected_by_policy"))
        );
        assert_eq!(dropped(&host, "reject-status"), invalid, "{name}");
        host.assert_no_request_lost();
    }
}

#[test]
fn middleware_changes_allowed_headers() {
    let host = single("headers", ALL);
    let sent = [("x-old", "one"), ("x-old", "two"), ("x-gone", "v"), ("x-stays", "v")];
    let response = send_with_headers(&host, &sent, &chat("a", json!({})));
    let headers = &response.json()["headers"];
    assert_eq!((&headers["x-set"], &headers["x-old"]), (&json!("1"), &json!("one, two, added")));
    assert_eq!((&headers["x-stays"], headers.get("x-gone")), (&json!("v"), None));
    assert_eq!((headers.get("authorization"), headers.get("x-bad")), (None, None));
    assert_ne!(headers["host"], "1");
    assert_eq!(engine_body(&response), chat("a", json!({})), "the body must not change");
    // Three headers that no policy may set, and one invalid header value.
    assert_eq!(dropped(&host, "set-header"), 4.0, "{}", host.log_text());
    // Without permission in the manifest it changes nothing.
    let strict = single("headers", "");
    let headers =
        send_with_headers(&strict, &sent, &chat("a", json!({}))).json()["headers"].clone();
    assert_eq!((headers.get("x-set"), &headers["x-gone"]), (None, &json!("v")));
    assert_eq!((dropped(&strict, "set-header"), dropped(&strict, "remove-header")), (6.0, 1.0));
}

#[test]
fn middleware_never_sees_credentials() {
    let host = single("count-headers", "");
    let count =
        |headers: &[(&str, &str)]| send_with_headers(&host, headers, &chat("a", json!({}))).status;
    let base = count(&[]);
    assert!(base > 400);
    assert_eq!(count(&[("x-one", "v"), ("x-one", "v")]), base + 2);
    assert_eq!(count(&[("authorization", "Bearer k"), ("cookie", "c"), ("x-api-key", "k")]), base);
}

#[test]
fn middleware_replaces_body_if_manifest_allows() {
    let request = chat("a", json!({ "temperature": 1 }));
    let host = single("temperature", ALL);
    let received = engine_body(&send_with_headers(&host, &[], &request));
    assert_eq!(
        (&received["temperature"], &received["messages"][0]["content"]),
        (&json!(0), &json!("other"))
    );
    // A replacement must not change whether the response is streamed.
    let response = send_with_headers(&host, &[], &chat("a", json!({ "stream": true })));
    assert_eq!(
        (response.status, dropped(&host, "replace-body")),
        (200, 1.0),
        "{}",
        response.text()
    );
    host.assert_no_request_lost();
    let strict = single("temperature", "[allow]\nfields = [\"\"]\nmodel = true\nsystem = true\n");
    assert_eq!(engine_body(&send_with_headers(&strict, &[], &request)), request);
    assert_eq!(dropped(&strict, "replace-body"), 1.0);
}

#[test]
fn invalid_replacement_body_is_dropped_and_headers_apply() {
    for (name, header) in [("garbage", Some("done")), ("binary", None)] {
        let host = single(name, ALL);
        let response = send_chat(&host);
        assert_eq!(
            (response.status, engine_body(&response)),
            (200, chat("a", json!({}))),
            "{name}"
        );
        assert_eq!(response.json()["headers"].get("x-set").and_then(Value::as_str), header);
        assert_eq!(dropped(&host, "replace-body"), 1.0, "{name}");
        assert_eq!(host.metric("pointsman_policy_faults_total", ""), 0.0);
        host.assert_no_request_lost();
    }
}

/// Long bodies pass through the middleware unchanged. The second guest leaks memory, and its
/// instance must be recycled before the memory is used up.
#[test]
fn long_bodies_pass_through_middleware() {
    for name in ["echo", "leaky-echo"] {
        let host =
            single(name, &format!("{ALL}\n[limits]\nmemory = \"16MiB\"\ndeadline = \"100ms\""));
        let long = chat("a", json!({ "user": "ä".repeat(500_000) }));
        for round in 0..25 {
            let response = send_with_headers(&host, &[], &long);
            assert_eq!(response.status, 200, "{name}, {round}: {}", response.text());
            assert!(engine_body(&response) == long, "{name}, {round}");
        }
        assert_eq!(
            host.metric("pointsman_policy_calls_total", "result=\"ok\""),
            25.0,
            "{}",
            host.log_text()
        );
        assert_eq!(
            (host.metric("pointsman_policy_faults_total", ""), dropped(&host, "")),
            (0.0, 0.0)
        );
    }
}

#[test]
fn body_beyond_memory_limit_is_memory_fault() {
    let host = single("continue", "[limits]\nmemory = \"4MiB\"");
    let long = chat("a", json!({ "user": "x".repeat(5 << 20) }));
    let response = send_with_headers(&host, &[], &long);
    assert!(response.status == 200 && engine_body(&response) == long);
    assert_eq!(
        host.metric("pointsman_policy_faults_total", "kind=\"memory\""),
        1.0,
        "{}",
        host.log_text()
    );
}

#[test]
fn failure_mode_applies_to_trapping_middleware() {
    for (mode, status) in [("skip", 200), ("refuse", 503)] {
        let host = host(&[("trap", middleware("trap"))], "", &format!("on-error = {mode:?}"));
        let response = send_chat(&host);
        assert_eq!(response.status, status, "{mode}: {}", response.text());
        assert_eq!(host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 1.0);
        host.assert_no_request_lost();
    }
}

#[test]
fn later_middleware_sees_changes_of_earlier() {
    let guests = ["temperature", "echo"].map(|name| (name, middleware(name)));
    let host = host(&guests, ALL, "");
    let received = engine_body(&send_chat(&host));
    assert_eq!(received["messages"][0]["content"], "other");
}

/// The host provides the harmless part of WASI, and every other function traps.
#[test]
fn wasi_is_deterministic_per_request() {
    let host = single("random", "");
    let with_id =
        |id: &str| send_with_headers(&host, &[("x-request-id", id)], &chat("a", json!({}))).status;
    let ids: Vec<String> = (0..12).map(|number| format!("request-{number}")).collect();
    let statuses: Vec<u16> = ids.iter().map(|id| with_id(id)).collect();
    assert!(statuses.iter().all(|status| (400..490).contains(status)), "{statuses:?}");
    assert!(
        statuses.iter().any(|status| *status != statuses[0]),
        "the random numbers depend on the request"
    );
    assert_eq!(
        statuses,
        ids.iter().map(|id| with_id(id)).collect::<Vec<_>>(),
        "the same request gets the same random numbers"
    );

    let guests = ["print", "connect"].map(|name| (name, middleware(name)));
    let host = self::host(&guests, "", "");
    assert_eq!(send_chat(&host).status, 200);
    assert_eq!(host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 2.0);
    // What the guest writes to its standard error, and the function that trapped.
    for line in ["first line", "second line"] {
        wait_until(&format!("the log has `{line}`"), || {
            host.all_events().iter().any(|event| event.message().contains(line))
        });
    }
    host.wait_for_event("advice_failed", &[("kind", "trap")]);
    let function = "wasi:sockets/tcp-create-socket@0.2.3#create-tcp-socket";
    let failures = host.events("advice_failed", &[("kind", "trap")]);
    assert!(failures.iter().any(|event| event.text("error").contains(function)), "{failures:#?}");
}

#[test]
fn invalid_middlewares_are_not_loaded() {
    let config = "config = { limit = 5 }";
    // The policy, its component, its link, the code of the error, and a value in its message.
    let table: [(&str, Vec<u8>, &str, &str, &str); 3] = [
        ("foreign", middleware("foreign"), "", "import_forbidden", "test:other/thing@1.0.0"),
        ("no-opinion", build("no-opinion"), "", "import_forbidden", "pointsman:policy/types@0.1.3"),
        ("continue", middleware("continue"), config, "config_invalid", "config"),
    ];
    for (name, component, link, code, value) in table {
        let host = host(&[(name, component)], "", link);
        let status = host.status();
        let policy = &status["policies"][0];
        let error = &policy["error"];
        assert_eq!(
            (&policy["state"], &error["code"]),
            (&json!("failed"), &json!(code)),
            "{policy}"
        );
        assert!(error["message"].as_str().unwrap().contains(value), "{name}: {error}");
        assert_eq!(send_chat(&host).status, 200);
    }
}
