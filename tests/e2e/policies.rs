//! Policies: the Cortex policy, and faulty policies that must not affect requests.

use std::fs;
use std::path::Path;

use pointsman_tests::client::post;
use pointsman_tests::guests::{build, component, module};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Returns a directory that has these policies below `policies`.
pub(crate) fn policy_dir(policies: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, component) in policies {
        let folder = dir.path().join("policies").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("policy.toml"),
            format!("name = {name:?}\nversion = \"1\"\napi = \"0.1\"\n"),
        )
        .unwrap();
        fs::write(folder.join("policy.wasm"), component).unwrap();
    }
    dir
}

pub(crate) fn chain(names: &[&str], more: &str) -> String {
    let link = |name: &&str| format!("[[policies.chain]]\nname = {name:?}\n{more}\n");
    format!("[policies]\ncache = \"cache\"\n{}", names.iter().map(link).collect::<String>())
}

pub(crate) fn start(dir: TempDir, config: &str) -> Host {
    Host::start_in(&program(FAKE_ENGINE), dir, config, &[]).wait_until_ready()
}

/// Starts a host with the five lanes of Cortex and its committed policy.
pub(crate) fn cortex(config: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let policies = root().join("policies");
    let general = ["orchestrator", "coder", "fast_rag", "super_reader"]
        .map(|name| lane(name, &[name, "auto"], &[]));
    let lanes = general.concat() + &lane("governance", &["governance"], &[]);
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"cortex\"\n\
         {config}\n{lanes}"
    );
    start(dir, &config)
}

fn send_chat(host: &Host, model: &str, text: &str) -> pointsman_tests::client::Response {
    post(
        host.port,
        CHAT,
        &json!({ "model": model, "messages": [{ "role": "user", "content": text }] }),
    )
}

#[test]
fn cortex_decides_by_model_name_and_content() {
    let host = cortex("");
    for (model, text, lane, why) in [
        ("governance", "fn main()", "governance", "governance: requested by model name"),
        ("auto", "plan my day", "orchestrator", "orchestrator: no other lane matches"),
        ("auto", "why does fn main() not compile?", "coder", "coder: the prompt is about code"),
        (
            "auto",
            "Context: the sky is blue.",
            "fast_rag",
            "fast_rag: the prompt includes its sources",
        ),
    ] {
        let response = send_chat(&host, model, text);
        assert_eq!(
            (response.status, response.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            response.text()
        );
        assert!(response.header("x-pointsman-policy").unwrap().starts_with("cortex@0.1.0+"));
        assert_eq!(response.header("x-pointsman-reason"), Some(why));
    }
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"ok\""), 4.0);
    host.assert_no_request_lost();
}

#[test]
fn cortex_falls_back_to_super_reader_except_for_governance() {
    let host = cortex("");
    host.set_script("orchestrator", json!({ "status": 500 }));
    let response = send_chat(&host, "orchestrator", "hi");
    assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("super_reader")));
    assert_eq!(response.header("x-pointsman-attempts"), Some("2"));
    host.set_script("governance", json!({ "status": 500 }));
    let response = send_chat(&host, "governance", "hi");
    assert_eq!((response.status, response.header("x-pointsman-lane")), (502, Some("governance")));
    // An overload passes: a request for one model waits for it.
    host.set_script("coder", json!({ "status": 503 }));
    let response = send_chat(&host, "coder", "hi");
    assert_eq!((response.status, response.error_code()), (503, "engine_overloaded".into()));
    host.assert_no_request_lost();
}

#[test]
fn system_prompt_is_configurable() {
    let host = cortex(
        "config = { system-prompt = { text = \"Be \\\"brief\\\".\", lanes = [\"coder\"] } }",
    );
    let request_body = |model: &str| -> Value {
        host.set_script(model, json!({ "echo": true }));
        serde_json::from_str(send_chat(&host, model, "hi").json()["body"].as_str().unwrap())
            .unwrap()
    };
    assert_eq!(
        request_body("coder")["messages"][0],
        json!({ "role": "system", "content": "Be \"brief\"." })
    );
    assert_eq!(request_body("governance")["messages"][0]["role"], "user");
    host.assert_no_request_lost();
}

