//! Policies: the real one at work, and hostile ones doing no harm.

use std::fs;
use std::path::Path;

use pointsman_tests::client::post;
use pointsman_tests::guests::{build, component, module};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// A folder with these policies.
pub(crate) fn folder(policies: &[(&str, Vec<u8>)]) -> TempDir {
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
    Host::start_in(&program(FAKE_ENGINE), dir, config, &[]).ready()
}

/// Cortex's five lanes with the committed policy in front of them.
pub(crate) fn cortex(config: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let policies = root().join("policies");
    let general = ["orchestrator", "coder", "fast_rag", "super_reader"]
        .map(|name| lane(name, &[name, "auto"], &[]));
    let lanes = general.concat() + &lane("governance", &["governance"], &[]);
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"cortex\"\n{config}\n{lanes}"
    );
    start(dir, &config)
}

fn ask(host: &Host, model: &str, text: &str) -> pointsman_tests::client::Reply {
    post(
        host.port,
        CHAT,
        &json!({ "model": model, "messages": [{ "role": "user", "content": text }] }),
    )
}

#[test]
fn cortex_decides_by_name_content_and_state() {
    let host = cortex("");
    for (model, text, lane, why) in [
        ("governance", "fn main()", "governance", "the model name stands for governance"),
        ("auto", "plan my day", "orchestrator", "orchestrator: nothing points elsewhere"),
        ("auto", "why does fn main() not compile?", "coder", "coder: the prompt is about code"),
        (
            "auto",
            "Context: the sky is blue.",
            "fast_rag",
            "fast_rag: the prompt brings its sources",
        ),
    ] {
        let reply = ask(&host, model, text);
        assert_eq!(
            (reply.status, reply.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            reply.text()
        );
        assert!(reply.header("x-pointsman-policy").unwrap().starts_with("cortex@0.1.0+"));
        assert_eq!(reply.header("x-pointsman-reason"), Some(why));
    }
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"ok\""), 4.0);
    host.assert_nothing_lost();
}

#[test]
fn cortex_falls_back_to_super_reader_and_keeps_governance_apart() {
    let host = cortex("");
    host.script("orchestrator", json!({ "status": 503 }));
    let reply = ask(&host, "orchestrator", "hi");
    assert_eq!((reply.status, reply.header("x-pointsman-lane")), (200, Some("super_reader")));
    assert_eq!(reply.header("x-pointsman-attempts"), Some("2"));
    host.script("governance", json!({ "status": 500 }));
    let reply = ask(&host, "governance", "hi");
    assert_eq!((reply.status, reply.header("x-pointsman-lane")), (502, Some("governance")));
    host.assert_nothing_lost();
}

#[test]
fn the_system_prompt_is_switched_on_by_the_configuration() {
    let host = cortex(
        "config = { system-prompt = { text = \"Be \\\"brief\\\".\", lanes = [\"coder\"] } }",
    );
    let seen = |model: &str| -> Value {
        host.script(model, json!({ "echo": true }));
        serde_json::from_str(ask(&host, model, "hi").json()["body"].as_str().unwrap()).unwrap()
    };
    assert_eq!(
        seen("coder")["messages"][0],
        json!({ "role": "system", "content": "Be \"brief\"." })
    );
    assert_eq!(seen("governance")["messages"][0]["role"], "user");
    host.assert_nothing_lost();
}

/// One chain of policies that each do harm when they are asked. The request is answered, every fault is counted under its
/// name, and the next request is answered too.
#[test]
fn hostile_policies_cost_nothing_but_their_advice() {
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
    let host = start(folder(&policies), &(chain(&names, "") + &lane("a", &["a"], &[])));
    let before = host.size();
    for round in 1..=3 {
        let reply = ask(&host, "a", "hi");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.header("x-pointsman-policy").unwrap().starts_with("no-opinion@1+"));
        for (name, kind) in hostile {
            let labels = format!("policy=\"{name}\",version=");
            let of_kind = |line: &str| host.metric(line, &labels);
            assert_eq!(
                of_kind("pointsman_policy_faults_total"),
                f64::from(round),
                "{name}\n{}",
                host.log()
            );
            assert!(
                host.log().contains(&format!("policy={name}@1+")),
                "{name} is not named in the log"
            );
            let kinds = pointsman_tests::client::get(host.port, "/metrics").text();
            assert!(
                kinds.lines().any(
                    |line| line.contains(&labels) && line.contains(&format!("kind=\"{kind}\""))
                ),
                "{name}: {kind}"
            );
        }
        assert_eq!(host.metric("pointsman_policy_faults_total", "policy-error"), 0.0);
    }
    // Three faults in ten seconds: out of service, and not asked any more.
    assert_eq!(ask(&host, "a", "hi").status, 200);
    assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"out-of-service\""), 10.0);
    assert_eq!(host.metric("pointsman_policy_faults_total", ""), 30.0);
    let after = host.size();
    assert_eq!(after.threads, before.threads, "a thread was lost");
    // Each of the three rounds took up to 64 MiB for `grow-memory` alone.
    assert!(after.resident < before.resident + (24 << 20), "{before:?} -> {after:?}");
    host.assert_nothing_lost();
}

