//! The unit of systemd without a systemd: users and directories are made in a root of its own, and
//! `confine.py` starts the host there with the restrictions of the unit.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{descendants_of, is_alive, program, root, send_signal};
use pointsman_tests::log::{self, LogEvent};
use pointsman_tests::{WAIT_TIMEOUT, wait_until};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::FAKE_ENGINE;

/// The engine compiles policies before it serves, as engines compile kernels: with a cache of its
/// own, so that it has to.
const CONFIG: &str = r#"
server.listen = "127.0.0.1:0"
log.format = "json"
[state]
dir = "/var/lib/pointsman/state"
[policies]
dir = "policies"
[[policies.chain]]
name = "cortex"
[[lanes]]
name = "orchestrator"
models = ["orchestrator", "auto"]
[lanes.engine]
driver = "llama-cpp"
env = { XDG_CACHE_HOME = "/tmp/cache" }
command = [
    "sh", "-c", "pointsman check /etc/pointsman/pointsman.toml && exec llama-server \"$@\"",
    "sh", "--port", "{port}", "--alias", "{lane}",
]
"#;

/// Returns a file of the packages.
fn packaging(name: &str) -> PathBuf {
    root().join("host/packaging").join(name)
}

/// Runs a program to its end.
///
/// # Panics
/// If it fails, or prints an error.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A root directory with the users and directories of the packages.
struct ServiceRoot {
    dir: TempDir,
}

impl ServiceRoot {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, folder) in [("sysusers", "sysusers.d"), ("tmpfiles", "tmpfiles.d")] {
            let folder = dir.path().join("usr/lib").join(folder);
            fs::create_dir_all(&folder).unwrap();
            let file = packaging(&format!("pointsman.{name}"));
            fs::copy(file, folder.join("pointsman.conf")).unwrap();
        }
        fs::create_dir(dir.path().join("etc")).unwrap();
        let root = format!("--root={}", dir.path().display());
        run(Command::new("systemd-sysusers").arg(&root));
        // The second one finds all as it was.
        for _ in 0..2 {
            run(Command::new("systemd-tmpfiles").arg("--create").arg(&root));
        }
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Returns the numbers of the users or groups in a file.
    fn ids(&self, file: &str) -> BTreeMap<String, u32> {
        let text = fs::read_to_string(self.path("etc").join(file)).unwrap();
        let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        fields.map(|fields| (fields[0].to_owned(), fields[2].parse().unwrap())).collect()
    }

    /// Writes the configuration and a policy.
    fn configure(&self) {
        let etc = self.path("etc/pointsman");
        fs::write(etc.join("pointsman.toml"), CONFIG).unwrap();
        let policy = root().join("policies/cortex");
        run(Command::new("cp").arg("-r").arg(policy).arg(etc.join("policies")));
    }

    /// Returns a command of the unit, confined.
    fn command(&self, unit: &Path, key: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "python3"]);
        command.arg(root().join("tests/packages/confine.py")).arg(unit).arg(self.dir.path());
        command.arg(format!("pointsman={}", program(FAKE_ENGINE).display()));
        command.arg(format!("llama-server={FAKE_ENGINE}")).arg(key);
        command.env("NOTIFY_SOCKET", "/run/notify").stdin(Stdio::null());
        command
    }
}

/// A service that was started by hand.
struct Service {
    root: ServiceRoot,
    unit: PathBuf,
    child: Child,
    notified: UnixDatagram,
}

