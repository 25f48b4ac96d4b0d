//! A policy that fails says what failed and where, in each language: in the status, in the log, in
//! the list of policies and in `policy test`.

use std::fs;
use std::process::Command;

use pointsman_tests::deployment::{Deployment, chain};
use pointsman_tests::host::{program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::clients::prepared_dir;
use crate::{FAKE_ENGINE, lane};

/// The languages, with the source and a part of the message of the failure in `advise`. The first
/// three have the hook `on-complete`.
const BROKEN: [(&str, &str, &str); 5] = [
    ("javascript", "policy.js", "TypeError: "),
    ("typescript", "policy.ts", "TypeError: "),
    ("python", "policy.py", "KeyError: 'missing'"),
    ("rust", "lib.rs", "index out of bounds: the len is 1 but the index is 1"),
    ("c", "policy.c", "array index out of bounds"),
];

/// Returns the number of the line that a marker is on.
fn line_with(source: &str, marker: &str) -> u64 {
    let text = fs::read_to_string(root().join("tests/broken").join(source)).unwrap();
    let index = text.lines().position(|line| line.ends_with(marker)).unwrap();
    u64::try_from(index).unwrap() + 1
}

/// Starts a host with the broken policy of a language.
pub(crate) fn start_broken(language: &str) -> Deployment {
    let name = format!("broken-{language}");
    let fresh = prepared_dir("POINTSMAN_FRESH_GUESTS", "target/guests/fresh");
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policies").join(&name);
    fs::create_dir_all(&policy).unwrap();
    for file in ["policy.toml", "policy.wasm"] {
        let from = fresh.join(&name).join(file);
        fs::copy(&from, policy.join(file))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
    // The cache is kept between test runs, because CPython takes long to compile.
    let cache = fresh.join("cache");
    let chain = chain(&[&name], "on-error = \"skip\"");
    let lane = lane("a", &["auto"], &[]);
    let config = format!("[policies]\ncache = {cache:?}\n{chain}{lane}");
    // Compiles CPython if it is not in the cache, which may take longer than a start may.
    let file = dir.path().join("check.toml");
    fs::write(&file, &config).unwrap();
    let check = Command::new(program(FAKE_ENGINE)).arg("check").arg(&file).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    Deployment::start(FAKE_ENGINE, dir, &config)
}

/// Returns the last fault of a hook.
fn fault_of(policy: &Value, hook: &str) -> Option<Value> {
    let faults = policy["last_faults"].as_array()?;
    faults.iter().find(|fault| fault["hook"] == hook).cloned()
}

fn assert_broken(language: &str, source: &str, message: &str) {
    let deployment = start_broken(language);
    let name = format!("broken-{language}");
    let response = deployment.send_chat("auto");
    assert_eq!(response.status, 200, "{language}: {}", response.text());
    let policy = deployment.policy(&name);
    let fault = fault_of(&policy, "on-request").unwrap_or_else(|| panic!("{policy:#}"));
    let line = line_with(source, "advise fails here");
    let text = |key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    assert!(text("message").contains(message), "{language}: {fault:#}");
    assert!(text("file").ends_with(source), "{language}: {fault:#}");
    assert_eq!((&fault["line"], &fault["count"]), (&json!(line), &json!(1)), "{language}");

    let place = format!("{}:{line}", text("file"));
    let (code, list, err) = deployment.policy_command(&["list"]);
    assert!(code == 0 && list.contains(&place), "{language}: {list}{err}");
    let (code, details, err) = deployment.policy_command(&["show", &name]);
    assert!(code == 0 && details.contains(&text("file")), "{language}: {details}{err}");
    let failed = deployment.host.wait_for_event("advice_failed", &[]);
    assert!(failed.text("error").contains(&place), "{language}: {failed:?}");
    let logged = deployment.host.wait_for_event("policy_fault", &[]);
    assert!(logged.text("file").ends_with(source), "{language}: {logged:?}");
    deployment.host.assert_no_request_lost();
}

#[test]
fn broken_policies_say_what_failed_and_where() {
    for (language, source, message) in BROKEN {
        assert_broken(language, source, message);
    }
}

/// A hook that cannot return an error traps. It is reported too, and the list shows that it is not
/// called any more.
#[test]
fn failing_background_hook_is_shown_with_its_location() {
    for (language, source, _) in &BROKEN[..3] {
        let deployment = start_broken(language);
        let name = format!("broken-{language}");
        let mut policy = Value::Null;
        wait_until("on-complete is stopped", || {
            assert_eq!(deployment.send_chat("auto").status, 200);
            policy = deployment.policy(&name);
            let stopped = policy["stopped_hooks"].as_array();
            stopped.is_some_and(|hooks| hooks.contains(&json!("on-complete")))
        });
        let fault = fault_of(&policy, "on-complete").unwrap_or_else(|| panic!("{policy:#}"));
        let line = line_with(source, "observe fails here");
        assert_eq!((&fault["kind"], &fault["line"]), (&json!("trap"), &json!(line)), "{fault:#}");
        assert!(fault["message"].as_str().unwrap().contains("cannot observe"), "{fault:#}");
        let (_, list, _) = deployment.policy_command(&["list"]);
        assert!(list.contains("on-complete"), "{language}: {list}");
    }
}
