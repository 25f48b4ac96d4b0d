//! The conformance cases of the endpoint picker protocol, with a policy that picks the endpoints
//! that a header of the request names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::client::{Response, chat};
use pointsman_tests::host::program;
use serde_json::json;

use super::{PATH, engines, envoy, picker};
use crate::FAKE_ENGINE;
use crate::envoy::Envoy;

/// Names the endpoints that a request has to go to, in order.
const SELECTION: &str = "test-epp-endpoint-selection";

/// The policy: lanes are found by their label.
const POLICY: &str = r#"//! Picks the endpoints that a header names.
use pointsman_sdk::{Advice, Call, Policy, PolicyError};

pub struct Selection;
pointsman_sdk::export_policy!(Selection);

impl Policy for Selection {
    const NAME: &'static str = "selection";
    const VERSION: &'static str = "0.1.0";

    fn configure(_: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let Some(wanted) = call.request.header("test-epp-endpoint-selection") else {
            return Ok(Advice::any());
        };
        let named = wanted.split(',').flat_map(|it| call.fleet.with_label("endpoint", it.trim()));
        Ok(Advice::only(named.collect::<Vec<_>>()))
    }
}
"#;

fn policy(arguments: &[&str]) {
    let mut command = Command::new(program(FAKE_ENGINE));
    let output = command.arg("policy").args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Builds the policy, and returns the folder of its folder.
fn build(dir: &Path) -> PathBuf {
    let text = dir.to_str().unwrap();
    policy(&["new", "selection", "--lang", "rust", "--dir", text]);
    let folder = dir.join("selection");
    fs::write(folder.join("src/lib.rs"), POLICY).unwrap();
    fs::write(folder.join("cases.jsonl"), "").unwrap();
    policy(&["build", folder.to_str().unwrap()]);
    dir.to_owned()
}

fn send(envoy: &Envoy, selection: &str) -> Response {
    let headers = [("content-type", "application/json"), (SELECTION, selection)];
    let body = chat("m", json!({})).to_string();
    pointsman_tests::client::send(envoy.port, "POST", PATH, &headers, body.as_bytes())
}

#[test]
fn requests_go_to_the_selected_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let policies = build(dir.path());
    let mut engines = engines([json!({}), json!({})]);
    let lane = |index: usize, name: &str| {
        let label = format!("labels = {{ endpoint = \"{}\" }}", engines[index].address());
        engines[index].lane(name, &label).replace("200ms", "60s")
    };
    let lanes = [lane(0, "a"), lane(1, "b")];
    let policies =
        format!("[policies]\ndir = {policies:?}\n[[policies.chain]]\nname = \"selection\"");
    let picker = picker(&lanes, &policies);
    let envoy = envoy(&picker, &engines);
    let [a, b] = [engines[0].address(), engines[1].address()];
    // One endpoint, and no other.
    for (endpoint, lane) in [(&a, "a"), (&b, "b")] {
        for _ in 0..3 {
            let response = send(&envoy, endpoint);
            assert_eq!(response.header("x-pointsman-lane"), Some(lane), "{}", response.text());
        }
    }
    // None of those that exist: no response by another one.
    let none = send(&envoy, "127.0.0.1:1");
    assert_eq!((none.status, none.error_code()), (503, json!("no_lane_available")));
    // Several, in order: the second one serves if the first one cannot.
    engines[0].kill();
    let second = send(&envoy, &format!("{a},{b}"));
    assert_eq!(second.header("x-pointsman-lane"), Some("b"), "{}", second.text());
    // One that cannot: the others are not asked.
    let before = engines[1].ended();
    assert!(send(&envoy, &a).status >= 500);
    assert_eq!(engines[1].ended(), before);
    assert_eq!(send(&envoy, &b).status, 200);
}
