//! One policy in four languages, which has to be the same policy; the SDKs it is written with; and the templates for new ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pointsman_tests::client::{Reply, send};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clients::prepared;
use crate::{FAKE_ENGINE, lane};

const LANGUAGES: [&str; 4] = ["rust", "javascript", "python", "c"];

/// Where `cargo xtask guests --out` has put complete policy folders.
fn fresh() -> PathBuf {
    prepared("POINTSMAN_FRESH_GUESTS", "target/guests/fresh")
}

/// A folder with one freshly built policy, under the name that its manifest gives it.
fn with_policy(folder: &str, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policies").join(name);
    fs::create_dir_all(&policy).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        let from = fresh().join(folder).join(file);
        fs::copy(&from, policy.join(file))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
    dir
}

/// Four lanes for the model `auto`, behind the policy. CPython is compiled once, and kept between runs of the tests.
fn config(name: &str, config: &Value) -> String {
    let cache = fresh().join("cache");
    let lanes = ["alpha", "beta", "coder", "reader"].map(|name| lane(name, &[name, "auto"], &[]));
    format!(
        "[policies]\ncache = {cache:?}\n[[policies.chain]]\nname = {name:?}\nconfig = {}\n\
         [[keys]]\ntenant = \"acme\"\nenv = \"TEST_KEY_ACME\"\n[[keys]]\ntenant = \"other\"\nenv = \"TEST_KEY_OTHER\"\n{}",
        inline(config),
        lanes.concat()
    )
}

/// JSON as an inline table of TOML.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(key, value)| format!("{key:?} = {}", inline(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// `pointsman check` of a folder: loads the policy and runs its golden cases.
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

fn passes(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_example_decides_alike_in_all_languages() {
    let settings = json!({"teams": {"acme": "alpha"}, "code-lane": "coder", "long-tokens": 50, "long-lane": "reader"});
    let long = "word ".repeat(100);
    let requests: [(&str, &str, &str, [Option<&str>; 3]); 5] = [
        ("acme-key", "hello", "", [Some("alpha"), None, Some("alpha: the home of acme")]),
        (
            "other-key",
            "```rust```",
            "-3",
            [Some("coder"), None, Some("coder: the prompt has code in it")],
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
            [Some("alpha"), None, Some("the shortest wait and the warmest cache")],
        ),
        // The code lane fails, and the first of the remaining candidates answers.
        (
            "other-key",
            "```fail```",
            "",
            [Some("alpha"), Some("2"), Some("coder: the prompt has code in it")],
        ),
    ];
    for language in LANGUAGES {
        let dir = with_policy(&format!("team-lanes-{language}"), "team-lanes");
        let config = config("team-lanes", &settings);
        // Compiles the component, and takes the time that it takes.
        let checked = check(dir.path(), &config);
        assert!(
            checked.status.success(),
            "{language}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let keys = [("TEST_KEY_ACME", "acme-key"), ("TEST_KEY_OTHER", "other-key")];
        let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &keys).ready();
        for (key, text, priority, expected) in requests {
            host.script(
                "coder",
                if text.contains("fail") { json!({ "status": 503 }) } else { json!({}) },
            );
            let reply = ask(&host, key, text, priority);
            let seen = ["lane", "attempts", "reason"]
                .map(|name| reply.header(&format!("x-pointsman-{name}")));
            assert_eq!(reply.status, 200, "{language}: {}", reply.text());
            assert_eq!(seen, expected, "{language}: {text}");
            assert!(
                reply.header("x-pointsman-policy").unwrap().starts_with("team-lanes@0.1.0+"),
                "{language}"
            );
        }
        assert_eq!(host.metric("pointsman_policy_calls_total", "result=\"ok\""), 5.0, "{language}");
        assert_eq!(host.metric("pointsman_policy_faults_total", ""), 0.0, "{language}");
        host.assert_nothing_lost();
    }
}

fn ask(host: &Host, key: &str, text: &str, priority: &str) -> Reply {
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
fn the_example_refuses_a_wrong_configuration_with_the_same_sentence() {
    for language in LANGUAGES {
        let dir = with_policy(&format!("team-lanes-{language}"), "team-lanes");
        // They would be run with configurations of their own.
        fs::remove_file(dir.path().join("policies/team-lanes/cases.jsonl")).unwrap();
        for (wrong, sentence) in [
            (json!({"team": {}}), "there is no key `team`"),
            (json!({"teams": "acme"}), "`teams` must be an object"),
            (json!({"teams": {"acme": 5}}), "`teams.acme` must be a text"),
            (json!({"code-lane": true}), "`code-lane` must be a text"),
            (
                json!({"long-tokens": 0}),
                "`long-tokens` must be a whole number from 1 to 4294967295",
            ),
            (
                json!({"long-tokens": -1}),
                "`long-tokens` must be a whole number from 1 to 4294967295",
            ),
            (
                json!({"long-tokens": 4_294_967_296_u64}),
                "`long-tokens` must be a whole number from 1 to 4294967295",
            ),
        ] {
            let checked = check(dir.path(), &config("team-lanes", &wrong));
            let said = String::from_utf8_lossy(&checked.stderr).into_owned();
            assert!(
                !checked.status.success() && said.contains(sentence),
                "{language}: {wrong}: {said}"
            );
        }
    }
}

/// What `pointsman policy new` writes can be built, and passes the cases that come with it.
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
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(said.contains(&format!("policies: {name}@0.1.0+")), "{language}: {said}");
    }
}

#[test]
fn the_javascript_sdk_passes_its_tests() {
    let mut sdk = Command::new("node");
    sdk.arg("--test").arg(root().join("plugins/sdk/javascript/test/"));
    passes(sdk);
    let mut template = Command::new("node");
    template.arg("--test").arg(fresh().join("new-javascript/test/"));
    passes(template);
}

#[test]
fn the_python_sdk_passes_its_tests() {
    let python = prepared("POINTSMAN_VENV", "venv").join("bin/python");
    let unittest = |sdk: &Path, source: &Path, tests: &Path| {
        let mut command = Command::new(&python);
        let path = std::env::join_paths([sdk, &sdk.join("bindings"), source]).unwrap();
        command.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["-m", "unittest", "discover", "--start-directory"]).arg(tests);
        passes(command);
    };
    let sdk = root().join("plugins/sdk/python");
    unittest(&sdk, &sdk, &sdk.join("tests"));
    let template = fresh().join("new-python");
    unittest(&template.join("sdk"), &template.join("src"), &template.join("test"));
}

#[test]
fn the_c_sdk_passes_its_tests() {
    let dir = tempfile::tempdir().unwrap();
    let sdk = root().join("plugins/sdk/c");
    let test = dir.path().join("test");
    let mut compile = Command::new(prepared("POINTSMAN_VENV", "venv").join("bin/python-zig"));
    compile.args(["cc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]);
    // The header of the contract, as the build made it for the template.
    compile.arg("-I").arg(fresh().join("new-c/.build")).arg("-I").arg(&sdk);
    for file in ["advice.c", "arena.c", "config.c", "guest.c", "text.c", "tests/sdk.c"] {
        compile.arg(sdk.join(file));
    }
    compile.arg("-o").arg(&test);
    passes(compile);
    passes(Command::new(test));
}
