//! Filters, rejections and reasons are attributed to the policies that they come from, and invalid
//! filters do not take lanes away.

use pointsman_tests::client::Response;
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use serde_json::json;

use crate::{FAKE_ENGINE, lane};

fn start(guests: &[Guest], head: &str, link: &str) -> Deployment {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let lanes = ["a", "b"].map(|name| lane(name, &[name, "auto"], &[]));
    let config =
        format!("[policies]\ncache = \"cache\"\n{head}\n{}{}", chain(&names, link), lanes.concat());
    Deployment::start(FAKE_ENGINE, policy_dir(guests), &config)
}

/// Returns the names of the policies in a header.
fn policies(response: &Response, header: &str) -> Vec<String> {
    let value = response.header(header).unwrap_or_default();
    let name = |policy: &str| policy.split('@').next().unwrap().to_owned();
    value.split(", ").filter(|policy| !policy.is_empty()).map(name).collect()
}

/// A policy that names a lane which does not exist.
fn lost() -> Guest {
    Guest::new("lost").only(99)
}

#[test]
fn filter_of_unknown_lanes_is_dropped_and_counted() {
    let deployment = start(&[lost()], "", "");
    let response = deployment.send_chat("auto");
    assert_eq!(response.status, 200, "{}", response.text());
    let dropped = "policy=\"lost\",part=\"lanes\"";
    let metric = "pointsman_policy_advice_dropped_total";
    assert_eq!(deployment.host.metric(metric, dropped), 1.0);
    deployment.host.wait_for_event("filter_dropped", &[("policy", "lost"), ("on_error", "skip")]);
    deployment.host.assert_no_request_lost();
}

#[test]
fn dropped_filter_of_a_required_policy_refuses_the_request() {
    let deployment = start(&[lost()], "", "on-error = \"refuse\"");
    let response = deployment.send_chat("auto");
    assert_eq!((response.status, response.error_code()), (503, json!("policy_failed")));
    assert_eq!(policies(&response, "x-pointsman-decided-by"), ["lost"]);
    let effect = "effect=\"refused-on-error\"";
    assert_eq!(deployment.host.metric("pointsman_policy_effects_total", effect), 1.0);
}

#[test]
fn filters_that_leave_no_lane_are_named() {
    let guests = [Guest::new("first").only(0), Guest::new("audit"), Guest::new("second").only(1)];
    let deployment = start(&guests, "", "");
    let response = deployment.send_chat("auto");
    assert_eq!((response.status, response.error_code()), (503, json!("no_lane_available")));
    assert_eq!(policies(&response, "x-pointsman-policy"), ["first", "second"]);
    assert_eq!(response.header("x-pointsman-reason"), Some("reason of second"));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("first@1+") && message.contains("second@1+"), "{message}");
    assert!(!message.contains("audit"), "{message}");
    let code = ("code", "no_lane_available");
    let event = deployment.host.wait_for_event("request_failed", &[code]);
    assert!(event.text("error").contains("second@1+"), "{event:?}");
    for labels in ["policy=\"first\"", "policy=\"second\""] {
        let value = deployment.host.metric("pointsman_policy_effects_total", labels);
        assert_eq!(value, 1.0, "{labels}");
    }
    let effect = "effect=\"no-lane\"";
    assert_eq!(deployment.host.metric("pointsman_policy_effects_total", effect), 2.0);
}

#[test]
fn required_filter_is_not_ignored_on_conflict() {
    let guests = [Guest::new("first").only(0), Guest::new("second").only(1)];
    let head = "on-conflict = \"ignore-filters\"";
    let ignored = start(&guests, head, "");
    let response = ignored.send_chat("auto");
    assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("a")));
    assert_eq!(policies(&response, "x-pointsman-decided-by"), ["first"]);
    let refused = start(&guests, head, "on-error = \"refuse\"");
    assert_eq!(refused.send_chat("auto").error_code(), "no_lane_available");
}

#[test]
fn reason_is_that_of_the_policy_that_prevailed() {
    let guests = [Guest::new("gate").only(0), Guest::new("sticky").lane(1)];
    let deployment = start(&guests, "", "");
    let response = deployment.send_chat("auto");
    assert_eq!(response.header("x-pointsman-lane"), Some("a"));
    assert_eq!(response.header("x-pointsman-reason"), Some("reason of gate"));
    assert_eq!(policies(&response, "x-pointsman-decided-by"), ["gate"]);
    assert_eq!(policies(&response, "x-pointsman-policy"), ["gate", "sticky"]);
}

#[test]
fn rejection_has_the_reason_of_its_policy() {
    let deployment = start(&[Guest::new("calm").lane(1), Guest::new("guard").rejecting()], "", "");
    let response = deployment.send_chat("auto");
    assert_eq!((response.status, response.error_code()), (403, json!("blocked")));
    assert_eq!(response.header("x-pointsman-reason"), Some("reason of guard"));
    assert_eq!(policies(&response, "x-pointsman-policy"), ["guard"]);
    let status = deployment.policy("guard");
    assert_eq!(status["state"], json!("active"));
    let effect = "effect=\"rejected\"";
    assert_eq!(deployment.host.metric("pointsman_policy_effects_total", effect), 1.0);
}

/// A version that is refused while another one serves is not an error of the service.
#[test]
fn refused_version_is_a_warning_while_another_serves() {
    let old = Guest::new("p").lane(0);
    let deployment = start(std::slice::from_ref(&old), "", "");
    let manifest = deployment.policies().join("p/policy.toml");
    pointsman_tests::guests::replace_file(&manifest, b"name = ");
    deployment.reload();
    let version = deployment.policy("p")["version"].as_str().unwrap().to_owned();
    let fields = [("policy", "p"), ("active", version.as_str()), ("level", "WARN")];
    deployment.host.wait_for_event("policy_load_failed", &fields);
    assert_eq!(deployment.reason("auto"), "reason of p");
}
