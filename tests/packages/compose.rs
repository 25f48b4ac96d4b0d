//! The compose files: valid for Compose, consistent with the image and with their configurations,
//! and served by the host with a fake engine.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};

use crate::support::{run, run_any, shutdown_limit, venv_program};

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
const KINDS: [&str; 2] = ["development", "strix"];

fn folder(kind: &str) -> PathBuf {
    root().join("host/packaging/compose").join(kind)
}

fn config(kind: &str) -> String {
    fs::read_to_string(folder(kind).join("config/pointsman.toml")).unwrap()
}

/// Returns the services of a compose file.
fn services(kind: &str) -> Value {
    let mut command = Command::new(venv_program("python"));
    command.arg(root().join("tests/packages/services.py")).arg(folder(kind).join("compose.yaml"));
    serde_json::from_str(&run(&mut command)).unwrap()
}

/// Returns the service that runs the host.
fn host_service(kind: &str) -> Value {
    let name = if kind == "strix" { "inference-engine" } else { "pointsman" };
    services(kind)[name].take()
}

fn schema_check(file: &PathBuf) -> (bool, String) {
    let mut check = Command::new(venv_program("check-jsonschema"));
    run_any(check.args(["--builtin-schema", "vendor.compose-spec"]).arg(file))
}

#[test]
fn files_are_those_of_the_compose_specification() {
    for kind in KINDS {
        let (is_valid, text) = schema_check(&folder(kind).join("compose.yaml"));
        assert!(is_valid, "{kind}: {text}");
    }
    // The check finds misspelt keys.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("compose.yaml");
    let text = fs::read_to_string(folder("strix").join("compose.yaml")).unwrap();
    fs::write(&file, text.replace("shm_size:", "shmsize:")).unwrap();
    let (is_valid, text) = schema_check(&file);
    assert!(!is_valid && text.contains("shmsize"), "{text}");
}

#[test]
fn shutdown_fits_into_the_grace_period() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let limit = shutdown_limit(&program(FAKE_ENGINE), &config(kind), dir.path());
        let grace = host_service(kind)["stop_grace_period"].take();
        let minutes: u64 = grace.as_str().unwrap().strip_suffix('m').unwrap().parse().unwrap();
        assert!(minutes * 60 >= limit, "{kind}: {grace}, and a shutdown takes {limit} s");
    }
}

#[test]
fn health_check_is_that_of_the_image() {
    let golden = root().join("tests/packages/golden/image.json");
    let image: Value = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    let nanoseconds = |name: &str| image["Healthcheck"][name].as_u64().unwrap() / 1_000_000_000;
    let expected = json!({
        "test": image["Healthcheck"]["Test"],
        "interval": format!("{}s", nanoseconds("Interval")),
        "timeout": format!("{}s", nanoseconds("Timeout")),
        "retries": image["Healthcheck"]["Retries"],
        "start_period": format!("{}m", nanoseconds("StartPeriod") / 60),
    });
    for kind in KINDS {
        assert_eq!(host_service(kind)["healthcheck"], expected, "{kind}");
    }
}

#[test]
fn strix_has_what_engines_on_the_gpu_need() {
    let service = host_service("strix");
    let expected = json!({
        "devices": ["/dev/kfd", "/dev/dri"],
        "shm_size": "16gb",
        "init": true,
        "ulimits": { "memlock": -1, "nofile": 65536 },
        "security_opt": ["seccomp=unconfined", "no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "volumes": [
            "./config:/etc/pointsman:ro",
            "${MODELS:?set MODELS in .env}:/models:ro",
            "state:/var/lib/pointsman",
            "cache:/var/cache/pointsman",
        ],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(service[key], *value, "{key}");
    }
    let ports = service["ports"].as_array().unwrap();
    assert!(ports.contains(&json!("127.0.0.1:11434:8000")), "{ports:?}");
    // Names of groups are those of the image, in which they have other numbers or are missing.
    let variables = fs::read_to_string(folder("strix").join("example.env")).unwrap();
    for group in service["group_add"].as_array().unwrap() {
        let name = group.as_str().unwrap().trim_start_matches("${").split(':').next().unwrap();
        let line = variables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let number: u32 = line.unwrap_or_else(|| panic!("{name} is not set")).parse().unwrap();
        assert!(number > 0, "{name}");
    }
}

/// Every server that the configuration names is a service, on the port where it listens.
#[test]
fn external_engines_are_services() {
    for kind in KINDS {
        let config: toml::Table = config(kind).parse().unwrap();
        let services = services(kind);
        let lanes = config["lanes"].as_array().unwrap();
        let urls = lanes.iter().filter_map(|lane| lane["engine"].get("url"));
        let mut count = 0;
        for url in urls {
            let address = url.as_str().unwrap().strip_prefix("http://").unwrap();
            let (name, port) = address.strip_suffix("/v1").unwrap().split_once(':').unwrap();
            assert_eq!(services[name]["environment"]["LLAMA_ARG_PORT"], port, "{kind}: {name}");
            count += 1;
        }
        assert!(count > 0, "{kind}");
    }
}

/// A process that ends with the test.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have exited already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn development_serves_with_the_engine_of_its_other_service() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Command::new(FAKE_ENGINE);
    engine.args(["--port", "0", "--alias", "smol"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut engine = Engine(engine.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(engine.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (_, port) = line.trim().rsplit_once(':').unwrap();
    let config = config("development")
        .replace("llama:8080", &format!("127.0.0.1:{port}"))
        .replace("/usr/share/pointsman/policies", &root().join("policies").display().to_string())
        .replace("/var/lib/pointsman", &dir.path().display().to_string());
    let host = Host::start(&program(FAKE_ENGINE), &config);
    host.wait_for_lane("smol", "ready");
    let body = chat("auto", json!({ "max_tokens": 2 }));
    let response = post(host.port, "/v1/chat/completions", &body);
    assert_eq!(response.status, 200, "{}", response.text());
    host.stop();
}
