//! The optional hooks of policies (`on-failure`, `on-complete`, `on-tick`) and the host functions
//! for state, logs, metrics and the request.

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::{Guest, replace_file};
use pointsman_tests::host::{Host, fake_lane, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Starts a host with one policy, lanes `a` and `b` for the model `auto`, and another lane `c`.
fn start_deployment(guest: Guest) -> Deployment {
    let lanes =
        [lane("a", &["auto"], &[]), lane("b", &["auto"], &[]), lane("c", &["c"], &[])].concat();
    let config = format!(
        "[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{}{lanes}",
        chain(&["p"], "")
    );
    Deployment::start(FAKE_ENGINE, policy_dir(&[guest]), &config)
}

/// Returns the number of attempts on a lane.
fn attempts(host: &Host, lane: &str) -> f64 {
    host.metric("pointsman_attempts_total", &format!("lane=\"{lane}\""))
}

/// Returns a policy that retries a failed attempt on the lane with this number, or on the same
/// lane.
fn retries(lane: Option<u32>) -> Guest {
    let lane = lane.map_or("(i32.load offset=72 (local.get $failure))".to_owned(), |lane| {
        format!("(i32.const {lane})")
    });
    Guest::new("p").reason("retries").lane(0).code(&format!(
        "(RECOVER
           (i32.store8 (i32.const 3076) (i32.const 1))
           (i32.store (i32.const 3080) {lane})
           (i32.const 3072))"
    ))
}

/// Returns a policy that rejects the request after a failed attempt.
fn rejects_after_failure() -> Guest {
    Guest::new("p").reason("gives up").lane(0).code(
        r#"(RECOVER
             (i32.store8 (i32.const 3076) (i32.const 2))
             (i32.store16 (i32.const 3080) (i32.const 429))
             (call $pair (i32.const 3084) (TEXT "come_later"))
             (call $pair (i32.const 3092) (TEXT "Not now."))
             (i32.store8 (i32.const 3100) (i32.const 1))
             (i32.store (i32.const 3104) (i32.const 9))
             (i32.const 3072))"#,
    )
}

#[test]
fn policy_chooses_lane_of_next_attempt() {
    let deployment = start_deployment(retries(Some(2)));
    assert_eq!(deployment.policy("p")["hooks"], json!(["on-failure"]));
    deployment.host.set_script("a", json!({ "status": 500 }));
    let response = deployment.send_chat("auto");
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("c")),
        "{}",
        response.text()
    );
    assert_eq!(response.header("x-pointsman-attempts"), Some("2"));
    // The hook works for streams, too, before the first event.
    let streamed = stream(deployment.host.port, CHAT, &chat("auto", json!({ "stream": true })));
    assert!(
        streamed.headers.contains(&("x-pointsman-lane".into(), "c".into())),
        "{:?}",
        streamed.headers
    );
    let (response, complete) = streamed.finish();
    assert!(complete && response.text().contains("data: [DONE]"));
    assert_eq!(
        (
            attempts(&deployment.host, "a"),
            attempts(&deployment.host, "c"),
            attempts(&deployment.host, "b")
        ),
        (2.0, 2.0, 0.0)
    );
    assert_eq!(
        deployment.host.metric("pointsman_policy_calls_total", "hook=\"on-failure\",result=\"ok\""),
        2.0
    );
    deployment.host.assert_no_request_lost();
}

#[test]
fn policy_retries_same_lane_or_rejects() {
    let deployment = start_deployment(retries(None));
    deployment.host.set_script("a", json!({ "status": 503 }));
    let response = deployment.send_chat("auto");
    let before = attempts(&deployment.host, "a");
    assert!(
        before >= 2.0 && attempts(&deployment.host, "b") == 0.0,
        "{before}: {}",
        response.text()
    );
    assert_ne!(response.status, 200);
    deployment.deploy(&rejects_after_failure());
    let assert_rejected = |response: &pointsman_tests::client::Response| {
        let error = response.json()["error"].clone();
        assert_eq!((response.status, response.header("retry-after")), (429, Some("9")), "{error}");
        assert_eq!((&error["code"], &error["message"]), (&json!("come_later"), &json!("Not now.")));
    };
    assert_rejected(&deployment.send_chat("auto"));
    assert_rejected(&post(deployment.host.port, CHAT, &chat("auto", json!({ "stream": true }))));
    assert_eq!(
        (attempts(&deployment.host, "a"), attempts(&deployment.host, "b")),
        (before + 2.0, 0.0)
    );
    deployment.host.assert_no_request_lost();
}

