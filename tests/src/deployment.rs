//! A running host whose policies and configuration change, and the operator of that host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Response, post, send};
use crate::guests::{Guest, replace_file};
use crate::host::{Host, program, with_json_log};
use crate::wait_until;

/// The admin API of these hosts, with a socket and a port.
const ADMIN: &str =
    "[admin]\nsocket = \"admin.sock\"\nlisten = \"127.0.0.1:0\"\ntoken-env = \"ADMIN_TOKEN\"\n";
const TOKEN: &str = "t0ken-0123456789";

/// A running host with policies in a directory of its own.
#[derive(Debug)]
pub struct Deployment {
    pub host: Host,
    /// The port of the admin API.
    pub admin_port: u16,
    program: PathBuf,
}

/// Returns the `[[policies.chain]]` tables of these policies, each with the keys of `more`.
/// Unless `more` says otherwise, a new version decides about all requests at once.
pub fn chain(names: &[&str], more: &str) -> String {
    let probation = match more.contains("probation") {
        true => "",
        false => "probation = { control = \"0%\" }",
    };
    let entry = |name: &&str| format!("[[policies.chain]]\nname = {name:?}\n{more}\n{probation}\n");
    names.iter().map(entry).collect()
}

/// Returns a directory that has these policies below `policies`.
pub fn policy_dir(guests: &[Guest]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for guest in guests {
        guest.write_to(&dir.path().join("policies"));
    }
    dir
}

impl Deployment {
    /// Starts a host in a directory. `config` is the configuration without `[admin]`.
    pub fn start(fake_engine: &str, dir: TempDir, config: &str) -> Self {
        let program = program(fake_engine);
        let host = Host::start_in(&program, dir, &with_admin(config), &[("ADMIN_TOKEN", TOKEN)])
            .wait_until_ready();
        let admin_port = admin_port(&host);
        Self { host, admin_port, program }
    }

    /// Returns the directory of the policies.
    pub fn policies(&self) -> PathBuf {
        self.host.dir.path().join("policies")
    }

    /// Writes a policy into its directory.
    pub fn write_policy(&self, guest: &Guest) {
        guest.write_to(&self.policies());
    }

    /// Writes a policy into its directory and reloads; returns the status of the policy.
    pub fn deploy(&self, guest: &Guest) -> Value {
        self.write_policy(guest);
        self.reload();
        self.policy(&guest.name)
    }

    /// Replaces the configuration file. `config` is the configuration without `[admin]`.
    pub fn write_config(&self, config: &str) {
        let file = self.host.dir.path().join("pointsman.toml");
        replace_file(&file, with_json_log(&with_admin(config)).as_bytes());
    }

    /// Reloads the configuration and the policies.
    pub fn reload(&self) -> Value {
        let response = self.admin("POST", "/reload", "");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Returns the status of a policy.
    pub fn policy(&self, name: &str) -> Value {
        let response = self.admin("GET", &format!("/policies/{name}"), "");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Sends a request to the admin API.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Response {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        send(self.admin_port, method, path, &headers, body.as_bytes())
    }

    /// Waits until the status of a policy meets a condition; returns that status.
    pub fn wait_for_policy(
        &self,
        what: &str,
        name: &str,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        wait_until(what, || {
            last = self.policy(name);
            condition(&last)
        });
        last
    }

    /// Waits until responses have this reason; returns the policy and version that gave it.
    pub fn wait_for_reason(&self, model: &str, reason: &str) -> String {
        let mut policy = String::new();
        wait_until(&format!("the reason of responses is `{reason}`"), || {
            let response = self.send_chat(model);
            assert_eq!(response.status, 200, "{}", response.text());
            policy = response.header("x-pointsman-policy").unwrap_or_default().to_owned();
            response.header("x-pointsman-reason") == Some(reason)
        });
        policy
    }

    /// Sends one chat request.
    pub fn send_chat(&self, model: &str) -> Response {
        post(
            self.host.port,
            "/v1/chat/completions",
            &crate::client::chat(model, serde_json::json!({ "max_tokens": 2 })),
        )
    }

    /// Sends one chat request, which must succeed, and returns the reason of the decision.
    pub fn reason(&self, model: &str) -> String {
        let response = self.send_chat(model);
        assert_eq!(response.status, 200, "{}", response.text());
        response.header("x-pointsman-reason").unwrap_or_default().to_owned()
    }

    /// Runs `pointsman policy …`; returns exit code, standard output and standard error.
    pub fn policy_command(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(&self.program);
        command
            .arg("policy")
            .args(arguments)
            .arg("--config")
            .arg(self.host.dir.path().join("pointsman.toml"));
        let output = command.env("ADMIN_TOKEN", TOKEN).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Kills the host if it is running, and starts the next one in the same directory.
    pub fn restart(self, fake_engine: &str, config: &str) -> Self {
        Self::start(fake_engine, self.host.into_dir(), config)
    }
}

fn with_admin(config: &str) -> String {
    format!("{ADMIN}{config}")
}

/// Returns the port of the admin API, which the host writes to its log.
///
/// # Panics
/// If the log does not have a valid address.
pub fn admin_port(host: &Host) -> u16 {
    host.wait_for_event("admin_listening", &[]);
    // The socket has an event of its own, without an address.
    let events = host.events("admin_listening", &[]);
    let addresses = events.iter().map(|event| event.text("address"));
    let mut ports = addresses.filter_map(|address| address.rsplit(':').next()?.parse().ok());
    ports.next().unwrap_or_else(|| panic!("no address in {events:?}"))
}

/// Makes `link` point to `target` atomically, as Kubernetes does with `..data`.
pub fn replace_symlink(link: &Path, target: &Path) {
    let new = PathBuf::from(format!("{}.new", link.display()));
    std::os::unix::fs::symlink(target, &new).unwrap();
    std::fs::rename(&new, link).unwrap();
}
