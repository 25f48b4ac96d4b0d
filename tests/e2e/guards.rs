//! Guards: rules of the operator, which no policy can break.

use std::process::Command;

use pointsman_tests::client::{chat, post, send};
use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{fake_lane, program};
use serde_json::json;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
const ONLY_A: &str = "[[guards]]\nname = \"only-a\"\nonly-labels = { name = \"a\" }\n\
    max-output-tokens = 3\nwhen.headers = { x-data-class = \"secret\" }\n";

/// Returns a configuration with the lanes `a` and `b`, each with its name as a label.
fn config(links: &str, guards: &str) -> String {
    let lane = |name: &str| {
        let label = format!("labels = {{ name = {name:?} }}");
        fake_lane(FAKE_ENGINE, name, &["auto"], &label, &["--script", r#"{"echo": true}"#])
    };
    let lanes = ["a", "b"].map(lane).concat();
    format!("[policies]\ncache = \"cache\"\n{links}{guards}{lanes}")
}

/// Returns a policy that prefers lane `a`, and retries a failed attempt on `b`.
fn sends_to_b() -> Guest {
    Guest::new("p").reason("b").lane(0).code(
        "(RECOVER
           (i32.store8 (i32.const 3076) (i32.const 1))
           (i32.store (i32.const 3080) (i32.const 1))
           (i32.const 3072))",
    )
}

/// The guard comes into force without a restart, and the policy learns nothing of it.
#[test]
fn guard_overrules_a_policy_and_takes_effect_in_place() {
    let links = chain(&["p"], "");
    let deployment =
        Deployment::start(FAKE_ENGINE, policy_dir(&[sends_to_b()]), &config(&links, ""));
    let host = &deployment.host;
    let engines = ["a", "b"].map(|lane| host.engine_pid(lane));
    let headers = [("content-type", "application/json"), ("x-data-class", "secret")];
    let body = chat("auto", json!({ "max_tokens": 50 })).to_string();
    let secret = || send(host.port, "POST", CHAT, &headers, body.as_bytes());
    host.set_script("a", json!({ "status": 500 }));
    let before = secret();
    assert_eq!(
        (before.status, before.header("x-pointsman-lane"), before.header("x-pointsman-guard")),
        (200, Some("b"), None)
    );
    deployment.write_config(&config(&links, ONLY_A));
    deployment.reload();
    let refused = secret();
    assert_eq!((refused.status, refused.header("x-pointsman-guard")), (502, Some("only-a")));
    let dropped = "pointsman_policy_advice_dropped_total";
    assert_eq!(host.metric(dropped, "part=\"guard\""), 1.0);
    host.wait_for_event("advice_guarded", &[("part", "guard")]);
    // Other requests are not concerned.
    let other = post(host.port, CHAT, &chat("auto", json!({})));
    assert_eq!(
        (other.status, other.header("x-pointsman-lane"), other.header("x-pointsman-guard")),
        (200, Some("b"), None)
    );
    host.set_script("a", json!({ "echo": true }));
    let served = secret();
    assert_eq!((served.status, served.header("x-pointsman-lane")), (200, Some("a")));
    let guarded = "pointsman_guarded_requests_total";
    assert_eq!(host.metric(guarded, "effect=\"applied\""), 2.0);
    assert_eq!(host.metric(guarded, "effect=\"violation\""), 0.0);
    assert_eq!(engines, ["a", "b"].map(|lane| host.engine_pid(lane)));
    // A path of the engine, for an operator.
    let path = "/upstream/b/slots";
    assert_eq!(deployment.admin("GET", path, "").status, 200);
    let everywhere = ONLY_A.replace("when.headers = { x-data-class = \"secret\" }\n", "");
    deployment.write_config(&config(&links, &everywhere));
    deployment.reload();
    let refused = deployment.admin("GET", path, "");
    assert_eq!((refused.status, refused.error_code()), (403, json!("guard_refused")));
    host.assert_no_request_lost();
}

#[test]
fn check_warns_about_guards_that_cannot_be_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let guards = "[[guards]]\nname = \"one\"\nonly-labels = { name = \"a\" }\n[[guards]]\n\
        name = \"two\"\nnever-labels = { name = \"a\" }\nwhen.tenants = [\"nowhere\"]\n[[guards]]\n\
        name = \"three\"\nnever-labels = { nam = \"b\" }\n";
    std::fs::write(&file, config("", guards)).unwrap();
    let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for (code, guard) in [
        ("guard_contradiction", "one"),
        ("guard_unknown_label", "three"),
        ("guard_unknown_tenant", "two"),
    ] {
        let mut lines = text.lines().filter(|line| line.contains(code));
        assert!(lines.any(|line| line.contains(guard)), "{code}: {text}");
    }
}
