//! New versions are judged by what becomes of their requests, compared with those that stay with
//! the version before.

use std::collections::BTreeMap;

use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::{LoadGenerator, ObservedDecision};
use serde_json::{Value, json};

use super::{config, new, old};
use crate::{FAKE_ENGINE, lane};

/// The id of the lane that does not serve the model of the requests.
const OTHER_LANE: u32 = 2;
/// Requests of a bad version before it is rolled back. The test needs about a hundred; the rest
/// arrives until the next look at the trials.
const MAX_REQUESTS: u64 = 2000;

fn start(link: &str) -> Deployment {
    let config = config(&chain(&["p"], link)) + &lane("c", &["c"], &[]);
    Deployment::start(FAKE_ENGINE, policy_dir(&[old()]), &config)
}

/// Deploys a bad version under load, and waits until it is rolled back. Returns the rejection and
/// what the clients saw.
fn roll_out(link: &str, bad: &Guest) -> (Value, BTreeMap<ObservedDecision, u64>) {
    let deployment = start(link);
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    load.wait_for_requests(10);
    let active = deployment.policy("p")["version"].clone();
    deployment.deploy(bad);
    let status = deployment.wait_for_policy("the version is rolled back", "p", |policy| {
        policy["rejected"][0] != Value::Null
    });
    assert_eq!((&status["version"], &status["error"]["code"]), (&active, &json!("rolled_back")));
    load.wait_for_requests(10);
    assert!((0..20).all(|_| deployment.reason("auto") == "old"));
    let rejected = status["rejected"][0].clone();
    let code = rejected["code"].as_str().unwrap();
    let event = deployment.host.wait_for_event("policy_rolled_back", &[("code", code)]);
    let requests = |field: &str| event.field(field).and_then(Value::as_u64).unwrap();
    assert!(requests("control_requests") > 0, "{event:?}");
    assert!((1..MAX_REQUESTS).contains(&requests("new_requests")), "{event:?}");
    let seen = load.stop();
    deployment.host.assert_no_request_lost();
    (rejected, seen)
}

/// Asserts that every request was either served, or ended in this way because of the new version.
fn assert_statuses(seen: &BTreeMap<ObservedDecision, u64>, bad: u16) {
    assert!(seen.keys().any(|decision| decision.status == bad), "{seen:?}");
    for decision in seen.keys() {
        match decision.status {
            200 => assert_eq!(decision.reason, "old", "{seen:?}"),
            status => assert_eq!(status, bad, "{seen:?}"),
        }
    }
}

#[test]
fn version_that_rejects_everything_is_rolled_back() {
    let (rejected, seen) = roll_out("probation = { duration = \"1h\" }", &new().rejecting());
    assert_eq!(rejected["code"], "refusal_rate");
    assert_statuses(&seen, 403);
}

#[test]
fn version_that_leaves_no_lane_is_rolled_back() {
    let bad = Guest::new("p").reason("new").only(OTHER_LANE);
    let (rejected, seen) = roll_out("probation = { duration = \"1h\" }", &bad);
    assert_eq!(rejected["code"], "no_lane_rate");
    assert_statuses(&seen, 503);
}

#[test]
fn canary_that_rejects_everything_is_rolled_back() {
    let link = "rollout = \"canary\"\ncanary = { share = \"50%\", by = \"request\" }\n\
                probation = { control = \"20%\" }";
    let (rejected, seen) = roll_out(link, &new().rejecting());
    assert_eq!(rejected["code"], "refusal_rate");
    assert_statuses(&seen, 403);
}

/// The filter is invalid and dropped, so the version does no harm.
#[test]
fn version_with_an_invalid_filter_serves_requests() {
    let deployment = start("probation = { duration = \"1h\" }");
    deployment.deploy(&Guest::new("p").reason("new").only(99));
    let seen: Vec<u16> = (0..40).map(|_| deployment.send_chat("auto").status).collect();
    assert!(seen.iter().all(|status| *status == 200), "{seen:?}");
    let status = deployment.policy("p");
    assert_eq!((&status["rejected"], &status["error"]), (&json!([]), &Value::Null));
    let trial = &status["probation"]["trial"];
    assert_eq!(
        trial["new"]["requests"].as_u64().unwrap() + trial["control"]["requests"].as_u64().unwrap(),
        40,
        "{trial}"
    );
    let dropped = deployment.host.metric("pointsman_policy_advice_dropped_total", "part=\"lanes\"");
    assert_eq!(dropped, trial["new"]["requests"].as_f64().unwrap());
}

/// What the operator expects to change is not judged.
#[test]
fn outcomes_that_are_not_judged_do_not_end_a_probation() {
    let link = "probation = { duration = \"1h\", outcomes = [\"error\", \"no-lane\"] }";
    let deployment = start(link);
    deployment.deploy(&new().rejecting());
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    load.wait_for_requests(300);
    let seen = load.stop();
    let status = deployment.policy("p");
    assert_eq!((&status["rejected"], &status["error"]), (&json!([]), &Value::Null));
    // A share of the requests stayed with the version before.
    assert!(seen.keys().any(|decision| decision.reason == "old"), "{seen:?}");
    assert!(seen.keys().any(|decision| decision.status == 403), "{seen:?}");
}
