//! Policies in a real registry: Debian's `docker-registry`, started on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::send;
use pointsman_tests::deployment::{Deployment, chain};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{fake_lane, program};
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;

/// A registry, which is killed when the value is dropped.
struct Registry {
    dir: TempDir,
    port: u16,
    process: Child,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Self::launch(dir.path(), 0);
        let log = dir.path().join("log");
        let port = || {
            let text = fs::read_to_string(&log).ok()?;
            let (_, after) = text.split_once("listening on 127.0.0.1:")?;
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        wait_until("the registry listens", || port().is_some());
        Self { port: port().unwrap(), process, dir }
    }

    fn launch(dir: &Path, port: u16) -> Child {
        let config = dir.join("config.yml");
        let storage = dir.join("storage").display().to_string();
        let text = json!({
            "version": "0.1",
            "log": { "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": format!("127.0.0.1:{port}") },
        });
        // JSON is YAML.
        fs::write(&config, text.to_string()).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same address, with what it has stored.
    fn restart(&mut self) {
        self.process = Self::launch(self.dir.path(), self.port);
        let port = self.port;
        wait_until("the registry listens again", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    fn reference(&self, version: &str) -> String {
        format!("oci://127.0.0.1:{}/team/p{version}", self.port)
    }

    /// Pushes a policy with a tag; returns its digest.
    fn push(&self, guest: &Guest, tag: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        guest.write_to(dir.path());
        self.push_folder(&dir.path().join("p"), tag)
    }

    fn push_folder(&self, folder: &Path, tag: &str) -> String {
        let (code, out) = policy(&[
            "push",
            folder.to_str().unwrap(),
            &self.reference(&format!(":{tag}")),
            "--json",
        ]);
        assert_eq!(code, 0, "{out}");
        let pushed: Value = serde_json::from_str(&out).unwrap();
        pushed["digest"].as_str().unwrap().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been killed already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Runs `pointsman policy …`; returns the exit code and the output, standard error last.
fn policy(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(program(FAKE_ENGINE))
        .arg("policy")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn version(reason: &str) -> Guest {
    Guest::new("p").reason(reason)
}

/// Returns a configuration whose policy `p` comes from the registry.
fn config(source: &str, more: &str) -> String {
    let lane = fake_lane(FAKE_ENGINE, "a", &["auto"], "", &[]);
    chain(&["p"], &format!("source = \"{source}\"\n{more}")) + &lane
}

fn start(config: &str) -> Deployment {
    Deployment::start(FAKE_ENGINE, tempfile::tempdir().unwrap(), config)
}

#[test]
fn policy_is_pushed_pulled_and_verified() {
    let registry = Registry::start();
    let digest = registry.push(&version("one"), "1");
    assert_eq!(registry.push(&version("one"), "same"), digest, "equal files, equal digests");
    // The form of components that other tools read: one layer, and their config.
    let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = send(registry.port, "GET", "/v2/team/p/manifests/1", &accept, b"").json();
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = send(registry.port, "GET", &format!("/v2/team/p/blobs/{config}"), &[], b"").json();
    assert_eq!(config["layerDigests"], json!([manifest["layers"][0]["digest"]]));
    let exports = config["component"]["exports"].as_array().unwrap();
    assert!(exports.iter().any(|name| name.as_str().unwrap().contains("on-request")), "{config}");

    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pulled");
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (code, out) = policy(&["pull", &registry.reference(":1"), &text(&folder)]);
    assert!(code == 0 && out.contains(&digest), "{out}");
    version("one").write_to(dir.path());
    for file in ["policy.toml", "policy.wasm"] {
        let (pushed, pulled) = (dir.path().join("p").join(file), folder.join(file));
        assert_eq!(fs::read(pushed).unwrap(), fs::read(pulled).unwrap(), "{file}");
    }
    let (code, _) = policy(&["pull", &registry.reference(":1"), &text(&folder)]);
    assert_eq!(code, 1, "the folder exists");

    let pinned = registry.reference(&format!("@{digest}"));
    let (code, out) = policy(&["verify", &pinned, "--json"]);
    assert_eq!(code, 0, "{out}");
    let verified: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&verified["digest"], &verified["name"]), (&json!(digest), &json!("p")));
}

#[test]
fn policy_that_a_host_refuses_is_not_verified() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    version("one").write_to(dir.path());
    fs::write(dir.path().join("p/cases.jsonl"), "not a case\n").unwrap();
    registry.push_folder(&dir.path().join("p"), "invalid");
    let (code, out) = policy(&["verify", &registry.reference(":invalid")]);
    assert!(code != 0 && out.contains("case_invalid"), "{out}");
    let (code, out) = policy(&["verify", &registry.reference(":missing")]);
    assert!(code == 1 && out.contains("[artifact_missing]"), "{out}");
}

#[test]
fn pinned_policy_is_served_from_the_cache_without_the_registry() {
    let mut registry = Registry::start();
    let digest = registry.push(&version("one"), "1");
    let config = config(&registry.reference(&format!("@{digest}")), "");
    let deployment = start(&config);
    assert_eq!(deployment.reason("auto"), "one");
    // The tag has no effect.
    registry.push(&version("two"), "1");
    deployment.reload();
    assert_eq!(deployment.reason("auto"), "one");
    registry.kill();
    let deployment = deployment.restart(FAKE_ENGINE, &config);
    assert_eq!(deployment.reason("auto"), "one");

    // Without a cache, the policy is missing, and the host serves without it.
    let other = start(&config);
    let status = other.policy("p");
    assert_eq!(status["error"]["code"], "registry_unreachable", "{status}");
    assert_eq!(other.send_chat("auto").status, 200);
    registry.restart();
    other.reload();
    assert_eq!(other.reason("auto"), "one");
}

#[test]
fn followed_tag_is_rolled_out_and_back_on_each_host() {
    let mut registry = Registry::start();
    registry.push(&version("one"), "stable");
    let follow = "follow = true\nfollow-interval = \"1s\"";
    let config = config(&registry.reference(":stable"), follow);
    let hosts = [start(&config), start(&config)];
    hosts.iter().for_each(|host| assert_eq!(host.reason("auto"), "one"));
    registry.push(&version("two"), "stable");
    hosts.iter().for_each(|host| drop(host.wait_for_reason("auto", "two")));

    let loads = hosts.each_ref().map(|host| LoadGenerator::start(host.host.port, 2, "auto"));
    registry.push(&version("bad").code("(ADVISE unreachable)"), "stable");
    for host in &hosts {
        host.host.wait_for_event("policy_rolled_back", &[("policy", "p")]);
        let status = host.wait_for_policy("the version before is active", "p", |policy| {
            policy["error"]["code"] == "rolled_back"
                || policy["error"]["code"] == "version_rejected"
        });
        assert_eq!(status["rejected"].as_array().map(Vec::len), Some(1), "{status}");
        host.wait_for_reason("auto", "two");
    }
    for load in loads {
        assert!(load.stop().keys().all(|seen| seen.status == 200));
    }
    // The tag still leads to it, and it is not tried again.
    let looks = || hosts.each_ref().map(|host| host.host.events("policy_pulled", &[]).len());
    let before = looks();
    registry.push(&version("three"), "stable");
    hosts.iter().for_each(|host| drop(host.wait_for_reason("auto", "three")));
    assert_eq!(looks(), before.map(|count| count + 1));
    for host in &hosts {
        assert_eq!(host.host.events("policy_rolled_back", &[]).len(), 1);
    }

    registry.kill();
    for host in &hosts {
        host.host.wait_for_event("policy_source_unavailable", &[("code", "registry_unreachable")]);
        wait_until("the metric says so", || {
            host.host.metric("pointsman_policy_source_up", "policy=\"p\"") == 0.0
        });
        assert_eq!(host.reason("auto"), "three");
    }
    let [first, second] = hosts;
    let first = first.restart(FAKE_ENGINE, &config);
    assert_eq!(first.reason("auto"), "three");
    registry.restart();
    second.host.wait_for_event("policy_source_available", &[("policy", "p")]);
    registry.push(&version("four"), "stable");
    [first, second].iter().for_each(|host| drop(host.wait_for_reason("auto", "four")));
}
