//! `pointsman replay`: what a host recorded, asked again.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pointsman_tests::client::{chat, send};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::policy::start;
use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Run `pointsman replay …`: exit code, standard output and error.
fn replay(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("replay").args(arguments).current_dir(dir).env("XDG_CACHE_HOME", dir.join("cache"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A host whose policies count, read and say what comes after a failed try. So many requests a minute are free.
fn config(requests: u32, redact: &str) -> String {
    let policies = root().join("policies");
    let lanes = ["orchestrator", "coder", "fast_rag", "super_reader"]
        .map(|name| lane(name, &[name, "auto"], &[]));
    format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache/policies\"\n\
         [[policies.chain]]\nname = \"quota\"\nweight = 500\nconfig = {{ window-s = 3600, default = {{ requests = {requests} }} }}\n\
         [[policies.chain]]\nname = \"cortex\"\n[[policies.chain]]\nname = \"deadline\"\nconfig = {{ late = \"reject\", fallback = [\"super_reader\"] }}\n\
         [records]\ndir = \"records\"\n{redact}\n{}",
        lanes.concat()
    )
}

fn ask(host: &Host, id: &str, model: &str, text: &str) -> u16 {
    let body =
        chat(model, json!({ "messages": [{ "role": "user", "content": text }] })).to_string();
    let headers =
        [("content-type", "application/json"), ("x-request-id", id), ("x-deadline-ms", "60000")];
    send(host.port, "POST", CHAT, &headers, body.as_bytes()).status
}

/// Eight requests that went well, one that was refused and one whose first lane failed.
fn served(redact: &str) -> tempfile::TempDir {
    let mut host = start(tempfile::tempdir().unwrap(), &config(9, redact));
    for number in 0..8 {
        let (model, text) =
            [("auto", "plan my day"), ("auto", "why does fn main() not compile?"), ("coder", "hi")]
                [number % 3];
        assert_eq!(ask(&host, &format!("good-{number}"), model, text), 200);
    }
    host.script("orchestrator", json!({ "status": 500 }));
    assert_eq!(ask(&host, "failed", "orchestrator", "hi"), 200);
    assert_eq!(ask(&host, "refused", "auto", "hi"), 429);
    wait_until("all are written", || host.metric("pointsman_records_written_total", "") == 10.0);
    host.signal(Signal::TERM);
    assert!(host.ended().success());
    std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap())
}

fn json_of(out: &str) -> Value {
    serde_json::from_str(out).unwrap()
}

#[test]
fn what_a_host_recorded_is_decided_the_same_again_and_a_change_shows() {
    let dir = served("");
    let dir = dir.path();
    let (code, out, err) = replay(dir, &["records", "--config", "pointsman.toml"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("10 decisions of 1 file, asked again\n"), "{out}");
    assert!(out.ends_with("everything is as in the records\n"), "{out}");
    let (code, out, err) =
        replay(dir, &["records/decisions.jsonl", "--config", "pointsman.toml", "--json", "-"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let report = json_of(&out);
    assert_eq!(
        (&report["agrees"], &report["agreement"]),
        (&json!(true), &json!(1.0)),
        "{report:#}"
    );
    assert_eq!(
        report["policies"]["quota"]["calls"],
        json!({ "same": 10, "differ": 0, "unknown": 0 })
    );
    // Nine requests came as far as this one, and it was asked after the failed try, too.
    assert_eq!(report["policies"]["deadline"]["calls"]["same"], 10, "{report:#}");
    assert_eq!(report["effect"]["moves"]["refused"], json!({ "refused": 1 }));

    // Nobody has to know how the host was configured: the records say it.
    let quota = root().join("policies/quota");
    let (code, out, err) = replay(dir, &["records", "--policy", quota.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(!out.contains("cortex"), "only quota is asked\n{out}");
    let component = root().join("policies/cortex/policy.wasm");
    let (code, out, _) = replay(
        dir,
        &["records", "--config", "pointsman.toml", "--policy", component.to_str().unwrap()],
    );
    assert_eq!(code, 0, "{out}");

    // Another threshold.
    fs::write(dir.join("other.toml"), config(7, "")).unwrap();
    let (code, out, err) =
        replay(dir, &["records", "--config", "other.toml", "--differences", "1"]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    for part in [
        "quota on-request  reject: none -> 429 ",
        "         2  would be refused that were not",
        "request good-7 in records/decisions.jsonl",
        "decision  lane: coder -> rejected with 429 ",
        "`pointsman simulate` with traffic\nof `format = \"records\"` does",
        // The one that was refused is told another number.
        "3 of 10 decisions are made otherwise, 3 calls answered otherwise\n",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    assert_eq!(out.matches("\nrequest ").count(), 1, "{out}");
    let (_, out, _) = replay(dir, &["records", "--config", "other.toml", "--limit", "3"]);
    assert!(out.starts_with("3 decisions "), "{out}");
}

#[test]
fn what_was_kept_back_is_named_and_bad_lines_are_skipped() {
    let dir = served("");
    let dir = dir.path();
    // A policy that reads the prompts: those are not in these records.
    let redact = root().join("policies/redact");
    let redact = redact.to_str().unwrap();
    let (code, out, err) = replay(dir, &["records", "--policy", redact]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    assert!(out.contains("cannot be replayed: redact asks request."), "{out}");
    assert!(out.contains("record whole requests (`mode = \"full\"`)"), "{out}");
    // The texts of configurations are kept back as those of requests are.
    let deadline = root().join("policies/deadline");
    let (code, _, err) = replay(dir, &["records", "--policy", deadline.to_str().unwrap()]);
    assert_eq!(code, 78, "{err}");
    assert!(
        err.starts_with("the configuration of `deadline` is redacted in the records; name that"),
        "{err}"
    );

    let mut file =
        OpenOptions::new().append(true).open(dir.join("records/decisions.jsonl")).unwrap();
    file.write_all(b"{\"v\":1,\"kind\":\"decision\"}\nnot json\n").unwrap();
    let (code, out, _) = replay(dir, &["records", "--config", "pointsman.toml"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("2 lines cannot be used:\n  records/decisions.jsonl: line "), "{out}");

    let full = served("mode = \"full\"\nredact = { text = \"keep\" }");
    let (code, out, _) = replay(full.path(), &["records", "--policy", redact, "--json", "-"]);
    let report = json_of(&out);
    assert_eq!(report["decisions"]["unknown"], 0, "{report:#}");
    assert_eq!(
        (code, &report["policies"]["redact"]["new"]),
        (0, &json!(9)),
        "nothing to take out of these\n{report:#}"
    );
}

#[test]
fn what_cannot_be_replayed_at_all_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("none.jsonl"), "").unwrap();
    fs::write(
        dir.join("by.jsonl"),
        json!({ "v": 1, "kind": "policies", "chain": "c", "on-conflict": "refuse", "policies": [{
            "policy": { "name": "cortex", "version": "1+2" }, "fingerprint": "2", "component": "3", "weight": 1000,
            "on-error": "skip", "config": {} }] })
        .to_string()
            + "\n",
    )
    .unwrap();
    let cortex = root().join("policies/cortex");
    let cortex = cortex.to_str().unwrap();
    for (arguments, said) in [
        (vec!["missing.jsonl"], "missing.jsonl cannot be read: No such file"),
        (vec!["empty"], "empty has no decision records: no decisions.jsonl"),
        (
            vec!["by.jsonl"],
            "these records were written by cortex@1+2; name the host's configuration with --config",
        ),
        (vec!["none.jsonl", "--config", "no.toml"], "no.toml"),
        (vec!["none.jsonl", "--policy", "nowhere"], "nowhere/policy.toml cannot be read"),
    ] {
        let (code, out, err) = replay(dir, &arguments);
        assert_eq!((code, out.as_str()), (78, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
    let (code, out, _) = replay(dir, &["none.jsonl", "--policy", cortex]);
    assert_eq!(code, 78);
    assert!(out.ends_with("there are no decisions in these records\n"), "{out}");
}
