//! Lanes that cannot serve a request: another lane is attempted, or the client learns why and when.

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{Response, chat, post, stream};
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host};

const CHAT: &str = "/v1/chat/completions";
/// The longest `Retry-After` that SDKs observe.
const MAX_RETRY_AFTER: u64 = 60;

fn retry_after(response: &Response) -> u64 {
    response.header("retry-after").unwrap_or_else(|| panic!("{}", response.text())).parse().unwrap()
}

fn lane_and_attempts(response: &Response) -> (Option<&str>, Option<&str>) {
    assert_eq!(response.status, 200, "{}", response.text());
    (response.header("x-pointsman-lane"), response.header("x-pointsman-attempts"))
}

/// The engine of the first lane no longer has the model, its key has expired, its credit is spent,
/// or its slots are taken: the other lane serves.
#[test]
fn external_engine_that_refuses_falls_back_to_other_lane() {
    let statuses = ["401 Unauthorized", "402 Payment Required", "404 Not Found", "409 Conflict"];
    let error = r#"{"error":{"message":"refused","type":"x","param":null,"code":"x"}}"#;
    let refusing = statuses.map(|status| HostileEngine::answering(status, "", error));
    let honest = HostileEngine::honest();
    let names = statuses.map(|status| format!("m{}", &status[..3]));
    // More slots, so that these lanes are attempted first.
    let lanes = refusing
        .iter()
        .zip(&names)
        .map(|(engine, name)| external_lane(&format!("bad-{name}"), &[name], engine, ""));
    let mut config: String = lanes.collect();
    let served: Vec<&str> = names.iter().map(String::as_str).collect();
    config += &external_lane("ok", &served, &honest, "").replace("slots = 16", "slots = 4");
    let host = host(&config);
    for (name, engine) in names.iter().zip(&refusing) {
        let response = post(host.port, CHAT, &chat(name, json!({})));
        assert_eq!(lane_and_attempts(&response), (Some("ok"), Some("2")), "{name}");
        assert_eq!(engine.requests().len(), 1, "{name}: attempted once");
    }
    host.assert_no_request_lost();
}

/// Which statuses lead to another lane is a lane's setting.
#[test]
fn statuses_of_an_engine_fall_back_as_configured() {
    let statuses = |statuses: &str| {
        let lane = fake_lane(FAKE_ENGINE, "a", &["m"], "slots = 8", &[]);
        let more = format!("[lanes.fallback-statuses]\n{statuses}\n");
        host(&[lane, more, fake_lane(FAKE_ENGINE, "b", &["m"], "slots = 4", &[])].concat())
    };
    let host = statuses("404 = \"server-error\"\n418 = \"overloaded\"");
    for status in [404, 418] {
        host.set_script("a", json!({ "status": status }));
        let response = post(host.port, CHAT, &chat("m", json!({})));
        assert_eq!(lane_and_attempts(&response), (Some("b"), Some("2")), "{status}");
    }
    // Others are the client's.
    host.set_script("a", json!({ "status": 409 }));
    let response = post(host.port, CHAT, &chat("m", json!({})));
    assert_eq!((response.status, response.header("x-pointsman-lane")), (409, Some("a")));
    host.assert_no_request_lost();
}

/// Without another lane, the client gets the engine's refusal.
#[test]
fn refusal_of_the_only_engine_reaches_the_client() {
    let error = r#"{"error":{"message":"no such model","type":"x","param":null,"code":"x"}}"#;
    let engine = HostileEngine::answering("404 Not Found", "", error);
    let host = host(&external_lane("m", &["m"], &engine, ""));
    let response = post(host.port, CHAT, &chat("m", json!({})));
    assert_eq!(response.status, 404);
    assert!(response.text().contains("no such model"), "{}", response.text());
    host.assert_no_request_lost();
}

/// Returns a lane with this context, whose engine has that many tokens.
fn lane_with_context(name: &str, context: u32, slots: u32, engine: u32) -> String {
    let more = format!("max-context = {context}\nslots = {slots}");
    let engine = engine.to_string();
    let arguments =
        ["--flavour", "vllm", "--max-model-len", &engine, "--served-model-name", name, "m"];
    fake_lane(FAKE_ENGINE, name, &[name, "m"], &more, &arguments)
}

fn with_words(model: &str, words: usize) -> Value {
    let content = "word ".repeat(words);
    json!({ "model": model, "max_tokens": 5, "messages": [{ "role": "user", "content": content }] })
}

#[test]
fn prompt_too_long_for_the_first_lane_goes_to_the_longer_one() {
    let host = host(
        &[
            lane_with_context("short", 1000, 8, 1000),
            lane_with_context("long", 131_072, 4, 131_072),
        ]
        .concat(),
    );
    let response = post(host.port, CHAT, &with_words("m", 10));
    assert_eq!(lane_and_attempts(&response), (Some("short"), None));
    for _ in 0..3 {
        let response = post(host.port, CHAT, &with_words("m", 3000));
        assert_eq!(response.header("x-pointsman-lane"), Some("long"), "{}", response.text());
        assert_eq!(response.status, 200);
    }
    // The name of a lane has no longer one: the engine's answer is the client's.
    let response = post(host.port, CHAT, &with_words("short", 3000));
    assert_eq!(response.status, 400, "{}", response.text());
    assert!(response.text().contains("maximum context length"), "{}", response.text());
    assert_eq!(host.metric("pointsman_lane_breaker_open", ""), 0.0);
    host.assert_no_request_lost();
}

