//! Rollout of new policy versions: candidates in shadow mode and as canaries, probation, rollback
//! and promotion.

mod outcomes;
mod probation;
mod signed;

use std::collections::BTreeMap;

use pointsman_tests::client::{Response, chat, send};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Returns a configuration with two lanes and with these links of the policy chain.
fn config(links: &str) -> String {
    let lanes = ["a", "b"].map(|name| lane(name, &[name, "auto"], &[]));
    format!("[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}{}", lanes.concat())
}

/// Starts a host with one policy. `link` are the keys of its rollout.
fn start_deployment(guest: Guest, link: &str) -> Deployment {
    let config = config(&chain(&[guest.name.as_str()], link));
    Deployment::start(FAKE_ENGINE, policy_dir(&[guest]), &config)
}

fn old() -> Guest {
    Guest::new("p").reason("old").lane(0)
}

fn new() -> Guest {
    Guest::new("p").reason("new").lane(1)
}

/// Runs a policy command that must succeed, and returns its output.
fn run_command(deployment: &Deployment, arguments: &[&str]) -> String {
    let (code, out, err) = deployment.policy_command(arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    out
}

/// Sends a chat request with this request id and, optionally, with this API key.
fn send_with_id(deployment: &Deployment, id: &str, key: Option<&str>) -> Response {
    let key = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json"), ("x-request-id", id)];
    headers.extend(key.as_deref().map(|key| ("authorization", key)));
    let body = chat("auto", json!({ "max_tokens": 1 })).to_string();
    let response =
        send(deployment.host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

fn reason(response: &Response) -> &str {
    response.header("x-pointsman-reason").unwrap_or_default()
}

/// Code that counts calls in the state of the policy, and returns the count as the reason.
const COUNTS: &str = r#"
(USE state.increment $increment)
(ADVISE
  (call $increment (TEXT "calls") (i64.const 1) (i32.const 0) (i32.const 3000))
  (call $why_number (i64.load (i32.const 3008)))
  (i32.const 2048))"#;

#[test]
fn shadow_is_compared_and_decides_only_after_promotion() {
    let deployment = start_deployment(old(), "rollout = \"shadow\"");
    let staged = deployment.deploy(&new());
    assert_eq!((&staged["candidate"]["mode"], &staged["error"]), (&json!("shadow"), &Value::Null));
    for _ in 0..5 {
        let response = deployment.send_chat("auto");
        assert_eq!((reason(&response), response.header("x-pointsman-lane")), ("old", Some("a")));
    }
    let compared = deployment.wait_for_policy("the shadow was called", "p", |policy| {
        policy["candidate"]["differed"] == json!(5)
    });
    let difference = &compared["candidate"]["differences"][4];
    assert_eq!(
        (&difference["fields"], &compared["candidate"]["agreed"]),
        (&json!(["lanes"]), &json!(0))
    );
    assert_ne!(difference["active"]["lanes"], difference["shadow"]["lanes"]);
    assert_eq!(deployment.host.metric("pointsman_policy_shadow_total", "result=\"differed\""), 5.0);
    let report = &compared["candidate"]["report"];
    assert_eq!((report.as_array().unwrap().len(), &report[4]["part"]), (5, &json!("lanes")));
    assert_ne!(report[4]["active"], report[4]["shadow"]);
    let output = run_command(&deployment, &["show", "p"]);
    assert!(output.contains("shadow") && output.contains("differed: 5"), "{output}");
    let kind = output.lines().find(|line| line.starts_with("lanes "));
    assert!(kind.is_some_and(|line| line.ends_with("(5)")), "{output}");

    // A candidate that decides the same replaces the one that differed.
    deployment.deploy(&old().reason("the same in other words"));
    assert_eq!(reason(&deployment.send_chat("auto")), "old");
    deployment.wait_for_policy("the decisions agree", "p", |policy| {
        policy["candidate"]["agreed"] == json!(1)
    });
    deployment.deploy(&new());
    run_command(&deployment, &["promote", "p"]);
    let response = deployment.send_chat("auto");
    assert_eq!((reason(&response), response.header("x-pointsman-lane")), ("new", Some("b")));
    let status = deployment.policy("p");
    assert_eq!(
        (&status["candidate"], status["history"].as_array().map(Vec::len)),
        (&Value::Null, Some(1))
    );
    deployment.host.assert_no_request_lost();
}

#[test]
fn shadow_has_its_own_state() {
    let deployment = start_deployment(old().code(COUNTS), "rollout = \"shadow\"");
    assert_eq!(
        [reason(&deployment.send_chat("auto")), reason(&deployment.send_chat("auto"))],
        ["1", "2"]
    );
    deployment.deploy(&new().code(COUNTS));
    for calls in 3..=6 {
        assert_eq!(
            reason(&deployment.send_chat("auto")),
            calls.to_string(),
            "only its own calls count"
        );
    }
    let compared = deployment.wait_for_policy("the shadow was called", "p", |policy| {
        policy["candidate"]["calls"] == json!(4)
    });
    // The notes of the shadow show the count in its state.
    let notes = compared["candidate"]["differences"][3]["shadow"]["notes"].to_string();
    assert!(notes.contains('4') && !notes.contains('6'), "{notes}");
    run_command(&deployment, &["promote", "p"]);
    assert_eq!(
        reason(&deployment.send_chat("auto")),
        "7",
        "the active version has the state of the policy"
    );
}

/// A shadow that traps, and one that never returns: no request is affected or delayed.
#[test]
fn failing_shadow_does_not_affect_requests() {
    let deployment = start_deployment(old(), "rollout = \"shadow\"\ndeadline = \"100ms\"");
    for (code, kind) in [
        ("(ADVISE unreachable)", "trap"),
        ("(ADVISE (loop $again (br $again)) unreachable)", "timeout"),
    ] {
        deployment.deploy(&new().reason(kind).code(code));
        let mut times = Vec::new();
        for _ in 0..10 {
            let start = std::time::Instant::now();
            assert_eq!(reason(&deployment.send_chat("auto")), "old");
            times.push(start.elapsed());
        }
        // A request that waited for the shadow would take the shadow's deadline, in each of the
        // calls before its breaker opened.
        let fastest = times[..3].iter().min().unwrap();
        assert!(fastest.as_millis() < 90, "{kind}: {times:?}");
        let failed = deployment.wait_for_policy("the shadow has failed", "p", |policy| {
            policy["candidate"]["failed"] == json!(10)
        });
        assert_eq!((&failed["state"], &failed["faults"]), (&json!("active"), &json!(0)));
        // After three faults the breaker of the shadow opens, and it is no longer called.
        assert_eq!(failed["candidate"]["faults"], 3, "{kind}");
        assert_eq!(
            deployment.host.metric("pointsman_policy_faults_total", &format!("kind=\"{kind}\"")),
            3.0
        );
    }
    deployment.host.assert_no_request_lost();
}

#[test]
fn canary_gets_its_share_of_requests() {
    let link = "rollout = \"canary\"\ncanary = { share = \"20%\", by = \"request\" }";
    let deployment = start_deployment(old(), link);
    let staged = deployment.deploy(&new());
    assert_eq!(
        (&staged["candidate"]["mode"], &staged["candidate"]["share_permille"]),
        (&json!("canary"), &json!(200))
    );
    let canaries: Vec<bool> = std::thread::scope(|scope| {
        let asking = |part: usize| {
            let deployment = &deployment;
            scope.spawn(move || {
                let ids = (0..500).map(|id| format!("request-{part}-{id}"));
                ids.map(|id| reason(&send_with_id(deployment, &id, None)) == "new")
                    .collect::<Vec<bool>>()
            })
        };
        let parts: Vec<_> = (0..4).map(asking).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    let share = canaries.iter().filter(|is_canary| **is_canary).count();
    // 400 are expected, with a standard deviation of 18.
    assert!((320..=480).contains(&share), "{share} of 2000");
    for (id, was) in canaries.iter().enumerate().take(40) {
        let again = send_with_id(&deployment, &format!("request-0-{id}"), None);
        assert_eq!(reason(&again) == "new", *was, "the same request id gets the same version");
        assert_eq!(again.header("x-pointsman-lane"), Some(if *was { "b" } else { "a" }));
    }
    run_command(&deployment, &["promote", "p"]);
    assert!((0..20).all(|id| reason(&send_with_id(&deployment, &id.to_string(), None)) == "new"));
    run_command(&deployment, &["rollback", "p"]);
    assert!((0..20).all(|id| reason(&send_with_id(&deployment, &id.to_string(), None)) == "old"));
    deployment.host.assert_no_request_lost();
}

#[test]
fn canary_by_tenant_is_sticky() {
    let dir = policy_dir(&[old()]);
    let mut head = String::new();
    for tenant in 0..40 {
        std::fs::write(dir.path().join(format!("{tenant}.key")), format!("key-{tenant}\n"))
            .unwrap();
        head += &format!("[[keys]]\ntenant = \"team-{tenant}\"\nfile = \"{tenant}.key\"\n");
    }
    let link = "rollout = \"canary\"\ncanary = { share = \"50%\" }";
    let deployment = Deployment::start(FAKE_ENGINE, dir, &(head + &config(&chain(&["p"], link))));
    deployment.deploy(&new());
    let versions = |round: u32| -> BTreeMap<u32, String> {
        let version = |tenant: u32| {
            let id = format!("{round}-{tenant}");
            (
                tenant,
                reason(&send_with_id(&deployment, &id, Some(&format!("key-{tenant}")))).to_owned(),
            )
        };
        (0..40).map(version).collect()
    };
    let first = versions(0);
    let canaries = first.values().filter(|reason| *reason == "new").count();
    assert!((8..=32).contains(&canaries), "{canaries} of 40");
    for round in 1..4 {
        assert_eq!(versions(round), first);
    }
    // After the rollback, the candidate gets no requests and is not loaded from the folder again.
    run_command(&deployment, &["rollback", "p"]);
    assert!(versions(4).values().all(|reason| reason == "old"));
    deployment.reload();
    let status = deployment.policy("p");
    assert_eq!(
        (&status["candidate"], &status["rejected"][0]["code"]),
        (&Value::Null, &json!("rolled_back_by_operator"))
    );
}

#[test]
fn faulting_canary_is_rolled_back() {
    let deployment = start_deployment(
        old(),
        "rollout = \"canary\"\ncanary = { share = \"50%\", by = \"request\" }",
    );
    let load = LoadGenerator::start(deployment.host.port, 2, "auto");
    let bad =
        deployment.deploy(&new().code("(ADVISE unreachable)"))["candidate"]["version"].clone();
    let status = deployment.wait_for_policy("the candidate is rolled back", "p", |policy| {
        policy["candidate"].is_null()
    });
    let bad = bad.as_str().unwrap();
    assert_eq!(status["error"]["code"], "rolled_back", "{status}");
    assert!(status["error"]["message"].as_str().unwrap().contains(bad), "{status}");
    assert_eq!(status["rejected"][0]["version"], bad[2..]);
    assert_eq!(status["rejected"][0]["code"], "breaker_open");
    load.wait_for_requests(20);
    assert!(load.stop().keys().all(|seen| seen.status == 200));
    wait_until("only the old version decides", || reason(&deployment.send_chat("auto")) == "old");
    let open = deployment.host.metric("pointsman_policy_breaker_open", "");
    assert_eq!(open, 0.0, "a version that is not called any more must not raise an alert");
    let (code, _, err) = deployment.policy_command(&["promote", "p"]);
    assert!(code == 1 && err.contains("[no_candidate]"), "{err}");
    deployment.host.assert_no_request_lost();
}

#[test]
fn candidate_survives_restart() {
    let link = "rollout = \"shadow\"";
    let deployment = start_deployment(old(), link);
    let staged = deployment.deploy(&new())["candidate"]["version"].clone();
    let deployment = deployment.restart(FAKE_ENGINE, &config(&chain(&["p"], link)));
    assert_eq!(
        (reason(&deployment.send_chat("auto")), &deployment.policy("p")["candidate"]["version"]),
        ("old", &staged)
    );
    run_command(&deployment, &["promote", "p"]);
    let deployment = deployment.restart(FAKE_ENGINE, &config(&chain(&["p"], link)));
    let status = deployment.policy("p");
    assert_eq!((&status["version"], &status["candidate"]), (&staged, &Value::Null));
    // After a rollback, the candidate stays rejected.
    let rejected = deployment.deploy(&new().reason("newer"))["candidate"]["version"].clone();
    assert_ne!(rejected, Value::Null);
    run_command(&deployment, &["rollback", "p"]);
    let deployment = deployment.restart(FAKE_ENGINE, &config(&chain(&["p"], link)));
    let status = deployment.policy("p");
    assert_eq!(
        (reason(&deployment.send_chat("auto")), &status["candidate"]),
        ("new", &Value::Null)
    );
    assert_eq!(status["error"]["code"], "version_rejected", "{status}");
}

#[test]
fn operators_select_versions_by_fingerprint() {
    let deployment = start_deployment(old(), "");
    let id = |version: &Value| version["fingerprint"].as_str().unwrap()[..8].to_owned();
    let versions: Vec<String> =
        ["one", "two", "three"].map(|reason| id(&deployment.deploy(&old().reason(reason)))).into();
    run_command(&deployment, &["rollback", "p", "--to", &versions[0]]);
    assert_eq!(reason(&deployment.send_chat("auto")), "one");
    // The rejected version is not loaded from the folder again, but can be promoted by fingerprint.
    deployment.reload();
    assert_eq!(reason(&deployment.send_chat("auto")), "one");
    run_command(&deployment, &["promote", "p", &versions[2]]);
    assert_eq!(reason(&deployment.send_chat("auto")), "three");
    let active = versions[2].as_str();
    for (arguments, error_code, version) in [
        (vec!["promote", "p", active], "[version_already_active]", active),
        (vec!["rollback", "p", "--to", "0badc0de"], "[version_not_found]", "0badc0de"),
        (vec!["promote", "p"], "[no_candidate]", ""),
    ] {
        let (code, _, err) = deployment.policy_command(&arguments);
        assert!(
            code == 1 && err.contains(error_code) && err.contains(version),
            "{arguments:?}: {err}"
        );
    }
    run_command(&deployment, &["disable", "p"]);
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-policy"), Some("built-in"));
    // A disabled policy still loads new versions.
    deployment.deploy(&new());
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-policy"), Some("built-in"));
    run_command(&deployment, &["enable", "p"]);
    assert_eq!(reason(&deployment.send_chat("auto")), "new");
    deployment.host.assert_no_request_lost();
}

/// The policy has not changed, but the rollout of its candidate has.
#[test]
fn candidate_follows_changed_rollout_mode() {
    let deployment = start_deployment(old(), "rollout = \"shadow\"");
    assert_eq!(deployment.deploy(&new())["candidate"]["mode"], "shadow");
    let canary = "rollout = \"canary\"\ncanary = { share = \"100%\" }";
    for (link, mode, decides) in [
        (canary, json!("canary"), "new"),
        ("rollout = \"shadow\"", json!("shadow"), "old"),
        ("", Value::Null, "new"),
    ] {
        deployment.write_config(&config(&chain(&["p"], link)));
        deployment.reload();
        let status = deployment.policy("p");
        assert_eq!(
            (&status["candidate"]["mode"], &status["error"]),
            (&mode, &Value::Null),
            "{status}"
        );
        assert_eq!(deployment.reason("auto"), decides, "{link}");
    }
    let status = deployment.policy("p");
    assert_eq!(status["history"].as_array().map(Vec::len), Some(1), "{status}");
}
