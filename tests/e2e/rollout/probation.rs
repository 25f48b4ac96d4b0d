//! Probation: a version that has just become active is watched, and rolled back automatically.

use pointsman_tests::client::{chat, post};
use pointsman_tests::deployment::Deployment;
use pointsman_tests::guests::replace_file;
use pointsman_tests::load::LoadGenerator;
use serde_json::{Value, json};

use super::{new, old, start_deployment};

const CHAT: &str = "/v1/chat/completions";

/// Code that traps in every twentieth call, counted in the state of the policy.
const EVERY_20TH: &str = r#"
(USE state.increment $increment)
(ADVISE
  (call $increment (TEXT "calls") (i64.const 1) (i32.const 0) (i32.const 3000))
  (if (i64.eqz (i64.rem_s (i64.load (i32.const 3008)) (i64.const 20))) (then unreachable))
  (i32.const 2048))"#;

/// Code that counts to some millions, which takes milliseconds.
const SLOW: &str = r#"
(ADVISE
  (local $left i32)
  (local.set $left (i32.const 3000000))
  (loop $again
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $again (local.get $left)))
  (i32.const 2048))"#;

/// Waits until the version is rolled back under load, and asserts that it is rejected with one
/// of these codes.
fn assert_rolled_back(deployment: &Deployment, load: &LoadGenerator, bad: &Value, codes: &[&str]) {
    assert_ne!(bad["probation"], Value::Null, "{bad}");
    let status = deployment.wait_for_policy("the version is rolled back", "p", |policy| {
        policy["version"] != bad["version"]
    });
    load.wait_for_requests(10);
    assert_eq!(deployment.reason("auto"), "old");
    let rejected = &status["rejected"][0];
    assert_eq!(rejected["version"], bad["fingerprint"].as_str().unwrap()[..8]);
    assert!(codes.iter().any(|code| rejected["code"] == *code), "{rejected}");
    assert_eq!(
        deployment.host.metric("pointsman_policy_changes_total", "result=\"auto-rolled-back\""),
        1.0
    );
    let version = bad["version"].as_str().unwrap();
    let reason = rejected["reason"].as_str().unwrap();
    let message = status["error"]["message"].as_str().unwrap();
    assert_eq!(status["error"]["code"], "rolled_back", "{status}");
    assert!(message.contains(version) && message.contains(reason), "{message}");
    let code = rejected["code"].as_str().unwrap();
    let fields = [("policy", "p"), ("version", version), ("code", code)];
    deployment.host.wait_for_event("policy_rolled_back", &fields);
    // The version stays rejected, although its files are still in the folder.
    let wasm = deployment.policies().join("p/policy.wasm");
    replace_file(&wasm, &std::fs::read(&wasm).unwrap());
    deployment.reload();
    assert_eq!(deployment.reason("auto"), "old");
    assert_eq!(deployment.policy("p")["error"]["code"], "version_rejected");
}

#[test]
fn occasionally_faulting_version_is_rolled_back() {
    let deployment =
        start_deployment(old(), "probation = { duration = \"1h\", max-faults = \"2%\" }");
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    let bad = deployment.deploy(&new().code(EVERY_20TH));
    // Three faults within ten seconds open the breaker as well; either may be seen first.
    assert_rolled_back(&deployment, &load, &bad, &["fault_rate", "breaker_open"]);
    let seen = load.stop();
    assert!(seen.keys().all(|seen| seen.status == 200), "{seen:?}");
    deployment.host.assert_no_request_lost();
}

#[test]
fn slow_version_is_rolled_back() {
    let deployment = start_deployment(
        old(),
        "budget = \"500us\"\ndeadline = \"100ms\"\n\
         probation = { duration = \"1h\", max-slow = \"50%\" }",
    );
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    let bad = deployment.deploy(&new().code(SLOW));
    assert_rolled_back(&deployment, &load, &bad, &["slow_calls"]);
    assert!(load.stop().keys().all(|seen| seen.status == 200));
}

/// Code that traps for some requests.
const TRAPS_FOR_SOME: &str = r#"
(USE request.contains $contains)
(ADVISE
  (if (call $contains (TEXT "poison") (i32.const 0)) (then unreachable))
  (i32.const 2048))"#;

#[test]
fn faults_of_both_versions_do_not_end_probation() {
    let deployment = start_deployment(
        old().code(TRAPS_FOR_SOME),
        "probation = { duration = \"2s\", control = \"0%\" }",
    );
    let watched = deployment.deploy(&new().code(TRAPS_FOR_SOME));
    assert_ne!(watched["probation"], Value::Null, "{watched}");
    let poison = json!({ "messages": [{ "role": "user", "content": "poison" }] });
    for _ in 0..3 {
        let response = post(deployment.host.port, CHAT, &chat("auto", poison.clone()));
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(deployment.policy("p")["faults"], 3);
    let passed = deployment
        .wait_for_policy("the probation is over", "p", |policy| policy["probation"].is_null());
    assert_eq!((&passed["version"], &passed["rejected"]), (&watched["version"], &json!([])));
}

#[test]
fn version_stays_after_successful_probation() {
    let deployment = start_deployment(old(), "probation = { duration = \"300ms\" }");
    let watched = deployment.deploy(&new());
    assert_ne!(watched["probation"], Value::Null);
    let passed = deployment
        .wait_for_policy("the probation is over", "p", |policy| policy["probation"].is_null());
    assert_eq!((&passed["version"], &passed["rejected"]), (&watched["version"], &json!([])));
    assert_eq!(deployment.reason("auto"), "new");
}