/// Estimates of prompts are not exact: what the engine counts decides.
#[test]
fn engines_refusal_of_a_long_prompt_moves_on_to_a_longer_lane() {
    let host = host(
        &[lane_with_context("short", 2000, 8, 400), lane_with_context("long", 131_072, 4, 131_072)]
            .concat(),
    );
    for body in [with_words("m", 600), {
        let mut streamed = with_words("m", 600);
        streamed["stream"] = true.into();
        streamed
    }] {
        let response = post(host.port, CHAT, &body);
        assert_eq!(lane_and_attempts(&response), (Some("long"), Some("2")));
    }
    host.assert_no_request_lost();
}

/// Returns a lane whose engine exits while it loads, and which is given up after one failure.
fn broken_lane() -> String {
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "", &["--exit-code", "132"]);
    let given_up = "max-failures = 1, retry-failed-after = \"10m\"";
    let lane = lane.replace("max-failures = 0", given_up);
    assert!(lane.contains(given_up));
    lane
}

#[test]
fn every_client_is_told_why_a_lane_is_down() {
    let host = Host::start(&program(FAKE_ENGINE), &broken_lane());
    wait_until("the lane is given up", || host.lane("a")["engine"] == "failed");
    for more in [json!({}), json!({ "stream": true }), json!({})] {
        let response = post(host.port, CHAT, &chat("a", more));
        assert_eq!((response.status, response.error_code()), (503, json!("no_lane_available")));
        let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
        // The signal, and the lane that it concerns.
        assert!(message.contains("illegal instruction") && message.contains("`a`"), "{message}");
        assert!((1..=MAX_RETRY_AFTER).contains(&retry_after(&response)), "{message}");
    }
    host.assert_no_request_lost();
}

#[test]
fn external_engine_that_is_gone_is_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[[lanes]]\nname = \"remote\"\n[lanes.engine]\ndriver = \"external\"\n\
         url = \"http://127.0.0.1:{port}/v1\"\n"
    );
    let host = Host::start(&program(FAKE_ENGINE), &config);
    host.wait_for_lane("remote", "down");
    for _ in 0..2 {
        let response = post(host.port, CHAT, &chat("remote", json!({})));
        assert_eq!((response.status, response.error_code()), (503, json!("no_lane_available")));
        assert!((1..=MAX_RETRY_AFTER).contains(&retry_after(&response)));
        let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("`remote`"), "{message}");
    }
    host.assert_no_request_lost();
}

/// A request that has waited for a loading lane is told of the load.
#[test]
fn timeout_of_the_queue_tells_of_the_load() {
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "", &["--load-ms", "600000"]);
    let host =
        Host::start(&program(FAKE_ENGINE), &format!("queue = {{ max-wait = \"1s\" }}\n{lane}"));
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!((response.status, response.error_code()), (503, json!("queue_timeout")));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("load"), "{message}");
    assert!((1..=MAX_RETRY_AFTER).contains(&retry_after(&response)));
    host.assert_no_request_lost();
}

/// With Cortex's policy, a full queue is never an answer by another model.
#[test]
fn full_queue_is_429_and_not_another_model() {
    let policies = root().join("policies");
    let script = ["--script", r#"{"token-ms": 50, "tokens": 100}"#];
    let lanes = [
        fake_lane(FAKE_ENGINE, "coder", &["coder", "auto"], "slots = 1", &script),
        fake_lane(FAKE_ENGINE, "super_reader", &["super_reader", "auto"], "", &[]),
    ];
    let config = format!(
        "queue = {{ per-lane = 1 }}\n[policies]\ndir = {policies:?}\ncache = \"cache\"\n\
         [[policies.chain]]\nname = \"cortex\"\n{}",
        lanes.concat()
    );
    let host = host(&config);
    let mut first = stream(host.port, CHAT, &chat("coder", json!({ "stream": true })));
    assert!(first.read_until("word0"));
    std::thread::scope(|scope| {
        let second =
            scope.spawn(|| post(host.port, CHAT, &chat("coder", json!({ "max_tokens": 1 }))));
        wait_until("one request is queued", || {
            host.metric("pointsman_lane_queued", "lane=\"coder\"") == 1.0
        });
        let third = post(host.port, CHAT, &chat("coder", json!({})));
        assert_eq!((third.status, third.error_code()), (429, json!("queue_full")));
        assert!((1..=MAX_RETRY_AFTER).contains(&retry_after(&third)));
        assert!(first.finish().1);
        assert_eq!(second.join().unwrap().header("x-pointsman-lane"), Some("coder"));
    });
    host.assert_no_request_lost();
}

/// Pictures go to the lane that sees.
#[test]
fn picture_goes_to_the_lane_that_sees() {
    let policies = root().join("policies");
    let lanes = ["orchestrator", "coder", "super_reader"]
        .map(|name| fake_lane(FAKE_ENGINE, name, &[name, "auto"], "", &[]));
    let sees = HostileEngine::honest();
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"cortex\"\n\
         {}{}",
        lanes.concat(),
        external_lane("fast_rag", &["fast_rag", "auto"], &sees, "labels = { vision = \"true\" }")
    );
    let host = host(&config);
    let picture =
        json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } });
    let text = json!({ "type": "text", "text": "What is this?" });
    let body =
        json!({ "model": "auto", "messages": [{ "role": "user", "content": [text, picture] }] });
    let response = post(host.port, CHAT, &body);
    assert_eq!(lane_and_attempts(&response), (Some("fast_rag"), None));
    host.assert_no_request_lost();
}
