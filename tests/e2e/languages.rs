//! The SDKs: one example policy in four languages, which must behave identically, the tests of the
//! SDKs, and the templates for new policies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pointsman_tests::client::{Response, send};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::wait_until;
use pointsman_xtask::setup::GUEST_WHEELS;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clients::prepared_dir;
use crate::{FAKE_ENGINE, lane};

const LANGUAGES: [&str; 4] = ["rust", "javascript", "python", "c"];

/// Returns the directory in which `cargo xtask guests --out` has built complete policy folders.
fn fresh_guests() -> PathBuf {
    prepared_dir("POINTSMAN_FRESH_GUESTS", "target/guests/fresh")
}

/// Returns a directory with one freshly built policy, under the name in its manifest.
fn with_policy(folder: &str, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policies").join(name);
    fs::create_dir_all(&policy).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        let from = fresh_guests().join(folder).join(file);
        fs::copy(&from, policy.join(file))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
    dir
}

/// Returns a configuration with the policy and four lanes for the model `auto`.
///
/// The cache is kept between test runs, because CPython takes long to compile.
fn config(name: &str, config: &Value) -> String {
    let cache = fresh_guests().join("cache");
    let lanes = ["alpha", "beta", "coder", "reader"].map(|name| lane(name, &[name, "auto"], &[]));
    format!(
        "[policies]\ncache = {cache:?}\n[[policies.chain]]\nname = {name:?}\nconfig = {}\n\
         [[keys]]\ntenant = \"acme\"\nenv = \"TEST_KEY_ACME\"\n[[keys]]\ntenant = \"other\"\n\
         env = \"TEST_KEY_OTHER\"\n{}",
        to_toml(config),
        lanes.concat()
    )
}