/// A hook that traps is ignored: the plan is followed, and the policy still decides.
#[test]
fn breaker_opens_for_faulting_hook_only() {
    let deployment =
        start_deployment(Guest::new("p").reason("decides").lane(0).code("(RECOVER unreachable)"));
    deployment.host.set_script("a", json!({ "status": 500 }));
    for _ in 0..4 {
        let response = deployment.send_chat("auto");
        assert_eq!(
            (response.status, response.header("x-pointsman-reason")),
            (200, Some("decides"))
        );
    }
    let open = |hook: &str| {
        deployment.host.metric("pointsman_policy_breaker_open", &format!("hook=\"{hook}\""))
    };
    assert_eq!((open("on-failure"), open("on-request")), (1.0, 0.0));
    let version = deployment.policy("p")["version"].as_str().unwrap().to_owned();
    assert_eq!(
        deployment.host.metric("pointsman_policy_breaker_open", &version),
        1.0,
        "of {version}"
    );
    assert_eq!(deployment.host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 3.0);
    deployment.host.assert_no_request_lost();
}

#[test]
fn failure_hook_of_deciding_version_is_called_after_replacement() {
    let deployment = start_deployment(retries(Some(2)));
    deployment.host.set_script("a", json!({ "hang": true }));
    let port = deployment.host.port;
    let request = std::thread::spawn(move || post(port, CHAT, &chat("auto", json!({}))));
    wait_until("the request is in flight", || {
        deployment.host.metric("pointsman_lane_running", "lane=\"a\"") == 1.0
    });
    let new = deployment.deploy(&rejects_after_failure());
    assert_eq!(new["error"], Value::Null);
    send_signal(deployment.host.engine_pid("a"), Signal::KILL);
    let response = request.join().unwrap();
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("c")),
        "{}",
        response.text()
    );
    assert_eq!(response.header("x-pointsman-reason"), Some("retries"));
    deployment.host.assert_no_request_lost();
}

/// Code that counts outcomes in its state. Its reason is the number of outcomes times 1000 plus the
/// number of successful ones.
const COUNTS_OUTCOMES: &str = r#"
(USE state.increment $increment)
(USE metrics.add $add)
(OBSERVE
  (call $increment (TEXT "done")
    (i64.extend_i32_u (i32.mul (local.get $count) (i32.const 1000)))
    (i32.const 0) (i32.const 3000))
  (block $end (loop $next
    (br_if $end (i32.eqz (local.get $count)))
    (call $add (TEXT "outcomes") (i64.const 1))
    (call $add (TEXT "secret") (i64.const 1))
    (if (i32.eqz (i32.load8_u offset=40 (local.get $done)))
      (then (call $increment (TEXT "done") (i64.const 1) (i32.const 0) (i32.const 3000))))
    (local.set $done (i32.add (local.get $done) (i32.const 72)))
    (local.set $count (i32.sub (local.get $count) (i32.const 1)))
    (br $next))))
(ADVISE
  (call $increment (TEXT "done") (i64.const 0) (i32.const 0) (i32.const 3000))
  (call $why_number (i64.load (i32.const 3008)))
  (i32.const 2048))"#;

#[test]
fn policy_state_from_outcomes_survives_reload() {
    let counter =
        Guest::new("p").code(COUNTS_OUTCOMES).manifest("[allow]\nmetrics = [\"outcomes\"]\n");
    let deployment = start_deployment(counter.clone());
    let wait_for_outcomes = |outcomes: f64| {
        wait_until("the policy has the outcomes", || {
            deployment.host.metric("pointsman_policy_custom_total", "name=\"outcomes\"") >= outcomes
        });
    };
    assert_eq!(deployment.reason("auto"), "0");
    for _ in 0..2 {
        assert_eq!(deployment.send_chat("auto").status, 200);
    }
    wait_for_outcomes(3.0);
    assert_eq!(deployment.reason("auto"), "3003");
    for lane in ["a", "b"] {
        deployment.host.set_script(lane, json!({ "status": 400 }));
    }
    let status = deployment.send_chat("auto").status;
    assert_eq!(status, 400);
    wait_for_outcomes(5.0);
    for lane in ["a", "b"] {
        deployment.host.set_script(lane, json!({}));
    }
    // Five outcomes, of which four were successful.
    assert_eq!(deployment.reason("auto"), "5004");
    wait_for_outcomes(6.0);
    let first = deployment.policy("p")["version"].clone();
    let again = deployment.deploy(&counter.reason("another version"));
    assert_ne!(again["version"], first);
    let after: u64 = deployment.reason("auto").parse().unwrap();
    assert_eq!(after / 1000, 6, "the state is kept");
    // Metrics that the manifest does not declare are dropped and counted.
    wait_for_outcomes(7.0);
    assert_eq!(deployment.host.metric("pointsman_policy_custom_total", "name=\"secret\""), 0.0);
    assert_eq!(
        deployment.host.metric("pointsman_policy_advice_dropped_total", "part=\"metric\""),
        7.0
    );
    deployment.host.assert_no_request_lost();
}

