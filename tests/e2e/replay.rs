//! `pointsman replay`: policies decide again about recorded requests.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pointsman_tests::client::{chat, send};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::policies::start;
use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Runs `pointsman replay …`; returns exit code, standard output and standard error.
fn replay(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("replay").args(arguments).current_dir(dir).env("XDG_CACHE_HOME", dir.join("cache"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Returns the configuration of a host whose policies use state, the request and the failure hook.
/// The quota allows this many requests.
fn config(requests: u32, redact: &str) -> String {
    let policies = root().join("policies");
    let lanes = ["orchestrator", "coder", "fast_rag", "super_reader"]
        .map(|name| lane(name, &[name, "auto"], &[]));
    format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache/policies\"\n\
         [[policies.chain]]\nname = \"quota\"\nweight = 500\n\
         config = {{ window-s = 3600, default = {{ requests = {requests} }} }}\n\
         [[policies.chain]]\nname = \"cortex\"\n[[policies.chain]]\nname = \"deadline\"\n\
         config = {{ late = \"reject\", fallback = [\"super_reader\"] }}\n\
         [records]\ndir = \"records\"\n{redact}\n{}",
        lanes.concat()
    )
}

fn send_chat(host: &Host, id: &str, model: &str, text: &str) -> u16 {
    let body =
        chat(model, json!({ "messages": [{ "role": "user", "content": text }] })).to_string();
    let headers =
        [("content-type", "application/json"), ("x-request-id", id), ("x-deadline-ms", "60000")];
    send(host.port, "POST", CHAT, &headers, body.as_bytes()).status
}

/// Returns the directory of a host that has served eight requests, rejected one, and served one
/// whose first lane failed.
pub(crate) fn recorded_dir(redact: &str) -> tempfile::TempDir {
    let mut host = start(tempfile::tempdir().unwrap(), &config(9, redact));
    for number in 0..8 {
        let (model, text) =
            [("auto", "plan my day"), ("auto", "why does fn main() not compile?"), ("coder", "hi")]
                [number % 3];
        assert_eq!(send_chat(&host, &format!("good-{number}"), model, text), 200);
    }
    host.set_script("orchestrator", json!({ "status": 500 }));
    assert_eq!(send_chat(&host, "failed", "orchestrator", "hi"), 200);
    assert_eq!(send_chat(&host, "rejected", "auto", "hi"), 429);
    wait_until("all records are written", || {
        host.metric("pointsman_records_written_total", "") == 10.0
    });
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap())
}

/// Returns whether standard error only says which versions are replayed.
fn only_notes(err: &str) -> bool {
    err.lines().all(|line| line.starts_with("note: "))
}

fn parse_json(out: &str) -> Value {
    serde_json::from_str(out).unwrap()
}

#[test]
fn replay_agrees_with_records_and_shows_changes() {
    let dir = recorded_dir("");
    let dir = dir.path();
    let (code, out, err) = replay(dir, &["records", "--config", "pointsman.toml"]);
    assert_eq!((code, only_notes(&err)), (0, true), "{out}{err}");
    assert!(out.starts_with("10 decisions "), "{out}");
    let (code, out, err) =
        replay(dir, &["records/decisions.jsonl", "--config", "pointsman.toml", "--json", "-"]);
    assert_eq!((code, only_notes(&err)), (0, true), "{err}");
    let report = parse_json(&out);
    assert_eq!(
        (&report["agrees"], &report["agreement"]),
        (&json!(true), &json!(1.0)),
        "{report:#}"
    );
    assert_eq!(
        report["policies"]["quota"]["calls"],
        json!({ "same": 10, "differ": 0, "unknown": 0 })
    );
    // Nine requests reached this policy, and it was called after the failed attempt, too.
    assert_eq!(report["policies"]["deadline"]["calls"]["same"], 10, "{report:#}");
    assert_eq!(report["effect"]["moves"]["rejected"], json!({ "rejected": 1 }));

    // The configuration of the host is not needed: the records contain it.
    let quota = root().join("policies/quota");
    let (code, out, err) = replay(dir, &["records", "--policy", quota.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(!out.contains("cortex"), "only quota is called\n{out}");
    let component = root().join("policies/cortex/policy.wasm");
    let (code, out, _) = replay(
        dir,
        &["records", "--config", "pointsman.toml", "--policy", component.to_str().unwrap()],
    );
    assert_eq!(code, 0, "{out}");

    // With another quota, three decisions differ.
    fs::write(dir.join("other.toml"), config(7, "")).unwrap();
    let (code, out, err) =
        replay(dir, &["records", "--config", "other.toml", "--max-differences", "1"]);
    assert_eq!((code, err.contains("note: ")), (1, true), "{out}{err}");
    // The policy and the call that differ, the request, and the tool for further effects.
    for part in
        ["quota on-request", "429", "good-7", "records/decisions.jsonl", "pointsman simulate"]
    {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    let (code, json, _) = replay(dir, &["records", "--config", "other.toml", "--json", "-"]);
    let report = parse_json(&json);
    assert_eq!((code, &report["agrees"]), (1, &json!(false)), "{report:#}");
    // Two requests would be rejected; the message to the rejected one has another number.
    assert_eq!(report["decisions"]["differ"], 3, "{report:#}");
    assert_eq!(report["policies"]["quota"]["calls"]["differ"], 3, "{report:#}");
    assert_eq!(report["effect"]["moves"]["coder"]["rejected"], 1, "{report:#}");
    assert_eq!(out.matches("\nrequest ").count(), 1, "{out}");
    let (_, out, _) = replay(dir, &["records", "--config", "other.toml", "--limit", "3"]);
    assert!(out.starts_with("3 decisions "), "{out}");
}

#[test]
fn redacted_input_is_named_and_invalid_lines_are_skipped() {
    let dir = recorded_dir("");
    let dir = dir.path();
    // This policy reads the prompts, which are not in these records.
    let redact = root().join("policies/redact");
    let redact = redact.to_str().unwrap();
    let (code, out, err) = replay(dir, &["records", "--policy", redact]);
    assert_eq!((code, only_notes(&err)), (1, true), "{out}{err}");
    // The call whose result is missing, and the setting that records it.
    assert!(out.contains("redact") && out.contains("request."), "{out}");
    assert!(out.contains("`mode = \"full\"`"), "{out}");
    // Texts in configurations are redacted as those of requests are.
    let deadline = root().join("policies/deadline");
    let (code, _, err) = replay(dir, &["records", "--policy", deadline.to_str().unwrap()]);
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("`deadline`") && err.contains("--config"), "{err}");

    let mut file =
        OpenOptions::new().append(true).open(dir.join("records/decisions.jsonl")).unwrap();
    file.write_all(b"{\"v\":1,\"kind\":\"decision\"}\nnot json\n").unwrap();
    let (code, out, _) = replay(dir, &["records", "--config", "pointsman.toml"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("2 lines") && out.contains("records/decisions.jsonl: line "), "{out}");

    let full = recorded_dir("mode = \"full\"\nredact = { text = \"keep\" }");
    let (code, out, _) = replay(full.path(), &["records", "--policy", redact, "--json", "-"]);
    let report = parse_json(&out);
    assert_eq!(report["decisions"]["unknown"], 0, "{report:#}");
    assert_eq!(
        (code, &report["policies"]["redact"]["not_recorded"]),
        (0, &json!(9)),
        "these requests contain nothing to redact\n{report:#}"
    );
}

#[test]
fn unusable_input_is_reported_with_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("none.jsonl"), "").unwrap();
    fs::write(
        dir.join("by.jsonl"),
        json!({ "v": 1, "kind": "policies", "chain": "c", "on-conflict": "refuse", "policies": [{
            "policy": { "name": "cortex", "version": "1+2" }, "fingerprint": "2",
                "component": "3", "weight": 1000,
            "on-error": "skip", "config": {} }] })
        .to_string()
            + "\n",
    )
    .unwrap();
    let cortex = root().join("policies/cortex");
    let cortex = cortex.to_str().unwrap();
    for (arguments, parts) in [
        (vec!["missing.jsonl"], ["missing.jsonl", "No such file"]),
        (vec!["empty"], ["empty", "decisions.jsonl"]),
        (vec!["by.jsonl"], ["cortex@1+2", "--config"]),
        (vec!["none.jsonl", "--config", "no.toml"], ["no.toml", ""]),
        (vec!["none.jsonl", "--policy", "nowhere"], ["nowhere/policy.toml", ""]),
    ] {
        let (code, out, err) = replay(dir, &arguments);
        assert_eq!((code, out.as_str()), (78, ""), "{arguments:?}: {err}");
        assert!(parts.iter().all(|part| err.contains(part)), "{arguments:?}: {err}");
    }
    let (code, out, _) = replay(dir, &["none.jsonl", "--policy", cortex]);
    // The file has no decisions.
    assert_eq!(code, 78, "{out}");
}

#[test]
fn versions_in_service_are_replayed_without_the_secrets_of_the_host() {
    let lanes = [lane("a", &["auto"], &[]), lane("b", &["auto"], &[])].concat();
    let keys = "[[keys]]\nenv = \"REPLAY_TEST_KEY\"\ntenant = \"t\"\n";
    let folders = "[records]\ndir = \"records\"\n[state]\ndir = \"states\"\n";
    let config = format!("{}{folders}{lanes}", chain(&["p"], ""));
    let version = |reason: &str| Guest::new("p").reason(reason);
    let dir = policy_dir(&[version("one")]);
    let mut deployment = Deployment::start(FAKE_ENGINE, dir, &config);
    deployment.deploy(&version("two"));
    let rolled_back = deployment.admin("POST", "/policies/p/rollback", "{}").json();
    let active = rolled_back["version"].as_str().unwrap().to_owned();
    assert_eq!(deployment.reason("auto"), "one");
    let host = &mut deployment.host;
    wait_until("the record is written", || {
        host.metric("pointsman_records_written_total", "") >= 1.0
    });
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    // Neither this variable nor that of the token is set for the command.
    let dir = host.dir.path();
    let file = dir.join("pointsman.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n{keys}")).unwrap();
    let run = |more: &[&str]| {
        let always = ["records", "--config", "pointsman.toml", "--json", "-"];
        let (code, out, err) = replay(dir, &[&always[..], more].concat());
        (code, parse_json(&out), err)
    };
    let (code, report, err) = run(&[]);
    assert_eq!((code, &report["agrees"]), (0, &json!(true)), "{report:#}{err}");
    assert!(err.contains(&active) && err.contains("`p`"), "{err}");
    let (code, report, _) = run(&["--policy", "policies/p"]);
    assert_eq!((code, &report["agrees"]), (1, &json!(false)), "{report:#}");
}