/// Policies that cannot be loaded: the host serves all the same, and says what is wrong with each.
#[test]
fn what_is_no_policy_is_not_loaded_and_named() {
    let core = module("core-module", "(ADVISE (i32.const 1024))");
    let good = build("no-opinion");
    let importing = |import: &str| {
        let text = format!(
            "(module (import {import}) (memory (export \"memory\") 1) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 0)))"
        );
        wat::parse_str(text).unwrap()
    };
    let newer = importing(r#""pointsman:policy/request@0.1.9" "id" (func (param i32))"#);
    let newer = component(&newer, "newer", |wit| {
        wit.replace("0.1.0;", "0.1.9;") + "\nworld newer { import request; }"
    });
    let wasi = component(&importing(r#""wasi:http/outgoing@0.2.0" "send" (func)"#), "w", |_| {
        "package wasi:http@0.2.0;\ninterface outgoing { send: func(); }\nworld w { import outgoing; }"
            .to_owned()
    });
    let missing = component(&module("missing", ""), "least", |wit| {
        wit + "\nworld least { include host-api; export lifecycle; }"
    });
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("core-module", core, "core module and no component"),
        ("truncated", good[..good.len() / 2].to_vec(), "no WebAssembly component"),
        ("not-wasm", b"#!/bin/sh".to_vec(), "does not begin as WebAssembly does"),
        ("empty", Vec::new(), "does not begin as WebAssembly does"),
        (
            "precompiled",
            fs::read(std::env::current_exe().unwrap()).unwrap()[..4096].to_vec(),
            "component",
        ),
        (
            "newer",
            newer,
            "needs `pointsman:policy/request@0.1.9`, and this host has policy API 0.1.0",
        ),
        ("wasi", wasi, "imports `wasi:http/outgoing@0.2.0`, which policies may not use"),
        ("missing", missing, "does not export `pointsman:policy/on-request`"),
        ("loop-in-start", build("loop-in-start"), "did not finish within 50 ms"),
        ("loop-in-realloc", build("loop-in-realloc"), "did not finish within 50 ms"),
        ("realloc-out-of-bounds", build("realloc-out-of-bounds"), "trapped"),
        ("trap-in-configure", build("trap-in-configure"), "trapped"),
        ("initial-memory-over-limit", build("initial-memory-over-limit"), "memory"),
        ("table-bomb", build("table-bomb"), "table"),
        ("other-name", build("no-opinion"), "the manifest says `other-name`"),
    ];
    let policies: Vec<(&str, Vec<u8>)> =
        table.iter().map(|(name, bytes, _)| (*name, bytes.clone())).collect();
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).collect();
    let host = start(folder(&policies), &(chain(&names, "") + &lane("a", &["a"], &[])));
    let reply = ask(&host, "a", "hi");
    assert_eq!((reply.status, reply.header("x-pointsman-policy")), (200, Some("built-in")));
    for status in host.status()["policies"].as_array().unwrap() {
        let (name, error) =
            (status["name"].as_str().unwrap(), status["error"]["what"].as_str().unwrap_or("none"));
        let (_, _, part) = table.iter().find(|(known, ..)| *known == name).unwrap();
        assert!(status["state"] == "failed" && error.contains(part), "{name}: {error}");
        assert_eq!(
            host.metric("pointsman_policy_load_failures_total", &format!("\"{name}\"")),
            1.0
        );
        assert!(host.log().contains(&format!("policy={name:?}")) || host.log().contains(name));
    }
    host.assert_nothing_lost();
}