impl Service {
    /// Starts the unit with further lines in its section `[Service]`.
    fn start(more: &str) -> Self {
        let root = ServiceRoot::new();
        root.configure();
        let text = fs::read_to_string(packaging("pointsman.service")).unwrap();
        let unit = root.path("pointsman.service");
        fs::write(&unit, text.replace("[Install]", &format!("{more}\n[Install]"))).unwrap();
        fs::create_dir(root.path("run")).unwrap();
        let socket = root.path("run/notify");
        let notified = UnixDatagram::bind(&socket).unwrap();
        notified.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        let log = fs::File::create(root.path("log")).unwrap();
        let child = root.command(&unit, "ExecStart").stderr(log).spawn().unwrap();
        Self { root, unit, child, notified }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.path("log")).unwrap()
    }

    /// Waits for an event that has all of these fields.
    fn wait_for_event(&self, name: &str, fields: &[(&str, &str)]) -> LogEvent {
        let mut found = None;
        wait_until(&format!("the log has {name} {fields:?}"), || {
            let events = log::parse(&self.log());
            found = events.into_iter().find(|event| event.matches(name, fields));
            found.is_some()
        });
        found.unwrap()
    }

    fn port(&self) -> u16 {
        let event = self.wait_for_event("listening", &[]);
        event.text("address").rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Receives notifications until one has the field, and returns its value.
    fn wait_for_notification(&self, field: &str) -> String {
        loop {
            let mut buffer = [0; 1000];
            let length = self.notified.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if let Some(value) = text.lines().find_map(|line| line.strip_prefix(field)) {
                return value.to_owned();
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of the service\n{}", self.log());
        }
        let processes = descendants_of(self.child.id());
        // They may have exited already.
        self.child.kill().ok();
        self.child.wait().ok();
        for pid in processes.into_iter().filter(|pid| is_alive(*pid)) {
            send_signal(pid, Signal::KILL);
        }
    }
}

/// Returns a line of a process's status.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
}

#[test]
fn users_and_directories_are_made() {
    let made = ServiceRoot::new();
    let (users, groups) = (made.ids("passwd"), made.ids("group"));
    let user = users["pointsman"];
    let group = fs::read_to_string(made.path("etc/group")).unwrap();
    for name in ["video", "render"] {
        let member = |line: &str| line.starts_with(name) && line.ends_with(":pointsman");
        assert!(group.lines().any(member), "{group}");
    }
    for (path, owner, mode) in [
        ("etc/pointsman", 0, 0o750),
        ("etc/pointsman/policies", 0, 0o755),
        ("var/lib/pointsman", user, 0o700),
        ("var/cache/pointsman", user, 0o700),
    ] {
        let found = fs::metadata(made.path(path)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (owner, mode), "{path}");
    }
    assert_eq!(fs::metadata(made.path("etc/pointsman")).unwrap().gid(), groups["pointsman"]);
    // The mode of a file with secrets is corrected.
    let secrets = made.path("etc/pointsman/environment");
    fs::write(&secrets, "KEY=1\n").unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).unwrap();
    let root = format!("--root={}", made.dir.path().display());
    run(Command::new("systemd-tmpfiles").arg("--create").arg(root));
    assert_eq!(fs::metadata(&secrets).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn policies_and_engines_work_under_the_restrictions() {
    let mut service = Service::start("");
    service.wait_for_notification("READY=1");
    let port = service.port();
    service.wait_for_event("engine_ready", &[]);
    let ask = || post(port, "/v1/chat/completions", &chat("auto", json!({})));
    let response = ask();
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.header("x-pointsman-policy").unwrap().starts_with("cortex@"));

    // The restrictions hold for the host and for its engine.
    let host = service.child.id();
    let engine = service.wait_for_event("engine_starting", &[]).text("pid").parse().unwrap();
    let user = service.root.ids("passwd")["pointsman"].to_string();
    for pid in [host, engine] {
        assert_eq!(status(pid, "NoNewPrivs:"), "1");
        assert_eq!(status(pid, "Seccomp:"), "2");
        assert_eq!(status(pid, "CapBnd:"), "0000000000000000");
        assert!(status(pid, "Uid:").split_whitespace().all(|id| id == user));
    }

    // `systemctl reload`: the next process serves with the same engine.
    run(&mut service.root.command(&service.unit, "ExecReload"));
    let next: u32 = service.wait_for_notification("MAINPID=").parse().unwrap();
    assert_ne!(next, host);
    assert!(service.child.wait().unwrap().success());
    let response = ask();
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(is_alive(engine));

    send_signal(next, Signal::TERM);
    wait_until("host and engine have ended", || !is_alive(next) && !is_alive(engine));
}

/// Shows that the restrictions are in force, and why the unit leaves this one out.
#[test]
fn memory_deny_write_execute_would_stop_policies_and_engines() {
    let service = Service::start("MemoryDenyWriteExecute=yes");
    service.wait_for_event("policy_load_failed", &[("policy", "cortex")]);
    service.wait_for_event("engine_load_failed", &[("reason", "exit-78")]);
}