/// Returns JSON as an inline table of TOML.
fn to_toml(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{key:?} = {}", to_toml(value)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// Runs `pointsman check` in a directory: loads the policy and runs its golden cases.
fn check(dir: &Path, config: &str) -> Output {
    let file = dir.join("pointsman.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command
        .arg("check")
        .arg(file)
        .env("TEST_KEY_ACME", "acme-key")
        .env("TEST_KEY_OTHER", "other-key");
    command.output().unwrap()
}

fn assert_succeeds(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn example_decides_identically_in_all_languages() {
    let settings = json!({"teams": {"acme": "alpha"}, "code-lane": "coder", "long-tokens": 50,
        "long-lane": "reader"});
    let long = "word ".repeat(100);
    let requests: [(&str, &str, &str, [Option<&str>; 3]); 5] = [
        ("acme-key", "hello", "", [Some("alpha"), None, Some("alpha: home lane of acme")]),
        (
            "other-key",
            "```rust```",
            "-3",
            [Some("coder"), None, Some("coder: the prompt contains code")],
        ),
        (
            "other-key",
            &long,
            "99",
            [Some("reader"), None, Some("reader: the prompt is longer than 50 tokens")],
        ),
        (
            "other-key",
            "hello",
            "no",
            [Some("alpha"), None, Some("shortest wait and warmest cache")],
        ),
        // The code lane fails, and the first of the remaining candidates serves the request.
        (
            "other-key",
            "```fail```",
            "",
            [Some("alpha"), Some("2"), Some("coder: the prompt contains code")],
        ),
    ];
    for language in LANGUAGES {
        let dir = with_policy(&format!("team-lanes-{language}"), "team-lanes");
        let config = config("team-lanes", &settings);
        // `check` compiles the component, which may take long, before the host needs it.
        let checked = check(dir.path(), &config);
        assert!(
            checked.status.success(),
            "{language}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let keys = [("TEST_KEY_ACME", "acme-key"), ("TEST_KEY_OTHER", "other-key")];
        let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &keys).wait_until_ready();
        for (key, text, priority, expected) in requests {
            host.set_script(
                "coder",
                if text.contains("fail") { json!({ "status": 503 }) } else { json!({}) },
            );
            let response = send_chat(&host, key, text, priority);
            let observed = ["lane", "attempts", "reason"]
                .map(|name| response.header(&format!("x-pointsman-{name}")));
            assert_eq!(response.status, 200, "{language}: {}", response.text());
            assert_eq!(observed, expected, "{language}: {text}");
            assert!(
                response.header("x-pointsman-policy").unwrap().starts_with("team-lanes@0.1.0+"),
                "{language}"
            );
        }
        // One request went to the code lane by rule, which failed it.
        let counter = || host.metric("pointsman_policy_custom_total", "name=\"rule-failed\"");
        wait_until("the policy has learned", || counter() == 1.0);
        let calls = |hook: &str| {
            let labels = format!("hook=\"{hook}\",result=\"ok\"");
            host.metric("pointsman_policy_calls_total", &labels)
        };
        assert_eq!((calls("on-request"), calls("on-failure")), (5.0, 0.0), "{language}");
        assert_eq!(host.metric("pointsman_policy_faults_total", ""), 0.0, "{language}");
        host.assert_no_request_lost();
    }
}

/// Team `acme` is at home on `alpha`, which an earlier policy excludes.
#[test]
fn filter_of_an_earlier_policy_is_seen_in_all_languages() {
    let settings = json!({"teams": {"acme": "alpha"}});
    for language in LANGUAGES {
        let dir = with_policy(&format!("team-lanes-{language}"), "team-lanes");
        Guest::new("filter").only(1).write_to(&dir.path().join("policies"));
        let chain = "[[policies.chain]]\nname = \"filter\"\n[[policies.chain]]";
        let config = config("team-lanes", &settings).replacen("[[policies.chain]]", chain, 1);
        let checked = check(dir.path(), &config);
        let err = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.success(), "{language}: {err}");
        let keys = [("TEST_KEY_ACME", "acme-key"), ("TEST_KEY_OTHER", "other-key")];
        let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &keys).wait_until_ready();
        let response = send_chat(&host, "acme-key", "hello", "");
        assert_eq!(response.status, 200, "{language}: {}", response.text());
        // A policy that insisted on `alpha` would leave no lane, and the response would be 503.
        assert_eq!(response.header("x-pointsman-lane"), Some("beta"), "{language}");
        host.assert_no_request_lost();
    }
}

fn send_chat(host: &Host, key: &str, text: &str, priority: &str) -> Response {
    let body =
        json!({ "model": "auto", "messages": [{ "role": "user", "content": text }] }).to_string();
    let key = format!("Bearer {key}");
    let mut headers = vec![("authorization", key.as_str()), ("content-type", "application/json")];
    if !priority.is_empty() {
        headers.push(("x-priority", priority));
    }
    send(host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes())
}

#[test]
fn example_rejects_invalid_config_identically_in_all_languages() {
    let mut messages = BTreeMap::new();
    for language in LANGUAGES {
        let dir = with_policy(&format!("team-lanes-{language}"), "team-lanes");
        // Golden cases have configurations of their own.
        fs::remove_file(dir.path().join("policies/team-lanes/cases.jsonl")).unwrap();
        for (invalid, key, value) in [
            (json!({"team": {}}), "team", ""),
            (json!({"teams": "acme"}), "teams", ""),
            (json!({"teams": {"acme": 5}}), "teams.acme", ""),
            (json!({"code-lane": true}), "code-lane", ""),
            (json!({"long-tokens": 0}), "long-tokens", "4294967295"),
            (json!({"long-tokens": -1}), "long-tokens", "4294967295"),
            (json!({"long-tokens": 4_294_967_296_u64}), "long-tokens", "4294967295"),
        ] {
            let checked = check(dir.path(), &config("team-lanes", &invalid));
            let err = String::from_utf8_lossy(&checked.stderr).into_owned();
            let mut lines = err.lines();
            let error = lines.find(|line| line.contains("[config_invalid]")).unwrap_or_default();
            assert!(
                !checked.status.success() && error.contains(key) && error.contains(value),
                "{language}: {invalid}: {err}"
            );
            // The message must be the same in all languages, apart from the temporary directory.
            let message = error.replace(&dir.path().display().to_string(), "");
            let first = messages.entry(invalid.to_string()).or_insert_with(|| message.clone());
            assert_eq!(*first, message, "{language}: {invalid}");
        }
    }
}

/// The policies that `pointsman policy new` writes can be built and pass their golden cases.
#[test]
fn templates_pass_their_golden_cases() {
    for language in LANGUAGES {
        let name = format!("new-{language}");
        let dir = with_policy(&name, &name);
        let checked = check(dir.path(), &config(&name, &json!({})));
        assert!(
            checked.status.success(),
            "{language}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let out = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(out.contains(&format!("{name}@0.1.0+")), "{language}: {out}");
    }
}

/// New policies get the versions of the tools that these tests use.
#[test]
fn templates_name_the_tested_tools() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let template = |file: &str| read(&format!("host/crates/build/templates/{file}"));
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let tested = json(read("tests/node/package.json"));
    for (language, count) in [("javascript", 2), ("typescript", 4)] {
        let package = json(template(&format!("{language}/package.json")));
        let tools = package["devDependencies"].as_object().unwrap();
        assert_eq!(tools.len(), count);
        for (name, version) in tools {
            assert_eq!(tested["dependencies"][name], *version, "{name}");
        }
    }
    let wheels = ["python", "c"].map(|name| template(&format!("{name}/requirements.txt")));
    assert_eq!(wheels.map(|text| text.trim().to_owned()), GUEST_WHEELS);
}

#[test]
fn javascript_sdk_passes_its_tests() {
    let mut sdk = Command::new("node");
    sdk.arg("--test").arg(root().join("plugins/sdk/javascript/test/"));
    assert_succeeds(sdk);
    let mut template = Command::new("node");
    template.arg("--test").arg(fresh_guests().join("new-javascript/test/"));
    assert_succeeds(template);
}

#[test]
fn python_sdk_passes_its_tests() {
    let python = prepared_dir("POINTSMAN_VENV", "venv").join("bin/python");
    let unittest = |sdk: &Path, source: &Path, tests: &Path| {
        let mut command = Command::new(&python);
        let path = std::env::join_paths([sdk, &sdk.join("bindings"), source]).unwrap();
        command.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["-m", "unittest", "discover", "--start-directory"]).arg(tests);
        assert_succeeds(command);
    };
    let sdk = root().join("plugins/sdk/python");
    unittest(&sdk, &sdk, &sdk.join("tests"));
    let template = fresh_guests().join("new-python");
    unittest(&template.join("sdk"), &template.join("src"), &template.join("test"));
}

#[test]
fn c_sdk_passes_its_tests() {
    let dir = tempfile::tempdir().unwrap();
    let sdk = root().join("plugins/sdk/c");
    let test = dir.path().join("test");
    let mut compile = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python-zig"));
    compile.args(["cc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]);
    // The header of the contract, as the build made it for a policy with `on-outcome`.
    compile.arg("-I").arg(fresh_guests().join("team-lanes-c/.build")).arg("-I").arg(&sdk);
    compile.arg("-DPM_ON_OUTCOME");
    for file in ["advice.c", "arena.c", "config.c", "guest.c", "text.c", "tests/sdk.c"] {
        compile.arg(sdk.join(file));
    }
    compile.arg("-o").arg(&test);
    assert_succeeds(compile);
    assert_succeeds(Command::new(test));
}