/// Code that asks for the second lane to be loaded for ten minutes.
const HINTS_LANE: &str = r#"
(data (i32.const 3008) "\01\00\00\00\00\00\00\00\c0\27\09\00")
(TICK (call $pair (i32.const 3000) (i32.const 3008) (i32.const 1)) (i32.const 3000))"#;

#[test]
fn lane_hint_loads_lane_until_policy_is_removed() {
    let on_demand = "group = \"gpu\"\nmemory = \"8GiB\"\nunload-after = \"400ms\"";
    let lanes =
        [lane("a", &["auto"], &[]), fake_lane(FAKE_ENGINE, "b", &["b"], on_demand, &[])].concat();
    let config = |links: &str| {
        format!(
            "[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}[[groups]]\n\
             name = \"gpu\"\nmemory = \"10GiB\"\n{lanes}"
        )
    };
    let guest = Guest::new("p").code(HINTS_LANE).manifest("[hooks]\ntick = \"50ms\"\n");
    let deployment = Deployment::start(FAKE_ENGINE, policy_dir(&[guest]), &config(""));
    assert_eq!(deployment.host.lane("b")["state"], "unloaded");
    deployment.write_config(&config(&chain(&["p"], "")));
    deployment.reload();
    deployment.host.wait_for_lane("b", "ready");
    // With the hint, the lane stays loaded for longer than `unload-after`.
    let pid = deployment.host.engine_pid("b");
    let ticks = || deployment.host.metric("pointsman_policy_calls_total", "hook=\"on-tick\"");
    let now = ticks();
    wait_until("a second has passed", || ticks() >= now + 10.0);
    assert_eq!(
        (deployment.host.lane("b")["state"].as_str(), deployment.host.engine_pid("b")),
        (Some("ready"), pid)
    );
    deployment.write_config(&config(""));
    deployment.reload();
    deployment.host.wait_for_lane("b", "unloaded");
    assert_eq!(deployment.send_chat("auto").status, 200);
    deployment.host.assert_no_request_lost();
}