/// A chain of policies that all fault. Every request is served, and every fault is counted under
/// the name of its policy.
#[test]
fn faulting_policies_do_not_affect_requests() {
    let hostile = [
        ("loop", "timeout"),
        ("unreachable", "trap"),
        ("deep-recursion", "trap"),
        ("grow-memory", "memory"),
        ("giant-string", "output-too-large"),
        ("giant-list", "trap"),
        ("bad-discriminant", "trap"),
        ("bad-utf8", "trap"),
        ("unaligned-pointer", "trap"),
        ("pointer-out-of-bounds", "trap"),
    ];
    let names: Vec<&str> =
        hostile.iter().map(|(name, _)| *name).chain(["policy-error", "no-opinion"]).collect();
    let policies: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, build(name))).collect();
    let host = start(policy_dir(&policies), &(chain(&names, "") + &lane("a", &["a"], &[])));
    let before = host.resource_usage();
    let mut resident = vec![before.resident];
    for round in 1..=3 {
        let response = send_chat(&host, "a", "hi");
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.header("x-pointsman-policy").unwrap().starts_with("no-opinion@1+"));
        for (name, kind) in hostile {
            let labels = format!("policy=\"{name}\",version=");
            let metric = |name: &str| host.metric(name, &labels);
            assert_eq!(
                metric("pointsman_policy_faults_total"),
                f64::from(round),
                "{name}\n{}",
                host.log_text()
            );
            host.wait_for_event("advice_failed", &[("kind", kind), ("policy", name)]);
            let kinds = pointsman_tests::client::get(host.port, "/metrics").text();
            assert!(
                kinds.lines().any(
                    |line| line.contains(&labels) && line.contains(&format!("kind=\"{kind}\""))
                ),
                "{name}: {kind}"
            );
        }
        assert_eq!(host.metric("pointsman_policy_faults_total", "policy-error"), 0.0);
        resident.push(host.resource_usage().resident);
    }
    // After three faults in ten seconds the breaker of a policy opens, and it is not called.
    assert_eq!(send_chat(&host, "a", "hi").status, 200);
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"breaker-open\""), 10.0);
    assert_eq!(host.metric("pointsman_policy_faults_total", ""), 30.0);
    let after = host.resource_usage();
    // New versions are called on threads for blocking calls, which stay for a few seconds.
    assert!(after.threads <= before.threads + 2, "{before:?} {after:?}");
    // Without reuse of memory, `grow-memory` alone would take up to 64 MiB in each round.
    assert_no_steady_growth(&resident, 8 << 20);
    host.assert_no_request_lost();
}

