//! Reload of `[policies]`.

use std::fs;

use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use super::{config, engines, start_deployment};
use crate::FAKE_ENGINE;

/// Returns the names of the policies in chain order.
fn policy_names(deployment: &Deployment) -> Vec<String> {
    let policies = deployment.host.status()["policies"].clone();
    policies
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Code that returns the configuration of the policy as the reason.
const RETURNS_CONFIG: &str = r#"
(func (export "pointsman:policy/lifecycle@0.1.3#configure") (param i32 i32) (result i32)
  (call $why_text (local.get 0) (local.get 1)) (i32.const 1024))"#;

#[test]
fn chain_order_weights_and_members_change_without_restart() {
    let opinions = [
        Guest::new("first").reason("first").lane(0),
        Guest::new("second").reason("second").lane(1),
    ];
    let deployment = start_deployment(&opinions);
    let before = engines(&deployment);
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    let consulted = || {
        let response = deployment.send_chat("auto");
        let policies = response.header("x-pointsman-policy").unwrap_or_default().split(", ");
        policies.map(|policy| policy.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(policy_names(&deployment), ["first", "second"]);
    assert_eq!(consulted(), ["first", "second"]);
    deployment.write_config(&config(&chain(&["second", "first"], "")));
    wait_until("the order has changed", || consulted() == ["second", "first"]);
    assert_eq!(policy_names(&deployment), ["second", "first"]);
    let versions = deployment.policy("first")["history"].clone();
    assert_eq!(versions, json!([]), "a new order is not a new version");

    // The policy with the greater weight decides the lane.
    for (weight, lane) in [(10, "b"), (3000, "a")] {
        deployment.write_config(&config(
            &(chain(&["first"], &format!("weight = {weight}")) + &chain(&["second"], "")),
        ));
        deployment.reload();
        assert_eq!(
            deployment.send_chat("auto").header("x-pointsman-lane"),
            Some(lane),
            "weight {weight}"
        );
    }
    deployment.write_config(&config(&chain(&["second"], "")));
    deployment.reload();
    assert_eq!(
        (policy_names(&deployment), deployment.reason("auto").as_str()),
        (vec!["second".into()], "second")
    );
    assert_eq!(deployment.admin("GET", "/policies/first", "").status, 404);
    deployment.write_config(&config(""));
    deployment.reload();
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-policy"), Some("built-in"));
    deployment.write_config(&config(&chain(&["second", "first"], "")));
    deployment.reload();
    assert_eq!(consulted(), ["second", "first"]);
    assert_eq!(engines(&deployment), before);
    assert!(load.stop().keys().all(|seen| seen.status == 200));
    deployment.host.assert_no_request_lost();
}

#[test]
fn changed_policy_config_is_new_version() {
    let dir = policy_dir(&[Guest::new("p").code(RETURNS_CONFIG)]);
    let deployment =
        Deployment::start(FAKE_ENGINE, dir, &config(&chain(&["p"], "config = { a = 1 }")));
    assert_eq!(deployment.reason("auto"), "{\"a\":1}");
    let first = deployment.policy("p");
    deployment.write_config(&config(&chain(&["p"], "config = { a = 2 }")));
    deployment.wait_for_reason("auto", "{\"a\":2}");
    let second = deployment.policy("p");
    assert_eq!(second["history"][0]["version"], first["version"]);
    assert_eq!(second["component_sha256"], first["component_sha256"]);
    assert_eq!(second["config"], json!({ "a": 2 }));
    // A rollback restores the configuration as well.
    let (code, out, err) = deployment.policy_command(&["rollback", "p"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(deployment.reason("auto"), "{\"a\":1}");
}

#[test]
fn failure_mode_changes_immediately() {
    let deployment = start_deployment(&[Guest::new("p").code("(ADVISE unreachable)")]);
    for (mode, status) in [("refuse", 503), ("skip", 200)] {
        deployment.write_config(&config(&chain(&["p"], &format!("on-error = {mode:?}"))));
        deployment.reload();
        assert_eq!(deployment.send_chat("auto").status, status, "{mode}");
        assert_eq!(deployment.policy("p")["on_error"], mode);
    }
}

#[test]
fn invalid_config_changes_nothing_and_is_reported() {
    let deployment = start_deployment(&[Guest::new("p").reason("one")]);
    let good = config(&chain(&["p"], ""));
    for (broken, key, code) in [
        (format!("{good}[policies"), "", "syntax"),
        (config(&chain(&["p", "p"], "")), "policies.chain", "duplicate"),
        (config(&chain(&["p"], "colour = 3")), "colour", "unknown_key"),
        (config(&chain(&["p"], "rollout = \"often\"")), "rollout", "invalid_value"),
    ] {
        deployment.write_config(&broken);
        wait_until(&format!("the error {code} of `{key}` is reported"), || {
            let error = deployment.host.status()["config"]["error"].clone();
            error
                .as_str()
                .is_some_and(|error| error.contains(key) && error.contains(&format!("[{code}]")))
        });
        assert_eq!(deployment.reason("auto"), "one");
        let failures = deployment.host.events("config_reload_failed", &[]);
        assert!(failures.iter().any(|event| event.text("error").contains(code)), "{failures:?}");
        deployment.write_config(&good);
        wait_until("the configuration is valid again", || {
            deployment.host.status()["config"]["error"].is_null()
        });
    }
    fs::remove_file(deployment.host.dir.path().join("pointsman.toml")).unwrap();
    deployment.reload();
    assert_ne!(deployment.host.status()["config"]["error"], Value::Null);
    assert_eq!(deployment.reason("auto"), "one");
}
