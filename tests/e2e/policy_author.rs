//! The inner loop of a policy author: what `pointsman policy test` shows beyond a verdict, traces,
//! and cases that are made from records.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::client::{chat, send};
use pointsman_tests::guests::{Guest, build, module};
use pointsman_tests::host::{fake_lane, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::policy_cli::policy;
use crate::replay::recorded_dir;

/// Returns a copy of a policy of the repository with these golden cases.
fn copy_with_cases(name: &str, cases: &[Value]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(name);
    fs::create_dir(&folder).unwrap();
    for file in ["policy.toml", "policy.wasm"] {
        fs::copy(root().join("policies").join(name).join(file), folder.join(file)).unwrap();
    }
    write_cases(&folder, cases);
    (dir, folder)
}

/// Builds a guest policy, which may use the macros of `Guest`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    match name {
        "edit-forbidden-field" | "log-flood" => Guest::from_file(name).build(),
        _ => build(name),
    }
}

/// Returns a directory with a guest policy with these golden cases.
fn guest(name: &str, cases: &[Value]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let manifest = format!("name = {name:?}\nversion = \"1\"\napi = \"0.1\"\n");
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    fs::write(dir.path().join("policy.wasm"), component(name)).unwrap();
    write_cases(dir.path(), cases);
    dir
}

