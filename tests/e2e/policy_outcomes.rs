//! What contract 0.1.3 added for policies that learn: `on-outcome`, the lanes that earlier policies
//! leave, the deadline, and the search for several patterns.

use pointsman_tests::client::{chat, post};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::{Guest, replace_file};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Starts a host with these policies, of which `names` is the order, and the lanes `a` and `b` for
/// the model `auto`.
fn start_deployment(guests: &[Guest], names: &[&str]) -> Deployment {
    let links = chain(names, "");
    let lanes = [lane("a", &["auto"], &[]), lane("b", &["auto"], &[])].concat();
    let config = format!("[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}{lanes}");
    Deployment::start(FAKE_ENGINE, policy_dir(guests), &config)
}

/// Code that uses the text of its first note as the name of a counter, to which it adds 1000 for
/// each attempt and the status of the first one.
const LEARNS: &str = r#"
(USE state.increment $increment)
(USE metrics.add $add)
(LEARN
  (local $note i32)
  (local $value i64)
  (block $end (loop $next
    (br_if $end (i32.eqz (local.get $count)))
    (local.set $note (i32.load offset=80 (local.get $done)))
    (local.set $value (i64.extend_i32_u (i32.add
      (i32.mul (i32.load offset=76 (local.get $done)) (i32.const 1000))
      (i32.load16_u offset=6 (i32.load offset=72 (local.get $done))))))
    (call $add (i32.load offset=16 (local.get $note)) (i32.load offset=20 (local.get $note))
      (local.get $value))
    (call $increment (i32.load offset=16 (local.get $note)) (i32.load offset=20 (local.get $note))
      (local.get $value) (i32.const 0) (i32.const 3000))
    (local.set $done (i32.add (local.get $done) (i32.const 88)))
    (local.set $count (i32.sub (local.get $count) (i32.const 1)))
    (br $next))))"#;

/// Returns a policy with [`LEARNS`] that leaves itself this note.
fn learning(note: &str) -> Guest {
    let manifest = format!("[allow]\nmetrics = [{note:?}]\n");
    Guest::new("p").reason(note).lane(0).code(LEARNS).manifest(&manifest)
}

#[test]
fn policy_learns_all_attempts_and_gets_its_own_note_back() {
    let other = Guest::new("other").reason("of another policy");
    let deployment = start_deployment(&[other, learning("session-7")], &["other", "p"]);
    assert_eq!(deployment.policy("p")["hooks"], json!(["on-outcome"]));
    deployment.host.set_script("a", json!({ "status": 500 }));
    let response = deployment.send_chat("auto");
    assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("b")));
    let counter = || deployment.host.metric("pointsman_policy_custom_total", "name=\"session-7\"");
    wait_until("the policy has the outcome", || counter() > 0.0);
    assert_eq!(counter(), 2500.0);
    let calls = |hook: &str| {
        deployment.host.metric("pointsman_policy_calls_total", &format!("hook=\"{hook}\""))
    };
    assert!(calls("on-outcome") >= 1.0);
    // A policy that only learns is not asked after a failure.
    assert_eq!(calls("on-failure"), 0.0);
    deployment.host.assert_no_request_lost();
}

#[test]
fn golden_cases_call_on_outcome() {
    let deployment = start_deployment(&[learning("x")], &["p"]);
    let cases = deployment.policies().join("p/cases.jsonl");
    let case = |spent: i64| {
        json!({
            "name": "learns", "hook": "on-outcome",
            "fleet": { "lanes": [{ "name": "a" }, { "name": "b" }] },
            "outcomes": [{
                "lane": "b", "ended": "ok", "notes": { "why": "spent" },
                "attempts": [
                    { "lane": "a", "ended": "overloaded", "status": 429, "took-ms": 3 },
                    { "lane": "b", "ended": "ok", "status": 200 },
                ],
            }],
            "expect": { "state": { "spent": spent } },
        })
        .to_string()
    };
    for (version, spent, error) in [("2", 2428, "case_failed"), ("3", 2429, "")] {
        replace_file(&cases, case(spent).as_bytes());
        let status = deployment.deploy(&learning("x").version(version));
        assert_eq!(status["error"]["code"].as_str().unwrap_or_default(), error, "{status}");
    }
}

