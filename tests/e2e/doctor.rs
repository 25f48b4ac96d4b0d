//! `pointsman doctor` with a configuration, against a system in a temporary folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use pointsman_tests::host::program;
use serde_json::Value;

use crate::FAKE_ENGINE;

/// The port 18431 listens, and 18432 is only the end of a connection.
const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n   \
    0: 0100007F:47FF 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000\n   \
    1: 0100007F:4800 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000\n";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Returns a lane with a fake vLLM. `more` are further keys of its engine.
fn vllm(name: &str, model: &str, more: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nload = \"on-demand\"\n[lanes.engine]\ndriver = \"vllm\"\n\
         program = [{FAKE_ENGINE:?}]\nmodel = {model:?}\n{more}\n"
    )
}

/// Runs `pointsman doctor` for a configuration; returns the exit code and the report.
fn doctor(root: &Path, config: &str) -> (i32, Value) {
    let file = root.join("pointsman.toml");
    let state = root.join("state");
    fs::write(&file, format!("state.dir = {state:?}\n{config}")).unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["doctor", "--json", "--root"]).arg(root).arg("--config").arg(file);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), report.unwrap_or_else(|error| panic!("{error}: {errors}")))
}

/// Returns the fact and the remedy of the first finding with this check and verdict.
fn find<'r>(report: &'r Value, check: &str, verdict: &str) -> (&'r str, &'r str) {
    let mut findings = report["findings"].as_array().unwrap().iter();
    let finding =
        findings.find(|finding| finding["check"] == check && finding["verdict"] == verdict);
    let finding = finding.unwrap_or_else(|| panic!("{check} {verdict}: {report:#}"));
    (finding["fact"].as_str().unwrap(), finding["fix"].as_str().unwrap_or_default())
}

#[test]
fn good_configuration_has_no_problems() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "m/coder/config.json", r#"{"architectures": ["Qwen2ForCausalLM"]}"#);
    write(root, "proc/net/tcp", TCP);
    let lane = vllm("coder", "/m/coder", "port = 18432");
    let (code, report) = doctor(root, &format!("server.listen = \"127.0.0.1:18433\"\n{lane}"));
    assert_eq!((code, &report["has_problem"]), (0, &Value::Bool(false)), "{report:#}");
    let (ports, _) = find(&report, "ports", "ok");
    assert!(ports.contains("18432") && ports.contains("18433"), "{ports}");
    assert!(find(&report, "model", "ok").0.contains("Qwen2ForCausalLM"));
    assert!(find(&report, "program", "ok").0.contains("0.32.0"));
}

#[test]
fn ports_models_and_programs_are_checked() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "proc/net/tcp", TCP);
    write(root, "m/vision/config.json", r#"{"architectures": ["MllamaForConditionalGeneration"]}"#);
    let sigill = "port = 18431\nenv = { FAKE_ENGINE = \"--exit-code 132\" }";
    let config = [
        vllm("missing", "/m/missing", sigill),
        vllm("vision", "/m/vision", ""),
        vllm("hub", "Qwen/Qwen2.5-7B", "offline = true"),
    ];
    let (code, report) = doctor(root, &config.concat());
    assert_eq!((code, &report["has_problem"]), (1, &Value::Bool(true)));
    let (ports, fix) = find(&report, "ports", "problem");
    assert!(ports.contains("18431 (lane `missing`)") && fix.contains("ss -ltnp"), "{ports}");
    assert!(find(&report, "model", "problem").0.contains("/m/missing does not exist"));
    assert!(find(&report, "model", "warning").0.contains("Mllama"));
    let facts = report["findings"].to_string();
    assert!(facts.contains("Qwen/Qwen2.5-7B is not on this machine"), "{facts}");
    let (program, fix) = find(&report, "program", "problem");
    assert!(program.contains("illegal_instruction") && program.contains("SIGILL"), "{program}");
    assert!(fix.contains("build for this CPU"), "{fix}");
}

#[test]
fn each_error_of_a_configuration_is_a_problem() {
    let root = tempfile::tempdir().unwrap();
    let (code, report) = doctor(root.path(), "server.lisen = 1\n[[lanes]]\nname = 7\n");
    assert_eq!(code, 1);
    let findings = report["findings"].as_array().unwrap();
    let errors = findings.iter().filter(|finding| finding["check"] == "config");
    assert!(errors.count() >= 2, "{report:#}");
    assert!(find(&report, "config", "problem").1.contains("pointsman check"));
}
