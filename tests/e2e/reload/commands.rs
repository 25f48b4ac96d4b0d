//! `pointsman reload`, and `pointsman check --against`.

use std::fs;
use std::process::{Command, Stdio};

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::deployment::{Deployment, policy_dir};
use pointsman_tests::host::program;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

fn run(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(arguments).env("ADMIN_TOKEN", "t0ken-0123456789").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn plan_is_shown_before_it_is_applied() {
    let engine = HostileEngine::honest();
    let lane = external_lane("a", &["a"], &engine, "");
    // So that only commands reload.
    let quiet = "[policies]\npoll-interval = \"1h\"\n";
    let text = format!("{quiet}{lane}");
    let deployment = Deployment::start(FAKE_ENGINE, policy_dir(&[]), &text);
    let dir = deployment.host.dir.path();
    let file = dir.join("pointsman.toml");
    let file = file.to_str().unwrap();
    let now = fs::read_to_string(file).unwrap();
    let other = dir.join("new.toml");
    let changed = now.replace("[policies]", "[queue]\ntotal = 7\n[policies]");
    fs::write(&other, &changed).unwrap();
    let other = other.to_str().unwrap();
    let socket = deployment.host.admin_socket().unwrap().to_str().unwrap();
    let url = format!("http://127.0.0.1:{}", deployment.admin_port);
    for against in [vec![file], vec![socket], vec![&url, "--token-env", "ADMIN_TOKEN"]] {
        let (code, out, err) = run(&[&["check", other, "--against"], &against[..]].concat());
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("queue.total") && out.contains("generation 1"), "{out}");
    }
    let (code, out, _) = run(&["check", other, "--against", file, "--json"]);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &plan["plan"]["changed"]), (0, &json!(["queue.total"])));
    assert_eq!(plan["result"], "planned");
    // The file itself has not changed.
    let (_, out, _) = run(&["reload", "--config", file, "--dry-run", "--json"]);
    let outcome: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(outcome["plan"]["changed"], json!([]));

    fs::write(file, &changed).unwrap();
    let (code, out, err) = run(&["reload", "--config", file]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(deployment.host.status()["config"]["generation"], 2);
    fs::write(file, changed.replace("total = 7", "total = \"x\"")).unwrap();
    for dry_run in [&["--dry-run"][..], &[]] {
        let (code, out, err) = run(&[&["reload", "--config", file], dry_run].concat());
        assert_eq!((code, out.as_str()), (78, ""), "{err}");
        assert!(err.contains("queue.total") && err.contains("[wrong_type]"), "{err}");
    }
    assert_eq!(deployment.host.status()["config"]["generation"], 2);
}