/// Policies that cannot be loaded: the host serves without them and reports each error.
#[test]
fn invalid_policies_are_not_loaded_and_are_reported() {
    let core = module("core-module", "(ADVISE (i32.const 1024))");
    let good = build("no-opinion");
    let importing = |import: &str| {
        let text = format!(
            "(module (import {import}) (memory (export \"memory\") 1) (func (export \
             \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 0)))"
        );
        wat::parse_str(text).unwrap()
    };
    let newer = importing(r#""pointsman:policy/request@0.1.9" "id" (func (param i32))"#);
    let newer = component(&newer, "newer", |wit| {
        wit.replace("0.1.3;", "0.1.9;") + "\nworld newer { import request; }"
    });
    let wasi = component(&importing(r#""wasi:http/outgoing@0.2.0" "send" (func)"#), "w", |_| {
        "package wasi:http@0.2.0;\ninterface outgoing { send: func(); }\n\
         world w { import outgoing; }"
            .to_owned()
    });
    let missing = component(&module("missing", ""), "least", |wit| {
        wit + "\nworld least { include host-api; export lifecycle; }"
    });
    // The policy, its component, the code of the error, and a value that its message must contain.
    let table: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("core-module", core, "component_invalid", "core module"),
        ("truncated", good[..good.len() / 2].to_vec(), "component_invalid", "policy.wasm"),
        ("not-wasm", b"#!/bin/sh".to_vec(), "component_invalid", "policy.wasm"),
        ("empty", Vec::new(), "component_invalid", "policy.wasm"),
        (
            "precompiled",
            fs::read(std::env::current_exe().unwrap()).unwrap()[..4096].to_vec(),
            "component_invalid",
            "policy.wasm",
        ),
        ("newer", newer, "contract_mismatch", "pointsman:policy/request@0.1.9"),
        ("wasi", wasi, "import_forbidden", "wasi:http/outgoing@0.2.0"),
        ("missing", missing, "export_missing", "pointsman:policy/on-request"),
        ("loop-in-start", build("loop-in-start"), "describe_failed", "50 ms"),
        ("loop-in-realloc", build("loop-in-realloc"), "configure_failed", "50 ms"),
        ("realloc-out-of-bounds", build("realloc-out-of-bounds"), "configure_failed", "trap"),
        ("trap-in-configure", build("trap-in-configure"), "configure_failed", "trap"),
        (
            "initial-memory-over-limit",
            build("initial-memory-over-limit"),
            "describe_failed",
            "memory",
        ),
        ("table-bomb", build("table-bomb"), "component_too_large", "table"),
        ("other-name", build("no-opinion"), "description_mismatch", "other-name"),
    ];
    let policies: Vec<(&str, Vec<u8>)> =
        table.iter().map(|(name, bytes, ..)| (*name, bytes.clone())).collect();
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).collect();
    let host = start(policy_dir(&policies), &(chain(&names, "") + &lane("a", &["a"], &[])));
    let response = send_chat(&host, "a", "hi");
    assert_eq!((response.status, response.header("x-pointsman-policy")), (200, Some("built-in")));
    for status in host.status()["policies"].as_array().unwrap() {
        let (name, error) = (status["name"].as_str().unwrap(), &status["error"]);
        let (_, _, code, value) = table.iter().find(|(known, ..)| *known == name).unwrap();
        assert_eq!(
            (&status["state"], &error["code"]),
            (&json!("failed"), &json!(code)),
            "{status}"
        );
        assert!(error["message"].as_str().unwrap().contains(value), "{name}: {error}");
        assert_eq!(
            host.metric("pointsman_policy_load_failures_total", &format!("\"{name}\"")),
            1.0
        );
        host.wait_for_event("policy_load_failed", &[("policy", name), ("code", code)]);
    }
    host.assert_no_request_lost();
}

/// The policy is removed, damaged, or replaced by a faulty one.
#[test]
fn host_decides_with_built_in_policy_without_its_policy() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage, &str); 3] = [
        ("removed", |dir| fs::remove_file(dir.join("policy.wasm")).unwrap(), "file_missing"),
        (
            "corrupted",
            |dir| {
                let mut bytes = fs::read(dir.join("policy.wasm")).unwrap();
                bytes.iter_mut().skip(100).step_by(7).for_each(|byte| *byte ^= 0x55);
                fs::write(dir.join("policy.wasm"), bytes).unwrap();
            },
            "component_invalid",
        ),
        (
            "replaced",
            |dir| fs::write(dir.join("policy.wasm"), build("loop")).unwrap(),
            "digest_mismatch",
        ),
    ];
    for (how, change, code) in damage {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("policies/cortex");
        fs::create_dir_all(&folder).unwrap();
        for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
            fs::copy(root().join("policies/cortex").join(file), folder.join(file)).unwrap();
        }
        change(&folder);
        let host = start(dir, &(chain(&["cortex"], "") + &lane("coder", &["coder"], &[])));
        let response = send_chat(&host, "coder", "hi");
        assert_eq!(
            (response.status, response.header("x-pointsman-policy")),
            (200, Some("built-in")),
            "{how}"
        );
        assert_eq!(host.metric("pointsman_policy_faults_total", "policy=\"cortex\""), 1.0, "{how}");
        host.wait_for_event("policy_load_failed", &[("policy", "cortex"), ("code", code)]);
        host.assert_no_request_lost();
    }
}

