//! Hostile policies, in addition to those of `policies.rs`: each only loses its advice.

use std::time::{Duration, Instant};

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::{Guest, component, module, replace_file};
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

fn start_deployment(guests: &[Guest], links: &str) -> Deployment {
    let lanes =
        ["a", "b"].map(|name| lane(name, &[name, "auto"], &["--script", r#"{"echo": true}"#]));
    Deployment::start(
        FAKE_ENGINE,
        policy_dir(guests),
        &format!("[policies]\ncache = \"cache\"\n{links}{}", lanes.concat()),
    )
}

fn policy_metric(deployment: &Deployment, metric: &str, policy: &str) -> f64 {
    deployment
        .host
        .metric(&format!("pointsman_policy_{metric}_total"), &format!("policy=\"{policy}\""))
}

/// Replaces the component of a policy, whose manifest stays.
fn replace_component(deployment: &Deployment, name: &str, component: &[u8]) {
    deployment.write_policy(&Guest::new(name));
    replace_file(&deployment.policies().join(name).join("policy.wasm"), component);
}

/// Faults during a call are counted under their kind; after three faults the policy is not called
/// any more.
#[test]
fn faults_are_counted_and_open_breaker() {
    let resource = "export things: interface { resource thing { constructor(); } }";
    let hostile = [
        (Guest::from_file("handle-bomb").world(resource), "trap"),
        (Guest::from_file("calls-import-in-realloc"), "trap"),
        (Guest::from_file("list-length-overflow"), "trap"),
        (Guest::from_file("loop-in-post-return"), "timeout"),
    ];
    let guests: Vec<Guest> = hostile
        .iter()
        .map(|(guest, _)| guest.clone())
        .chain([Guest::new("good").reason("good")])
        .collect();
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let deployment = start_deployment(&guests, &chain(&names, ""));
    for policy in deployment.host.status()["policies"].as_array().unwrap() {
        assert_eq!(policy["state"], "active", "{policy}");
    }
    let before = deployment.host.resource_usage();
    for round in 1..=4 {
        assert_eq!(deployment.reason("auto"), "good");
        for (guest, kind) in &hostile {
            let name = guest.name.as_str();
            assert_eq!(
                policy_metric(&deployment, "faults", name),
                f64::from(round.min(3)),
                "{name}"
            );
            let metrics = get(deployment.host.port, "/metrics").text();
            let is_of_kind = |line: &str| {
                line.starts_with("pointsman_policy_faults")
                    && line.contains(name)
                    && line.contains(kind)
            };
            assert!(metrics.lines().any(is_of_kind), "{name}: {kind}\n{metrics}");
        }
    }
    for (guest, _) in &hostile {
        assert_eq!(deployment.policy(&guest.name)["state"], "breaker-open");
    }
    let after = deployment.host.resource_usage();
    // Dropped instances are replaced, and the allocator keeps the slots of up to 16 of them, with
    // some mappings each.
    assert!(
        after.threads <= before.threads + 2 && after.maps <= before.maps + 20 + 16 * 5,
        "{before:?} {after:?}"
    );
    deployment.host.assert_no_request_lost();
}

/// A guest without a loop that searches the whole prompt two thousand times.
fn searching_guest(name: &str) -> Guest {
    let search = r#"(drop (call $contains (TEXT "needle") (i32.const 1)))"#;
    let code = format!(
        "(USE request.contains $contains)\n(ADVISE {} (i32.const 2048))",
        search.repeat(2000)
    );
    Guest::new(name).code(&code)
}

#[test]
fn host_calls_without_a_loop_are_limited() {
    let deployment = start_deployment(
        &[searching_guest("searches"), Guest::new("good").reason("good")],
        &(chain(&["searches"], "deadline = \"100ms\"") + &chain(&["good"], "")),
    );
    let body = chat(
        "auto",
        json!({ "messages": [
            { "role": "user", "content": "a".repeat(8 << 20) },
        ]}),
    );
    let response = post(deployment.host.port, CHAT, &body);
    assert_eq!(response.header("x-pointsman-reason"), Some("good"), "{}", response.text());
    let failed = deployment.host.events("advice_failed", &[("policy", "searches")]);
    let kinds: Vec<String> = failed.iter().map(|event| event.text("kind")).collect();
    assert!(kinds == ["host-calls"] || kinds == ["timeout"], "{kinds:?}");
    deployment.host.assert_no_request_lost();
}

/// Four policies that take long, under requests of several clients: the host answers meanwhile.
#[test]
fn slow_policies_do_not_hold_up_the_host() {
    let slow = "(ADVISE (local $left i32) (local.set $left (i32.const 30000000)) \
                (loop $again (local.set $left (i32.sub (local.get $left) (i32.const 1))) \
                (br_if $again (local.get $left))) (i32.const 2048))";
    let names = ["slow-1", "slow-2", "slow-3", "slow-4"];
    let guests = names.map(|name| Guest::new(name).code(slow));
    let deployment = start_deployment(&guests, &chain(&names, "deadline = \"100ms\""));
    let load = LoadGenerator::start(deployment.host.port, 8, "auto");
    load.wait_for_requests(20);
    let waits = (0..200).map(|_| {
        let start = Instant::now();
        assert_eq!(get(deployment.host.port, "/livez").status, 200);
        start.elapsed()
    });
    let longest = waits.max().unwrap();
    println!("longest wait of /livez: {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(load.stop().keys().all(|seen| seen.status == 200));
    deployment.host.assert_no_request_lost();
}

/// Returns a section of a component that contains a core module.
fn section(module: &[u8]) -> Vec<u8> {
    let mut section = vec![1];
    let mut length = module.len();
    loop {
        let more = length > 0x7f;
        section.push((length & 0x7f) as u8 | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    section.extend(module);
    section
}

/// Returns a valid policy with additional modules that it does not use.
fn with_modules(name: &str, module: &str, count: usize) -> Vec<u8> {
    let module = section(&wat::parse_str(module).unwrap());
    [Guest::new(name).build(), module.repeat(count)].concat()
}

#[test]
fn oversized_or_foreign_components_are_not_compiled() {
    let functions = format!("(module {})", "(func)".repeat(100_001));
    let function = format!("(module (func {}))", "(drop (i32.const 1))".repeat(400_000));
    let least = module("wrong-world", "(ADVISE (i32.const 1024))");
    let wrong = component(&least, "policy", |wit| wit.replace("out-of-budget,", "out-of-time,"));
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(4096, 0);
    // The policy, its component, the code of the error, and a value that its message must contain.
    let table = [
        ("modules", with_modules("modules", "(module)", 65), "component_too_large", "64"),
        ("functions", with_modules("functions", &functions, 1), "component_too_large", "100000"),
        ("function", with_modules("function", &function, 1), "component_too_large", "1048576"),
        ("wrong-world", wrong, "contract_mismatch", "0.1.3"),
        ("cwasm", elf, "component_invalid", ".cwasm"),
    ];
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).chain(["good"]).collect();
    let guests: Vec<Guest> = names.iter().map(|name| Guest::new(name).reason(name)).collect();
    let deployment = start_deployment(&guests, &chain(&names, ""));
    let mut before = None;
    for (name, component, code, value) in &table {
        replace_component(&deployment, name, component);
        deployment.reload();
        let status = deployment.policy(name);
        assert_eq!(status["error"]["code"], *code, "{name}: {status}");
        assert!(status["error"]["message"].as_str().unwrap().contains(value), "{name}: {status}");
        assert_eq!(
            (status["state"].as_str(), policy_metric(&deployment, "load_failures", name)),
            (Some("active"), 1.0),
            "{name}"
        );
        assert_eq!(deployment.reason("auto"), "good", "{name}");
        // After the first one, because the first reload starts threads, each with mappings.
        before.get_or_insert_with(|| deployment.host.resource_usage());
    }
    let (before, after) = (before.unwrap(), deployment.host.resource_usage());
    assert!(
        after.threads <= before.threads + 4 && after.maps <= before.maps + 20,
        "{before:?} {after:?}"
    );
    deployment.host.assert_no_request_lost();
}

#[test]
fn excess_log_lines_are_dropped_and_counted() {
    let deployment = start_deployment(
        &[Guest::from_file("log-flood")],
        &chain(&["log-flood"], "deadline = \"100ms\""),
    );
    for _ in 0..3 {
        assert_eq!(deployment.send_chat("auto").status, 200);
    }
    let dropped = deployment.host.metric("pointsman_policy_advice_dropped_total", "part=\"log\"");
    let mut written = 0;
    wait_until("all lines that were not dropped are written", || {
        let events = deployment.host.all_events();
        written = events.iter().filter(|event| event.message() == "a repeated line").count();
        written as f64 + dropped == 3000.0
    });
    assert!((1..=200).contains(&written), "{written} lines");
    assert_eq!(policy_metric(&deployment, "faults", "log-flood"), 0.0);
    deployment.host.assert_no_request_lost();
}

#[test]
fn excess_state_is_evicted() {
    let deployment = start_deployment(
        &[Guest::from_file("state-flood")],
        &chain(&["state-flood"], "deadline = \"100ms\""),
    );
    assert_eq!(deployment.send_chat("auto").status, 200);
    let mut resident = vec![deployment.host.resource_usage().resident];
    for _ in 0..4 {
        for _ in 0..75 {
            assert_eq!(deployment.send_chat("auto").status, 200);
        }
        resident.push(deployment.host.resource_usage().resident);
    }
    // In each interval the calls wrote 15 MB; the state of a policy holds at most 1 MB.
    assert_no_steady_growth(&resident, 2 << 20);
    assert_eq!(policy_metric(&deployment, "faults", "state-flood"), 0.0);
    assert_eq!(deployment.host.metric("pointsman_policy_calls_total", "result=\"ok\""), 301.0);
    deployment.host.assert_no_request_lost();
}

#[test]
fn advice_that_manifest_does_not_allow_is_dropped() {
    let guests = [
        Guest::from_file("edit-forbidden-field"),
        Guest::from_file("score-out-of-range"),
        Guest::new("honest").lane(0),
    ];
    // A score of 65535, which is capped at 1000, against 1000 with a slightly greater weight.
    let links = chain(&["edit-forbidden-field", "score-out-of-range"], "")
        + &chain(&["honest"], "weight = 1100");
    let deployment = start_deployment(&guests, &links);
    let body = chat("auto", json!({ "user": "me" }));
    let response = post(deployment.host.port, CHAT, &body);
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("a")),
        "{}",
        response.text()
    );
    let arrived: Value = serde_json::from_str(response.json()["body"].as_str().unwrap()).unwrap();
    assert_eq!((&arrived["user"], &arrived["messages"]), (&body["user"], &body["messages"]));
    assert_ne!(arrived["model"], "other");
    assert!(!response.text().contains("stolen"));
    for edit in ["set-field", "set-model", "set-header"] {
        let dropped = deployment
            .host
            .metric("pointsman_policy_advice_dropped_total", &format!("part=\"{edit}\""));
        assert_eq!(dropped, 1.0, "{edit}");
    }
    assert_eq!(deployment.host.metric("pointsman_policy_faults_total", ""), 0.0);
    deployment.host.assert_no_request_lost();
}