#[test]
fn policy_log_is_written_to_host_log() {
    let code = r#"
    (USE log.write $write)
    (ADVISE
      (call $write (i32.const 3) (TEXT "two
lines of mine"))
      (i32.const 2048))"#;
    let deployment = start_deployment(Guest::new("p").code(code));
    assert_eq!(deployment.send_chat("auto").status, 200);
    let events = deployment.host.all_events();
    // The line break of the policy must not break the log.
    let event = events.iter().find(|event| event.message() == "two lines of mine");
    let event = event.unwrap_or_else(|| panic!("no such event in {events:#?}"));
    assert_eq!((event.level(), event.target()), ("WARN", "policy"));
    assert_eq!(event.text("policy"), "p");
    assert!(!event.text("request_id").is_empty(), "{event:?}");
}

/// Host functions that read the request, a call of each, and the expected result.
const REQUEST_CALLS: [(&str, &str, &str); 10] = [
    // A range that begins or ends within a character is shortened inwards.
    ("text", "(call $ask (i32.const 0) (i64.const 3) (i32.const 3) (i32.const 3000))", "lf"),
    ("text", "(call $ask (i32.const 0) (i64.const 0) (i32.const 3) (i32.const 3000))", "zw"),
    ("text", "(call $ask (i32.const 1) (i64.const 0) (i32.const 99) (i32.const 3000))", "second"),
    ("text", "(call $ask (i32.const 2) (i64.const 0) (i32.const 99) (i32.const 3000))", ""),
    ("field", "(call $ask (TEXT \"/metadata/team\") (i32.const 99) (i32.const 2992))", "\"x y\""),
    (
        "field-too-large",
        "(call $ask (TEXT \"/metadata/team\") (i32.const 2) (i32.const 3000))",
        "5",
    ),
    ("contains", "(call $ask (TEXT \"BOXER\") (i32.const 1))", "1"),
    ("contains", "(call $ask (TEXT \"BOXER\") (i32.const 0))", "0"),
    ("prefix-hashes", "(call $ask (i32.const 4) (i32.const 2) (i32.const 3000))", ""),
    ("endpoint-kind", "(call $ask (i32.const 3000))", "chat-completions"),
];

#[test]
fn policy_reads_parts_of_request() {
    let deployment = start_deployment(Guest::new("p").reason("unused"));
    let body = json!({
        "model": "auto", "max_tokens": 1, "metadata": { "team": "x y" },
        "messages": [{ "role": "user", "content": "zwölf \
         boxer" }, { "role": "user", "content": "second" }],
    });
    // FNV-1a of the first four bytes.
    let hash = "zwö".bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for (function, call, expected) in REQUEST_CALLS {
        let import = function.trim_end_matches("-too-large");
        // A text is a pair of words; the kind of a field is stored eight bytes before the text.
        let expression = match function {
            "text" | "field" | "endpoint-kind" => {
                format!(
                    "{call} (call $why_text (i32.load (i32.const 3000)) (i32.load (i32.const \
                     3004)))"
                )
            }
            "field-too-large" => format!("{call} (call $why_number (i64.load (i32.const 3008)))"),
            "contains" => format!("(call $why_number (i64.extend_i32_u {call}))"),
            _ => format!("{call} (call $why_number (i64.load (i32.load (i32.const 3000))))"),
        };
        let code = format!("(USE request.{import} $ask) (ADVISE {expression} (i32.const 2048))");
        let status = deployment.deploy(&Guest::new("p").code(&code));
        assert_eq!(status["error"], Value::Null, "{code}");
        let response = post(deployment.host.port, CHAT, &body);
        let reason = response.header("x-pointsman-reason").unwrap_or_default();
        let expected = if function == "prefix-hashes" {
            hash.cast_signed().to_string()
        } else {
            expected.into()
        };
        assert_eq!((response.status, reason), (200, expected.as_str()), "{function}: {call}");
    }
    deployment.host.assert_no_request_lost();
}

/// Host functions about the key, an expression that sets the reason, the reason in a golden case
/// with a key and limits, and the one of a host without keys.
const KEY_CALLS: [(&str, &str, &str, &str); 6] = [
    // A text is at the third word: after whether there is one, and before its length.
    (
        "key-group",
        "(call $why_text (i32.load (i32.const 3004)) (i32.load (i32.const 3008)))",
        "staff",
        "",
    ),
    (
        "key-name",
        "(call $why_text (i32.load (i32.const 3004)) (i32.load (i32.const 3008)))",
        "k_1",
        "",
    ),
    ("key-name", "(call $why_number (i64.load8_u (i32.const 3000)))", "1", "0"),
    ("allowance", "(call $why_number (i64.load8_u (i32.const 3000)))", "0", "0"),
    ("allowance", "(call $why_number (i64.load (i32.const 3040)))", "20000", "0"),
    ("allowance", "(call $why_number (i64.load (i32.const 3080)))", "50", "0"),
];

#[test]
fn policy_reads_its_key_and_what_the_limits_leave() {
    let deployment = start_deployment(Guest::new("p").reason("unused"));
    let cases = deployment.policies().join("p/cases.jsonl");
    let remaining = |limit, left| json!({ "limit": limit, "left": left, "reset-ms": 60_000 });
    for (number, (function, expression, expected, without_key)) in KEY_CALLS.iter().enumerate() {
        let case = |why: &str| {
            json!({
                "name": function,
                "request": {
                    "body": { "model": "auto", "messages": [{ "role": "user", "content": "hi" }] },
                    "tenant": "acme", "key-name": "k_1", "key-group": "staff",
                    "allowance": {
                        "tokens": remaining(20_000, 100), "budget": remaining(1000, 50),
                    },
                },
                "fleet": { "lanes": [{ "name": "a", "models": ["auto"] }] },
                "expect": { "why": why },
            })
            .to_string()
        };
        let code = format!(
            "(USE request.{function} $ask) (ADVISE (call $ask (i32.const 3000)) {expression} \
             (i32.const 2048))"
        );
        let results = [("other", "case_failed"), (*expected, "")];
        for (attempt, (why, error)) in results.into_iter().enumerate() {
            // The cases of a version are only run once.
            let version = format!("{number}.{attempt}.0");
            replace_file(&cases, case(why).as_bytes());
            let status = deployment.deploy(&Guest::new("p").version(&version).code(&code));
            let found = status["error"]["code"].as_str().unwrap_or_default();
            assert_eq!(found, error, "{function}: {status}");
        }
        let response = deployment.send_chat("auto");
        let reason = response.header("x-pointsman-reason").unwrap_or_default();
        assert_eq!((response.status, reason), (200, *without_key), "{function}: {expression}");
    }
    deployment.host.assert_no_request_lost();
}