#[test]
fn failure_mode_is_configurable() {
    for (mode, status, policy) in [
        ("skip", 200, Some("no-opinion")),
        ("default", 200, Some("built-in")),
        ("refuse", 503, Some("unreachable")),
    ] {
        let dir = policy_dir(&[
            ("unreachable", build("unreachable")),
            ("no-opinion", build("no-opinion")),
        ]);
        let config = chain(&["unreachable", "no-opinion"], &format!("on-error = {mode:?}"))
            + &lane("a", &["a"], &[]);
        let host = start(dir, &config);
        let response = send_chat(&host, "a", "hi");
        assert_eq!(response.status, status, "{mode}: {}", response.text());
        let decided_by =
            response.header("x-pointsman-policy").map(|policy| policy.split('@').next().unwrap());
        assert_eq!(decided_by, policy, "{mode}");
        if status == 503 {
            assert_eq!(response.json()["error"]["code"], "policy_failed");
        }
        host.assert_no_request_lost();
    }
}

#[test]
fn out_of_range_advice_is_corrected() {
    let dir = policy_dir(&[("unknown-lane", build("unknown-lane"))]);
    let host = start(dir, &(chain(&["unknown-lane"], "") + &lane("a", &["a"], &[])));
    // The filter is dropped.
    assert_eq!(send_chat(&host, "a", "hi").status, 200);
    host.assert_no_request_lost();
    let dir = policy_dir(&[("status-200", build("status-200"))]);
    let host = start(dir, &(chain(&["status-200"], "") + &lane("a", &["a"], &[])));
    assert_eq!(send_chat(&host, "a", "hi").status, 403);
    host.assert_no_request_lost();
}

#[test]
fn compiled_policies_are_cached_and_damaged_entries_are_rejected() {
    let mut dir = policy_dir(&[("no-opinion", build("no-opinion"))]);
    let config = chain(&["no-opinion"], "") + &lane("a", &["a"], &[]);
    for round in 0..3 {
        let cache = dir.path().join("cache");
        if round == 2 {
            let file = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
            let mut code = fs::read(&file).unwrap();
            let middle = code.len() / 2;
            code[middle] ^= 1;
            fs::write(&file, code).unwrap();
        }
        let mut host = start(dir, &config);
        let response = send_chat(&host, "a", "hi");
        assert!(response.header("x-pointsman-policy").unwrap().starts_with("no-opinion@1+"));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        let rejected = host.events("cache_entry_rejected", &[]).len();
        assert_eq!(rejected, usize::from(round == 2), "round {round}");
        host.signal(rustix::process::Signal::TERM);
        host.wait_for_exit();
        dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
        fs::remove_file(dir.path().join("port")).unwrap();
        wait_until("the port file is gone", || !dir.path().join("port").exists());
    }
}

/// The components that were just built from source decide as the committed ones.
#[test]
fn fresh_builds_pass_their_golden_cases() {
    let fresh = crate::clients::prepared_dir("POINTSMAN_FRESH_GUESTS", "target/guests/fresh");
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("policies")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let folder = dir.path().join("policies").join(&name);
        fs::create_dir_all(&folder).unwrap();
        let manifest =
            fs::read_to_string(root().join("policies").join(&name).join("policy.toml")).unwrap();
        // Other toolchains make other bytes, so the digests in the manifest do not apply.
        fs::write(folder.join("policy.toml"), manifest.split("[build]").next().unwrap()).unwrap();
        fs::copy(
            root().join("policies").join(&name).join("cases.jsonl"),
            folder.join("cases.jsonl"),
        )
        .unwrap();
        fs::copy(fresh.join(format!("{name}.wasm")), folder.join("policy.wasm")).unwrap();
        names.push(name);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let host = start(dir, &(chain(&names, "") + &lane("a", &["a"], &[])));
    for policy in host.status()["policies"].as_array().unwrap() {
        assert_eq!(policy["state"], "active", "{policy}");
    }
}