/// Adds to a counter: ten for each lane that is left, and the id of the first.
const READS_LANES_LEFT: &str = r#"
(USE fleet.lanes-left $left)
(USE metrics.add $add)
(ADVISE
  (call $left (i32.const 3000))
  (call $add (TEXT "left") (i64.extend_i32_u (i32.add
    (i32.mul (i32.load (i32.const 3004)) (i32.const 10))
    (i32.load (i32.load (i32.const 3000))))))
  (i32.const 2048))"#;

#[test]
fn policy_sees_the_lanes_that_earlier_filters_leave() {
    let filter = Guest::new("filter").only(1);
    let manifest = "[allow]\nmetrics = [\"left\"]\n";
    let reader = Guest::new("p").code(READS_LANES_LEFT).manifest(manifest);
    for (order, expected) in [(["p", "filter"], 20.0), (["filter", "p"], 11.0)] {
        let deployment = start_deployment(&[filter.clone(), reader.clone()], &order);
        let response = deployment.send_chat("auto");
        assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("b")));
        let left = deployment.host.metric("pointsman_policy_custom_total", "name=\"left\"");
        assert_eq!(left, expected, "{order:?}");
    }
}

#[test]
fn lanes_left_change_the_decision_of_a_golden_case() {
    let deployment = start_deployment(&[Guest::new("p")], &["p"]);
    let cases = deployment.policies().join("p/cases.jsonl");
    let expectations = [
        (json!(null), "a", vec!["b"], ""),
        (json!(["b"]), "b", vec![], ""),
        (json!(["b"]), "a", vec![], "case_failed"),
    ];
    for ((left, lane, fallback, error), version) in expectations.into_iter().zip(2..) {
        let case = json!({
            "name": "decides", "lanes-left": left,
            "request": { "body": { "model": "auto", "messages": [] } },
            "fleet": { "lanes": [
                { "name": "a", "models": ["auto"] }, { "name": "b", "models": ["auto"] },
            ] },
            "expect": { "lane": lane, "fallback": fallback },
        });
        replace_file(&cases, case.to_string().as_bytes());
        let status = deployment.deploy(&Guest::new("p").version(&version.to_string()));
        let code = status["error"]["code"].as_str().unwrap_or_default();
        assert_eq!(code, error, "{left} {lane}: {status}");
    }
}

/// A search for three patterns: the number of those found times 1000, and 100, 10 and 1 times the
/// pattern, message and offset of the second one.
const SEARCHES: &str = r#"
(USE request.find-any $find)
(ADVISE
  (call $pair (i32.const 2600) (TEXT "none"))
  (call $pair (i32.const 2608) (TEXT "SECOND"))
  (call $pair (i32.const 2616) (TEXT "boxer"))
  (call $find (i32.const 2600) (i32.const 3) (i32.const 1) (i32.const 3000))
  (call $why_number (i64.extend_i32_u (i32.add
    (i32.add
      (i32.mul (i32.load (i32.const 3004)) (i32.const 1000))
      (i32.mul (i32.load offset=16 (i32.load (i32.const 3000))) (i32.const 100)))
    (i32.add
      (i32.mul (i32.load offset=20 (i32.load (i32.const 3000))) (i32.const 10))
      (i32.load offset=24 (i32.load (i32.const 3000)))))))
  (i32.const 2048))"#;

/// The time left in milliseconds; 0 if it is not known.
const READS_DEADLINE: &str = r#"
(USE request.deadline-ms $deadline)
(ADVISE
  (call $deadline (i32.const 3000))
  (call $why_number (i64.extend_i32_u (i32.load (i32.const 3004))))
  (i32.const 2048))"#;

#[test]
fn policy_searches_patterns_and_knows_its_deadline() {
    let deployment = start_deployment(&[Guest::new("p").code(SEARCHES)], &["p"]);
    let messages = json!([
        { "role": "user", "content": "zwölf boxer" },
        { "role": "user", "content": "second" },
    ]);
    let body = chat("auto", json!({ "messages": messages }));
    let response = post(deployment.host.port, CHAT, &body);
    // `boxer` is in the first message, after seven bytes.
    assert_eq!((response.status, response.header("x-pointsman-reason")), (200, Some("2207")));
    let status = deployment.deploy(&Guest::new("p").version("2").code(READS_DEADLINE));
    assert_eq!(status["error"], Value::Null);
    let left: u64 = deployment.reason("auto").parse().unwrap();
    assert!((1..=3_600_000).contains(&left), "{left} ms");
    deployment.host.assert_no_request_lost();
}
