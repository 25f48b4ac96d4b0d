//! The Helm chart: rendered by Helm as a library, validated against the schemas of Kubernetes, and
//! its configuration checked by the host.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_tests::host::{program, root};
use serde::Deserialize;

use crate::support::{assert_golden, run, shutdown_limit, venv_program};

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
/// Values that the two committed files do not have.
const MORE: &str = r#"
image: { digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000" }
gpu: { mode: host-devices, supplementalGroups: [44] }
secret: { data: { HF_TOKEN: "hf_1\"2" }, env: [HF_TOKEN] }
env: [{ name: HF_HUB_OFFLINE, value: "1" }]
models: { existingClaim: models }
networkPolicy: { from: [{ namespaceSelector: { matchLabels: { team: agents } } }] }
tolerations: [{ key: gpu, operator: Exists }]
extraVolumes: [{ name: policies, configMap: { name: policies } }]
extraVolumeMounts: [{ name: policies, mountPath: /policies, readOnly: true }]
state: { size: 1Gi, storageClass: fast }
"#;

/// What Helm makes of values.
#[derive(Debug, Deserialize)]
struct Rendered {
    /// Warnings and errors of the linter.
    lint: Vec<String>,
    /// Texts by the names of their templates.
    files: BTreeMap<String, String>,
    /// Why the values are refused.
    error: Option<String>,
}

fn chart() -> PathBuf {
    root().join("host/packaging/helm/pointsman")
}

fn render(values: Option<&Path>) -> Rendered {
    let mut command = Command::new(venv_program("python"));
    command.arg(root().join("tests/packages/render_chart.py")).arg(chart()).args(values);
    serde_json::from_str(&run(&mut command)).unwrap()
}

fn render_text(values: &str) -> Rendered {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    fs::write(&file, values).unwrap();
    render(Some(&file))
}

/// Asserts that Kubernetes accepts the resources, and that they are the expected ones.
fn assert_resources(rendered: &Rendered, name: &str) {
    assert_eq!((&rendered.error, &rendered.lint), (&None, &Vec::new()), "{name}");
    let dir = tempfile::tempdir().unwrap();
    let mut validate = Command::new(venv_program("kubernetes-validate"));
    validate.args(["--strict", "--no-warn"]);
    let mut all = String::new();
    let is_resource =
        |(file, text): &(&String, &String)| file.ends_with(".yaml") && !text.trim().is_empty();
    for (file, text) in rendered.files.iter().filter(is_resource) {
        writeln!(all, "# {file}\n{}", text.trim()).unwrap();
        // Not a resource of Kubernetes itself.
        if file != "podmonitor.yaml" {
            let path = dir.path().join(file);
            fs::write(&path, text).unwrap();
            validate.arg(path);
        }
    }
    run(&mut validate);
    // Blank lines of the configuration are indented.
    let lines = all.lines().map(|line| format!("{}\n", line.trim_end()));
    assert_golden(&format!("helm/{name}.yaml"), &lines.collect::<String>());
}

/// Asserts that the host accepts the configuration, and that Kubernetes waits for its shutdown.
fn assert_config(rendered: &Rendered) {
    let text = &rendered.files["configmap.yaml"];
    let (_, config) = text.split_once("pointsman.toml: |\n").unwrap();
    let config: String = config.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let dir = tempfile::tempdir().unwrap();
    for key in ["CORTEX", "METRICS"] {
        let file = dir.path().join(format!("POINTSMAN_KEY_{key}"));
        fs::write(file, format!("a-key-of-{key}-0123456789")).unwrap();
    }
    let limit = shutdown_limit(&program(FAKE_ENGINE), &config, dir.path());
    let pod = &rendered.files["statefulset.yaml"];
    let (_, grace) = pod.split_once("terminationGracePeriodSeconds: ").unwrap();
    let grace: u64 = grace.lines().next().unwrap().parse().unwrap();
    assert!(grace >= limit, "{grace} s, and a shutdown takes {limit} s");
}

#[test]
fn default_values_are_accepted() {
    let rendered = render(None);
    assert_resources(&rendered, "default");
    assert_config(&rendered);
    assert!(rendered.files["NOTES.txt"].contains("http://router-pointsman.llm.svc:8000/v1"));
}

#[test]
fn values_of_a_strix_halo_are_accepted() {
    let rendered = render(Some(&root().join("host/packaging/helm/values-strix-halo.yaml")));
    assert_resources(&rendered, "strix-halo");
    assert_config(&rendered);
}

#[test]
fn all_other_values_are_accepted() {
    assert_resources(&render_text(MORE), "more");
}

#[test]
fn wrong_values_are_refused() {
    for (values, key) in [
        ("replicas: 2", "replicas"),
        ("config: ''", "config"),
        ("gpu: { mode: rocm }", "mode"),
        ("gpu: { supplementalGroups: [render] }", "supplementalGroups"),
        ("gpu: { count: 0 }", "count"),
        ("image: { digest: latest }", "digest"),
        ("sharedMemory: 16 GB", "sharedMemory"),
        ("terminationGracePeriodSeconds: 10", "terminationGracePeriodSeconds"),
        ("listeners: [{ name: http, port: 9000 }]", "listeners"),
        ("listeners: [{ name: more, port: 8000 }]", "listeners"),
        ("seccompProfile: None", "seccompProfile"),
        ("secret: { data: { a-b: c } }", "a-b"),
        ("secret: { env: [HF_TOKEN] }", "secret.env"),
        ("podMonitor: { enabled: true, keyName: KEY }", "podMonitor.keyName"),
    ] {
        let error = render_text(values).error.unwrap_or_else(|| panic!("accepted: {values}"));
        assert!(error.contains(key), "{values}: {error}");
    }
}
