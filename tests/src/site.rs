//! A host whose policies change while it serves, and its operator.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Reply, post, send};
use crate::guests::Guest;
use crate::host::{Host, program};
use crate::wait_until;

/// The operators' entrance of these hosts.
const ADMIN: &str =
    "[admin]\nsocket = \"admin.sock\"\nlisten = \"127.0.0.1:0\"\ntoken-env = \"ADMIN_TOKEN\"\n";
const TOKEN: &str = "t0ken";

/// A running host with policies.
#[derive(Debug)]
pub struct Site {
    pub host: Host,
    pub admin: u16,
    program: PathBuf,
}

/// `[[policies.chain]]` with these, and `more` for each.
pub fn chain(names: &[&str], more: &str) -> String {
    names.iter().map(|name| format!("[[policies.chain]]\nname = {name:?}\n{more}\n")).collect()
}

/// A folder with these policies.
pub fn folder(guests: &[Guest]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for guest in guests {
        guest.put(&dir.path().join("policies"));
    }
    dir
}

impl Site {
    /// Start a host in a folder. `config` is all of the configuration but `[admin]`.
    pub fn start(fake_engine: &str, dir: TempDir, config: &str) -> Self {
        let program = program(fake_engine);
        let host = Host::start_in(&program, dir, &whole(config), &[("ADMIN_TOKEN", TOKEN)]).ready();
        let log = host.log();
        let said = log.split_once("operators are listened for on http://127.0.0.1:");
        let admin = said.and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok());
        Self {
            host,
            admin: admin.expect("the port of the operators' entrance in the log"),
            program,
        }
    }

    pub fn policies(&self) -> PathBuf {
        self.host.dir.path().join("policies")
    }

    /// Put a policy into its folder.
    pub fn put(&self, guest: &Guest) {
        guest.put(&self.policies());
    }

    /// Put a policy into its folder, and have the host take it up now. What the host then says of it.
    pub fn take_up(&self, guest: &Guest) -> Value {
        self.put(guest);
        self.reload();
        self.policy(&guest.name)
    }

    /// Write another configuration.
    pub fn configure(&self, config: &str) {
        crate::guests::swap(&self.host.dir.path().join("pointsman.toml"), whole(config).as_bytes());
    }

    /// Have the host look for changes now.
    pub fn reload(&self) -> Value {
        let reply = self.admin("POST", "/reload", "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// What there is to know of a policy.
    pub fn policy(&self, name: &str) -> Value {
        let reply = self.admin("GET", &format!("/policies/{name}"), "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Ask the operators' entrance.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Reply {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        send(self.admin, method, path, &headers, body.as_bytes())
    }

    /// Wait until a policy is as `is` says. How it is then.
    pub fn wait_for(&self, what: &str, name: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_until(what, || {
            last = self.policy(name);
            is(&last)
        });
        last
    }

    /// Wait until a policy is in service with that reason; the version that it is.
    pub fn wait_for_why(&self, model: &str, why: &str) -> String {
        let mut by = String::new();
        wait_until(&format!("the answers say `{why}`"), || {
            let reply = self.ask(model);
            assert_eq!(reply.status, 200, "{}", reply.text());
            by = reply.header("x-pointsman-policy").unwrap_or_default().to_owned();
            reply.header("x-pointsman-reason") == Some(why)
        });
        by
    }

    /// One chat request.
    pub fn ask(&self, model: &str) -> Reply {
        post(
            self.host.port,
            "/v1/chat/completions",
            &crate::client::chat(model, serde_json::json!({ "max_tokens": 2 })),
        )
    }

    /// The reason of the next answer.
    pub fn why(&self, model: &str) -> String {
        let reply = self.ask(model);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.header("x-pointsman-reason").unwrap_or_default().to_owned()
    }

    /// Run `pointsman policy …`: exit code, standard output and standard error.
    pub fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
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

    /// Kill the host if it still runs, and start the next one in its folder.
    pub fn again(self, fake_engine: &str, config: &str) -> Self {
        Self::start(fake_engine, self.host.left(), config)
    }
}

fn whole(config: &str) -> String {
    format!("{ADMIN}{config}")
}

/// Make `link` point to `target` in one step, as Kubernetes does with `..data`.
pub fn point(link: &Path, target: &Path) {
    let new = PathBuf::from(format!("{}.new", link.display()));
    std::os::unix::fs::symlink(target, &new).unwrap();
    std::fs::rename(&new, link).unwrap();
}