/// The acceptance of the issue: the policy removed, corrupted, or replaced by a hostile one.
#[test]
fn without_its_policy_the_host_decides_by_itself() {
    type Harm = fn(&Path);
    let damage: [(&str, Harm); 3] = [
        ("removed", |dir| fs::remove_file(dir.join("policy.wasm")).unwrap()),
        ("corrupted", |dir| {
            let mut bytes = fs::read(dir.join("policy.wasm")).unwrap();
            bytes.iter_mut().skip(100).step_by(7).for_each(|byte| *byte ^= 0x55);
            fs::write(dir.join("policy.wasm"), bytes).unwrap();
        }),
        ("replaced", |dir| fs::write(dir.join("policy.wasm"), build("loop")).unwrap()),
    ];
    for (how, harm) in damage {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("policies/cortex");
        fs::create_dir_all(&folder).unwrap();
        for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
            fs::copy(root().join("policies/cortex").join(file), folder.join(file)).unwrap();
        }
        harm(&folder);
        let host = start(dir, &(chain(&["cortex"], "") + &lane("coder", &["coder"], &[])));
        let reply = ask(&host, "coder", "hi");
        assert_eq!(
            (reply.status, reply.header("x-pointsman-policy")),
            (200, Some("built-in")),
            "{how}"
        );
        assert_eq!(host.metric("pointsman_policy_faults_total", "policy=\"cortex\""), 1.0, "{how}");
        assert!(host.log().contains("the policy is not in service"), "{how}");
        host.assert_nothing_lost();
    }
}

#[test]
fn failure_modes_are_the_operator_s_choice() {
    for (mode, status, policy) in [
        ("skip", 200, Some("no-opinion")),
        ("default", 200, Some("built-in")),
        ("refuse", 503, Some("unreachable")),
    ] {
        let dir =
            folder(&[("unreachable", build("unreachable")), ("no-opinion", build("no-opinion"))]);
        let config = chain(&["unreachable", "no-opinion"], &format!("on-error = {mode:?}"))
            + &lane("a", &["a"], &[]);
        let host = start(dir, &config);
        let reply = ask(&host, "a", "hi");
        assert_eq!(reply.status, status, "{mode}: {}", reply.text());
        let by = reply.header("x-pointsman-policy").map(|by| by.split('@').next().unwrap());
        assert_eq!(by, policy, "{mode}");
        if status == 503 {
            assert_eq!(reply.json()["error"]["code"], "policy_failed");
        }
        host.assert_nothing_lost();
    }
}

#[test]
fn advice_out_of_bounds_is_brought_into_bounds() {
    let dir = folder(&[("unknown-lane", build("unknown-lane"))]);
    let host = start(dir, &(chain(&["unknown-lane"], "") + &lane("a", &["a"], &[])));
    let reply = ask(&host, "a", "hi");
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (503, &json!("no_lane_available")),
        "{}",
        reply.text()
    );
    host.assert_nothing_lost();
    let dir = folder(&[("status-200", build("status-200"))]);
    let host = start(dir, &(chain(&["status-200"], "") + &lane("a", &["a"], &[])));
    assert_eq!(ask(&host, "a", "hi").status, 403);
    host.assert_nothing_lost();
}

#[test]
fn compiled_policies_are_kept_and_damaged_ones_are_not_used() {
    let mut dir = folder(&[("no-opinion", build("no-opinion"))]);
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
        let reply = ask(&host, "a", "hi");
        assert!(reply.header("x-pointsman-policy").unwrap().starts_with("no-opinion@1+"));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        assert_eq!(host.log().contains("it is damaged"), round == 2, "round {round}");
        host.signal(rustix::process::Signal::TERM);
        host.ended();
        dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
        drop(fs::remove_file(dir.path().join("port")));
        wait_until("the port file is gone", || !dir.path().join("port").exists());
    }
}

/// The components that were just built from source decide as the committed ones do.
#[test]
fn fresh_builds_pass_their_golden_cases() {
    let fresh = crate::clients::prepared("POINTSMAN_FRESH_GUESTS", "target/guests/fresh");
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("policies")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let folder = dir.path().join("policies").join(&name);
        fs::create_dir_all(&folder).unwrap();
        let manifest =
            fs::read_to_string(root().join("policies").join(&name).join("policy.toml")).unwrap();
        // Toolchains differ, and so do the bytes that they make.
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