fn write_cases(folder: &Path, cases: &[Value]) {
    let lines: String = cases.iter().map(|case| format!("{case}\n")).collect();
    fs::write(folder.join("cases.jsonl"), lines).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the cases of a folder, and returns the exit code and the report.
fn test_json(folder: &Path) -> (i32, Value) {
    let (code, out, err) = policy(&["test", text(folder), "--format", "json"]);
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

fn request() -> Value {
    json!({ "body": { "model": "auto", "messages": [{ "role": "user", "content": "hi" }] } })
}

fn two_lanes() -> Value {
    json!({ "lanes": [
        { "name": "a", "models": ["auto"], "cost-milli": 2000 },
        { "name": "b", "models": ["auto"], "est-wait-ms": 50 },
    ] })
}

#[test]
fn policy_test_shows_log_lines_and_dropped_advice() {
    let case = json!({
        "name": "first", "request": request(), "fleet": two_lanes(),
        "expect": { "edits": [], "dropped": ["set-field", "set-model", "set-header"] },
    });
    let guest_with_edits = guest("edit-forbidden-field", &[case]);
    let (code, report) = test_json(guest_with_edits.path());
    assert_eq!(code, 0, "{report:#}");
    let dropped = report["cases"][0]["dropped"].as_array().unwrap();
    // The reason names the field.
    assert!(dropped[0].as_str().unwrap().contains("/user"), "{dropped:?}");
    let (_, out, _) = policy(&["test", text(guest_with_edits.path())]);
    assert!(out.contains("dropped") && out.contains("/user"), "{out}");

    let case = json!({
        "name": "loud", "request": request(), "fleet": two_lanes(), "expect": {},
    });
    let loud = guest("log-flood", &[case]);
    let (code, report) = test_json(loud.path());
    let log = report["cases"][0]["log"].as_array().unwrap();
    // The rate limit of a host applies.
    assert_eq!((code, log.len()), (0, 100), "{report:#}");
    assert_eq!(log[0], json!({ "level": "warn", "message": "a repeated line" }));
    let (_, out, _) = policy(&["test", text(loud.path())]);
    assert!(out.contains("warn  a repeated line"), "{out}");
}

/// Returns a failed attempt on the first lane.
fn failure() -> Value {
    json!({ "lane": "a", "what": "server-error", "status": 500, "elapsed-ms": 10 })
}

#[test]
fn golden_cases_call_on_failure() {
    let case = |headers: Value, expect: Value| {
        let mut request = request();
        request["headers"] = headers;
        json!({
            "name": "failed", "hook": "on-failure", "request": request, "fleet": two_lanes(),
            "failure": failure(), "expect": expect,
        })
    };
    let cases = [
        case(
            json!({ "x-deadline-ms": "5000" }),
            json!({ "recovery": "retry", "lane": "b", "edits": [] }),
        ),
        case(json!({}), json!({ "recovery": "planned" })),
    ];
    let (_dir, folder) = copy_with_cases("deadline", &cases);
    let (code, report) = test_json(&folder);
    assert_eq!((code, &report["cases"][0]["hook"]), (0, &json!("on-failure")), "{report:#}");
}

#[test]
fn golden_cases_call_on_complete() {
    let outcome = json!({
        "lane": "a", "ended": "ok", "tenant": "acme", "prompt-tokens": 70, "output-tokens": 30,
    });
    let case = |name: &str, state: Value| {
        json!({
            "name": name, "hook": "on-complete", "now-ms": 0, "fleet": two_lanes(),
            "config": { "tiers": ["a", "b"], "tenants": { "acme": 1000 } },
            "outcomes": [outcome], "expect": { "state": state },
        })
    };
    let (_dir, folder) = copy_with_cases("budget", &[case("other", json!({ "spent": 1 }))]);
    let (code, report) = test_json(&folder);
    assert_eq!((code, &report["cases"][0]["differences"][0]["what"]), (1, &json!("state")));
    // The key contains a hash of the tenant.
    let state = &report["cases"][0]["decided"]["state"];
    let spent: Vec<&Value> = state.as_object().unwrap().values().collect();
    assert_eq!(spent, [&json!(200_000)], "{report:#}");
    let mut expected = state.clone();
    expected["spent"] = Value::Null;
    write_cases(&folder, &[case("spends", expected)]);
    let (code, report) = test_json(&folder);
    assert_eq!((code, &report["cases"][0]["hook"]), (0, &json!("on-complete")), "{report:#}");
}

#[test]
fn golden_cases_call_on_tick() {
    let schedule = json!({
        "name": "all", "from": "00:00", "to": "24:00", "load": ["a"], "release": ["b"],
    });
    // A lane that is loaded is kept.
    let hints = json!([{ "lane": "a", "hint": "keep" }, { "lane": "b", "hint": "release" }]);
    let case = |expect: Value| {
        json!({
            "name": "tick", "hook": "on-tick", "now-ms": 1_794_816_000_000_u64, "seed": 7,
            "fleet": two_lanes(), "config": { "schedules": [schedule] }, "expect": expect,
        })
    };
    let (_dir, folder) = copy_with_cases("hours", &[case(json!({ "hints": [] }))]);
    let (code, report) = test_json(&folder);
    assert_eq!((code, &report["cases"][0]["differences"][0]["what"]), (1, &json!("hints")));
    let mut got = report["cases"][0]["decided"]["hints"].clone();
    for hint in got.as_array_mut().unwrap() {
        assert!(hint["for-ms"].as_u64().unwrap() > 0);
        hint.as_object_mut().unwrap().remove("for-ms");
    }
    assert_eq!(got, hints);
}

#[test]
fn golden_cases_have_the_inputs_of_their_hook() {
    let (_dir, folder) = copy_with_cases("hours", &[]);
    // The policy lacks the hook.
    write_cases(
        &folder,
        &[json!({
            "name": "none", "hook": "on-failure", "request": request(), "fleet": two_lanes(),
            "failure": failure(), "expect": { "recovery": "planned" },
        })],
    );
    let (code, report) = test_json(&folder);
    assert_eq!((code, &report["cases"][0]["differences"][0]["what"]), (1, &json!("hook")));
    let invalid = [
        json!({ "name": "n", "hook": "on-failure", "request": request(), "fleet": two_lanes(),
                "expect": {} }),
        json!({ "name": "n", "hook": "on-tick", "fleet": two_lanes(), "expect": { "lane": "a" } }),
        json!({ "name": "n", "fleet": two_lanes(), "expect": {} }),
        json!({ "name": "n", "hook": "on-complete", "fleet": two_lanes(), "expect": {},
                "outcomes": [{ "lane": "nope", "ended": "ok" }] }),
    ];
    for (case, part) in invalid.iter().zip(["`failure`", "expect.lane", "`request`", "`nope`"]) {
        write_cases(&folder, std::slice::from_ref(case));
        let (code, _, err) = policy(&["test", text(&folder)]);
        assert!(code == 78 && err.contains("[case_invalid]") && err.contains(part), "{err}");
    }
}

#[test]
fn facts_of_a_case_replace_those_of_its_body() {
    let case = |name: &str, facts: Value, lane: &str| {
        let mut request = request();
        request["facts"] = facts;
        json!({
            "name": name, "request": request, "expect": { "lane": lane },
            "fleet": { "lanes": [
                { "name": "small", "models": ["auto"], "max-context": 4096 },
                { "name": "large", "models": ["auto"], "max-context": 32768, "est-wait-ms": 900 },
            ] },
        })
    };
    let cases = [
        case("short", json!({}), "small"),
        case("long", json!({ "prompt-tokens": 9000 }), "large"),
        case("output", json!({ "prompt-tokens": 3000, "max-output-tokens": 3000 }), "large"),
    ];
    let folder = guest("no-opinion", &cases);
    let (code, report) = test_json(folder.path());
    assert_eq!(code, 0, "{report:#}");
    write_cases(folder.path(), &[case("typo", json!({ "prompt-token": 1 }), "small")]);
    let (code, _, err) = policy(&["test", text(folder.path())]);
    assert!(code == 78 && err.contains("prompt-token"), "{err}");
}

#[test]
fn results_are_written_for_programs() {
    let case = |name: &str, lane: &str| {
        json!({
            "name": name, "request": request(), "fleet": two_lanes(), "expect": { "lane": lane },
        })
    };
    let folder = guest("no-opinion", &[case("good <&>", "a"), case("bad, 50 %", "b")]);
    let path = text(folder.path());
    let report = folder.path().join("report.xml");
    let (code, out, err) = policy(&["test", path, "--format", "junit", "-o", text(&report)]);
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", ""));
    let xml = fs::read_to_string(report).unwrap();
    for part in [
        "<testsuites name=\"no-opinion\" tests=\"2\" failures=\"1\">",
        "name=\"good &lt;&amp;&gt;\"",
        "<failure message=\"lane: expected b, got a\">",
        "line=\"2\"",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let (code, out, _) = policy(&["test", path, "--format", "github"]);
    let file = folder.path().join("cases.jsonl");
    let expected = format!(
        "::error file={},line=2,title=bad%2C 50 %25::lane: expected b, got a\n",
        file.display()
    );
    assert!(code == 1 && out.contains(&expected), "{out}");
    assert!(out.lines().all(|line| line.starts_with("::")), "{out}");
}

#[test]
fn trace_shows_what_a_policy_read_and_returned() {
    let (_dir, folder) = copy_with_cases(
        "quota",
        &[json!({
            "name": "second request", "config": { "window-s": 3600, "default": { "requests": 9 } },
            "request": request(), "fleet": two_lanes(), "expect": { "lane": "nope" },
        })],
    );
    let (code, out, err) = policy(&["trace", "second", "--dir", text(&folder)]);
    assert_eq!(code, 0, "{err}");
    for part in ["state.increment(", "lane: expected nope", "decided", "0 a"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, err) = policy(&["trace", "second", "--dir", text(&folder), "--json"]);
    assert_eq!(code, 0, "{err}");
    let trace: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&trace[0]["passed"], trace.as_array().unwrap().len()), (&json!(false), 1));
    assert!(trace[0]["trace"]["returned"].is_object(), "{trace:#}");
    let (code, _, err) = policy(&["trace", "none such", "--dir", text(&folder)]);
    assert!(code == 1 && err.contains("none such"), "{err}");
}

#[test]
fn recorded_request_is_traced_and_becomes_a_golden_case() {
    let records = recorded_dir("");
    let records = records.path().join("records");
    let (_dir, folder) = copy_with_cases("quota", &[]);
    let arguments = ["--records", text(&records)];
    let trace = |id: &str| {
        policy(&[&["trace", id, "--dir", text(&folder), "--json"][..], &arguments].concat())
    };
    let (code, out, err) = trace("good-1");
    assert_eq!(code, 0, "{err}");
    let traced: Value = serde_json::from_str(&out).unwrap();
    let call = &traced["policies"][0];
    let replay = &call["replay"];
    assert_eq!((&call["policy"], &replay["verdict"]), (&json!("quota"), &json!("same")), "{out}");
    assert_eq!(call["host_calls"], replay["host_calls"], "{out}");
    assert!(!call["host_calls"].as_array().unwrap().is_empty(), "{out}");
    assert_eq!(traced["replay"]["differences"], json!([]), "{out}");
    let (code, _, err) = trace("no-such-request");
    assert!(code == 1 && err.contains("no-such-request"), "{err}");

    let case = |id: &str, name: &str| {
        let from = ["case", text(&folder), "--from-record", id, "--name", name];
        policy(&[&from[..], &arguments].concat())
    };
    let (code, _, err) = case("good-1", "an accepted request");
    assert_eq!(code, 0, "{err}");
    // The ninth request is the last one of the quota.
    let (code, _, err) = case("rejected", "a rejected request");
    assert_eq!(code, 0, "{err}");
    let (code, report) = test_json(&folder);
    assert_eq!((code, report["cases"].as_array().unwrap().len()), (0, 2), "{report:#}");
    assert_eq!(report["cases"][1]["decided"]["reject"]["status"], 429, "{report:#}");
    // The record has no body, which is said.
    assert!(err.contains("body"), "{err}");
    let cases = fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    let first: Value = serde_json::from_str(cases.lines().next().unwrap()).unwrap();
    assert!(first["request"]["facts"]["prompt-tokens"].as_u64().unwrap() > 0, "{first:#}");
    assert_eq!(first["config"]["default"], json!({ "requests": 9 }));
}

#[test]
fn case_of_a_guarded_request_has_no_lane_that_the_guard_forbids() {
    let (_dir, folder) = copy_with_cases("quota", &[]);
    let lane = |name: &str, more: &str| fake_lane(crate::FAKE_ENGINE, name, &["m"], more, &[]);
    let config = format!(
        "[records]\ndir = \"records\"\n[policies]\ndir = {:?}\n[[policies.chain]]\n\
         name = \"quota\"\n[[guards]]\nname = \"g\"\nnever-labels = {{ tier = \"trial\" }}\n{}{}",
        root().join("policies"),
        lane("a", "labels = { tier = \"trial\" }"),
        lane("b", "")
    );
    let host = crate::host(&config);
    let headers = [("content-type", "application/json"), ("x-request-id", "guarded")];
    let body = chat("m", json!({})).to_string();
    let sent = send(host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!((sent.status, sent.header("x-pointsman-lane")), (200, Some("b")));
    wait_until("the request is recorded", || {
        host.metric("pointsman_records_written_total", "") == 1.0
    });
    let records = host.dir.path().join("records");
    let from = ["case", text(&folder), "--from-record", "guarded", "--records", text(&records)];
    let (code, out, err) = policy(&[&from[..], &["--print"]].concat());
    assert_eq!(code, 0, "{err}");
    let case: Value = serde_json::from_str(&out).unwrap();
    let lanes = &case["fleet"]["lanes"];
    assert_eq!((&lanes[0]["models"], &lanes[1]["models"]), (&json!([]), &json!(["m"])), "{out}");
    assert_eq!(case["expect"]["lane"], "b", "{out}");
    assert!(err.contains("guards") && !err.contains("decides differently"), "{err}");
}

#[test]
fn core_module_of_another_language_becomes_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    let script = "cp module.bin $POINTSMAN_COMPONENT";
    let manifest = format!(
        "name = \"other\"\nversion = \"1\"\napi = \"0.1\"\n\
         [build]\ncommand = [\"sh\", \"-c\", {script:?}]\n"
    );
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    let code = fs::read_to_string(root().join("tests/guests/no-opinion.wat")).unwrap();
    fs::write(dir.path().join("module.bin"), module("other", &code)).unwrap();
    let case = json!({
        "name": "no opinion", "request": request(), "fleet": two_lanes(), "expect": { "lane": "a" },
    });
    write_cases(dir.path(), &[case]);
    let (code, out, err) = policy(&["build", text(dir.path())]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, report) = test_json(dir.path());
    assert_eq!((code, report["cases"].as_array().unwrap().len()), (0, 1), "{report:#}");
}
