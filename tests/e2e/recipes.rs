//! The recipes: folders of `examples/` with a configuration and a page. Each is checked, and served
//! as it is in a network of its own, with fake programs in place of the engines' first on PATH.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program, root};
use pointsman_xtask::setup::namespace_command;
use serde_json::json;
use toml::Table;

use crate::FAKE_ENGINE;
use crate::groups::FakeMachine;

/// Set for the test that runs in the namespaces.
const INSIDE: &str = "POINTSMAN_TEST_RECIPES";
const NAME: &str = "recipes::every_lane_answers";
/// What the engines' programs do: each finds the port where the real one looks for it.
const FAKES: [(&str, &str); 4] = [
    ("llama-server", r#"exec "$FAKE" "$@""#),
    (
        "podman",
        // After `run` and its options, which are one word each, come the image and its command.
        r#"[ "$1" = run ] || exit 125
shift
while [ "${1#--}" != "$1" ]; do shift; done
shift
[ "$1" = llama-server ] && shift
exec "$FAKE" "$@""#,
    ),
    (
        "ollama",
        r#"[ "$1" = serve ] || exit 1
exec "$FAKE" --port "${OLLAMA_HOST##*:}" --alias ollama"#,
    ),
    (
        "flm",
        r#"[ "$1" = serve ] || exit 1
model=$2
while [ "$1" != --port ]; do shift; done
exec "$FAKE" --port "$2" --alias "$model""#,
    ),
];
const GIB: u64 = 1 << 30;

/// A folder of `examples/` with a configuration.
struct Recipe {
    dir: PathBuf,
    config: Table,
}

impl Recipe {
    /// Returns all recipes.
    fn all() -> Vec<Self> {
        let entries = fs::read_dir(root().join("examples")).unwrap();
        let dirs = entries.map(|entry| entry.unwrap().path());
        let dirs = dirs.filter(|dir| dir.join("pointsman.toml").exists());
        let mut found: Vec<Self> = dirs
            .map(|dir| {
                let text = fs::read_to_string(dir.join("pointsman.toml")).unwrap();
                Self { dir, config: text.parse().unwrap() }
            })
            .collect();
        found.sort_by(|a, b| a.dir.cmp(&b.dir));
        assert!(found.len() >= 5, "{} recipes", found.len());
        found
    }

    fn name(&self) -> &str {
        self.dir.file_name().unwrap().to_str().unwrap()
    }

    fn lanes(&self) -> Vec<&Table> {
        let lanes = self.config["lanes"].as_array().unwrap();
        lanes.iter().map(|lane| lane.as_table().unwrap()).collect()
    }

    /// Returns the ports of servers that the host does not start.
    fn external_ports(&self) -> Vec<String> {
        let engines = self.lanes().into_iter().map(|lane| &lane["engine"]);
        let urls = engines.filter_map(|engine| engine.get("url")?.as_str());
        let mut ports: Vec<String> = urls
            .map(|url| url.strip_prefix("http://127.0.0.1:").unwrap())
            .map(|rest| rest.split('/').next().unwrap().to_owned())
            .collect();
        ports.dedup();
        ports
    }

    /// Serves the recipe, and asks each of its lanes.
    fn serve(&self) {
        println!("{}", self.name());
        let machine = FakeMachine::new(128 * GIB, 0);
        let ports = self.external_ports();
        let _servers: Vec<Server> = ports.iter().map(|port| Server::start(port)).collect();
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(self.dir.join("pointsman.toml")).unwrap();
        let host = Host::start_as_configured(&machine.program(), dir, &text).wait_until_ready();
        let listen = self.config["server"]["listen"].as_str().unwrap();
        assert_eq!(listen, format!("127.0.0.1:{}", host.port));
        for lane in self.lanes() {
            let name = lane["name"].as_str().unwrap();
            let response = post(host.port, "/v1/chat/completions", &chat(name, json!({})));
            assert_eq!(response.status, 200, "{name}: {}", response.text());
            assert_eq!(response.header("x-pointsman-lane"), Some(name));
        }
        host.assert_no_request_lost();
        host.stop();
    }
}

/// A server that runs before the host.
struct Server(Child);

impl Server {
    fn start(port: &str) -> Self {
        let mut command = Command::new(FAKE_ENGINE);
        command.args(["--port", port, "--alias", "external"]).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have exited already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn recipes_are_valid() {
    for recipe in Recipe::all() {
        let file = recipe.dir.join("pointsman.toml");
        let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{}: {text}", recipe.name());
        let page = fs::read_to_string(recipe.dir.join("README.md")).unwrap();
        for command in ["check", "serve"] {
            let wanted = format!("pointsman {command} examples/{}/pointsman.toml", recipe.name());
            assert!(page.contains(&wanted), "{}: {wanted}", recipe.name());
        }
    }
}

/// The unit of a user is valid for the service manager of users.
#[test]
fn units_of_recipes_are_valid() {
    let unit = root().join("examples/podman/pointsman.service");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("pointsman.service");
    let text = fs::read_to_string(unit).unwrap().replace("/usr/local/bin/pointsman", "/bin/true");
    fs::write(&copy, text).unwrap();
    let mut command = Command::new("systemd-analyze");
    // It looks for the units of a user where they are at run time.
    command.args(["--user", "verify"]).arg(&copy).env("XDG_RUNTIME_DIR", dir.path());
    let output = command.output().expect("systemd-analyze is missing");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}

#[test]
fn every_lane_answers() {
    if std::env::var_os(INSIDE).is_some() {
        return Recipe::all().iter().for_each(Recipe::serve);
    }
    let Some(mut command) = namespace_command() else {
        println!("SKIPPED: {NAME}: namespaces of the network are not permitted");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (name, script) in FAKES {
        write_program(&dir.path().join(name), script);
    }
    let path = std::env::var("PATH").unwrap();
    command.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]);
    command.env(INSIDE, "1").env("PATH", format!("{}:{path}", dir.path().display()));
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}; see its output above");
}

fn write_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\nFAKE='{FAKE_ENGINE}'\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
