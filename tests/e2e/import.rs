//! `pointsman import`: what is imported passes `check` and serves requests.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pointsman_tests::client::{chat, send};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, host, lane};

fn source(name: &str) -> PathBuf {
    root().join("tests/import").join(name)
}

fn import(arguments: &[&str], file: &Path) -> Output {
    Command::new(program(FAKE_ENGINE)).arg("import").args(arguments).arg(file).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the configuration and the report that an import of a file makes.
fn imported(name: &str) -> (String, Value) {
    let output = import(&["--json"], &source(name));
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{name}: {report}");
    let toml = text(&output.stdout);
    for secret in ["hf_a_secret", "sk-a-secret"] {
        assert!(!toml.contains(secret) && !report.contains(secret), "{name}: {toml}{report}");
    }
    (toml, serde_json::from_str(&report).unwrap())
}

fn assert_reported(report: &Value, keys: &[(u64, &str)]) {
    let items = report["items"].as_array().unwrap();
    for (line, key) in keys {
        let found = items.iter().any(|item| item["key"] == *key && item["line"] == *line);
        assert!(found, "{line}: {key} is not in {report:#}");
    }
    for item in items {
        let is_complete = ["file", "there", "here"].iter().all(|key| item[key] != "");
        assert!(is_complete, "{item:#}");
    }
}

/// Returns a folder whose `llama-server` and `vllm` are the fake engine, and a PATH on which they
/// are first.
fn engines() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama-server", "vllm"] {
        symlink(FAKE_ENGINE, dir.path().join(name)).unwrap();
    }
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    (dir, path)
}

fn check(toml: &str, variables: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pointsman.toml");
    std::fs::write(&file, toml).unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    let output = command.arg("check").arg(&file).envs(variables.iter().copied()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}\n{toml}", text(&output.stderr));
}

/// Checks that an imported configuration is valid and that its models answer.
fn serves(toml: &str, variables: &[(&str, &str)], key: Option<&str>, models: &[&str]) {
    let (_dir, path) = engines();
    let mut variables = variables.to_vec();
    variables.push(("PATH", &path));
    check(toml, &variables);
    // Ports of the source may be in use on the machine of the test.
    let toml = toml.replace("[log]\nlevel = \"info\"\n", ""); // The test sets its own.
    let toml = toml.replace("address = \"127.0.0.1:18002\"", "address = \"127.0.0.1:0\"");
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &toml, &variables);
    let authorization = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(authorization.iter().map(|value| ("authorization", value.as_str())));
    for model in models {
        let body = chat(model, json!({}));
        let path = "/v1/chat/completions";
        let response = send(host.port, "POST", path, &headers, body.to_string().as_bytes());
        assert_eq!(response.status, 200, "{model}: {}\n{}", response.text(), host.log_text());
    }
    host.assert_no_request_lost();
}

#[test]
fn llama_swap_is_served() {
    let (toml, report) = imported("llama-swap.yaml");
    serves(&toml, &[], None, &["qwen3-30b", "gpt-4o-mini", "qwen-coder", "qwen3-30b"]);
    assert_reported(
        &report,
        &[
            (4, "startPort"),
            (17, "models.qwen3-30b.filters"),
            (24, "models.qwen-coder.concurrencyLimit"),
            (27, "models.embedder.unlisted"),
        ],
    );
}

#[test]
fn presets_of_llama_server_are_served() {
    let (toml, report) = imported("models.ini");
    serves(&toml, &[], None, &["gemma-3-4b", "ggml-org/Qwen3-0.6B-GGUF:Q8_0"]);
    assert_eq!((&report["kind"], &report["lanes"]), (&json!("llama-server"), &json!(2)));
}

#[test]
fn litellm_is_served() {
    let (toml, report) = imported("litellm.yaml");
    let server = host(&lane("a", &["served-name"], &[]));
    let url = format!("http://127.0.0.1:{}/v1", server.port);
    let variables = [
        ("FIRST_SERVER", url.as_str()),
        ("FIRST_KEY", "first"),
        ("LANE_LOCAL_CHAT_2_API_KEY", "second"),
        ("LANE_LOCAL_CHAT_API_KEY", "second"),
        ("LITELLM_MASTER_KEY", "sk-clients"),
    ];
    serves(&toml, &variables, Some("sk-clients"), &["local-chat", "gpt-4o"]);
    assert_reported(
        &report,
        &[
            (8, "model_list[0].litellm_params.rpm"),
            (15, "model_list[1].litellm_params.api_key"),
            (16, "model_list[2]"),
            (21, "router_settings.routing_strategy"),
            (27, "litellm_settings.fallbacks"),
            (29, "general_settings.master_key"),
        ],
    );
}

#[test]
fn service_with_settings_in_variables_is_served() {
    let (toml, report) = imported("compose-vllm.yaml");
    assert!(toml.contains("listen = \"127.0.0.1:18434\""), "{toml}");
    let models = ["inference-engine", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"];
    serves(&toml, &[], None, &models);
    assert_reported(
        &report,
        &[
            (8, "services.inference-engine.devices"),
            (11, "services.inference-engine.group_add"),
            (14, "services.inference-engine.shm_size"),
            (20, "services.inference-engine.environment.VLLM_SWAP_SPACE"),
            (22, "services.inference-engine.environment.HF_TOKEN"),
            (24, "services.inference-engine.volumes"),
        ],
    );
}

#[test]
fn services_with_commands_are_served() {
    let (toml, report) = imported("compose-llama.yaml");
    assert!(toml.contains("address = \"127.0.0.1:18002\""), "{toml}");
    serves(&toml, &[], None, &["qwen-7b", "chat", "reader"]);
    assert_reported(&report, &[(20, "services.chat.ipc"), (34, "services.web")]);
}

#[test]
fn env_file_is_served() {
    let (toml, report) = imported("vllm.env");
    serves(&toml, &[], None, &["vllm", "/models/vllm/orchestrator/bf16"]);
    assert_reported(&report, &[(12, "VLLM_SWAP_SPACE"), (14, "VLLM_API_KEY"), (17, "HF_TOKEN")]);
}

#[test]
fn existing_files_are_kept_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pointsman.toml");
    std::fs::write(&out, "mine").unwrap();
    let out_text = out.to_str().unwrap();
    let refused = import(&["--out", out_text], &source("vllm.env"));
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "mine");
    let forced = import(&["--force", "--out", out_text], &source("vllm.env"));
    assert_eq!(forced.status.code(), Some(0), "{}", text(&forced.stderr));
    assert!(forced.stdout.is_empty());
    assert!(std::fs::read_to_string(&out).unwrap().contains("[lanes.engine]"));
}

#[test]
fn wrong_input_has_a_position_and_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    for (content, position, code) in [
        ("models:\n  a: [\n  b: 1\n", ":3:", "[invalid_syntax]"),
        ("models: {a: {}}\nservices: {b: {}}\n", ": ", "[ambiguous]"),
        ("a: 1\n", ": ", "[unknown_kind]"),
    ] {
        std::fs::write(&file, content).unwrap();
        // The folder has one file with a known name.
        let output = import(&[], dir.path());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with(&format!("{}{position}", file.display())), "{error}");
        assert!(error.trim_end().ends_with(code), "{error}");
    }
    std::fs::write(dir.path().join("models.ini"), "[a]\n").unwrap();
    let output = import(&[], dir.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).trim_end().ends_with("[ambiguous]"));
}
