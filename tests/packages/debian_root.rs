//! A Debian system in a folder, as a new machine has it: packages are installed in it, and services
//! started as systemd does, which does not run there.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::{descendants_of, fake_lane, send_signal};
use pointsman_tests::{WAIT_TIMEOUT, wait_until};
use pointsman_xtask::command::cache_dir;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::FAKE_ENGINE;
use crate::artifacts::output;

/// Where the fake engine is in the system.
const ENGINE: &str = "/opt/fake-engine";
const CONFIG: &str = "etc/pointsman/pointsman.toml";

/// A system of its own, which is deleted when dropped.
pub(crate) struct DebianRoot {
    dir: TempDir,
    port: u16,
}

/// The running service. Dropping it kills the host and its engines.
pub(crate) struct Service {
    child: Child,
    port: u16,
    socket: UnixDatagram,
}

impl DebianRoot {
    /// Copies a system that `debootstrap` has made, and keeps in the cache: only Debian's essential
    /// packages and systemd.
    pub(crate) fn new() -> Self {
        let template = cache_dir().unwrap().join("debian-root");
        // Only a complete one has it: it is renamed when it is ready.
        if !template.exists() {
            let new = template.with_extension("new");
            if new.exists() {
                fs::remove_dir_all(&new).unwrap();
            }
            let mut debootstrap = Command::new("debootstrap");
            debootstrap.args(["--variant=minbase", "--include=systemd", "bookworm"]);
            output(debootstrap.arg(&new));
            fs::rename(&new, &template).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&template).arg(dir.path()));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let root = Self { dir, port: free.local_addr().unwrap().port() };
        fs::copy(FAKE_ENGINE, root.path("opt/fake-engine")).unwrap();
        root
    }

    /// Returns the path of a file of the system.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("debian-root").join(file)
    }

    /// Copies a file to the home of root, where the commands of the pages are run.
    pub(crate) fn copy(&self, file: &Path) {
        fs::copy(file, self.path("root").join(file.file_name().unwrap())).unwrap();
    }

    /// Runs a shell command in the system as root. Returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub(crate) fn run(&self, script: &str) -> String {
        let mut command = self.enter();
        command.args(["sh", "-ec", &format!("cd /root\n{script}")]);
        output(&mut command)
    }

    /// Runs the commands of a page, except those that need a running service.
    pub(crate) fn walk(&self, commands: &[String]) {
        let is_offline = |command: &&String| {
            !["curl ", "journalctl ", "systemctl status"]
                .iter()
                .any(|start| command.starts_with(start))
        };
        let script: Vec<&str> = commands.iter().filter(is_offline).map(String::as_str).collect();
        // `start` does nothing without systemd, but `--now` fails.
        self.run(&script.join("\n").replace("enable --now", "enable"));
    }

    /// Replaces the lanes of the configuration by one with the fake engine, and starts the command
    /// of a unit, with its user and environment.
    pub(crate) fn start(&self, unit: &Path) -> Service {
        let lane = fake_lane(ENGINE, "a", &["a"], "", &[]);
        let installed = fs::read_to_string(self.path(CONFIG)).unwrap();
        assert!(installed.contains("127.0.0.1:8000"));
        let head = installed.split("[[lanes]]").next().unwrap();
        let head = head.replace("127.0.0.1:8000", &format!("127.0.0.1:{}", self.port));
        fs::write(self.path(CONFIG), format!("{head}{lane}")).unwrap();
        self.run("install -d -o pointsman -g pointsman -m 0750 /run/pointsman");

        let socket = UnixDatagram::bind(self.path("run/notify")).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        self.run("chown pointsman /run/notify");

        let unit = fs::read_to_string(unit).unwrap();
        let values = |key: &str| {
            let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            lines.flat_map(|line| line.split_whitespace().map(str::to_owned)).collect::<Vec<_>>()
        };
        let user = values("User").remove(0);
        let mut command = self.enter();
        command.args(["setpriv", "--reuid", &user, "--regid", &values("Group")[0]]);
        command.args(["--init-groups", "--no-new-privs", "--inh-caps=-all", "env", "-i"]);
        command.args(["PATH=/usr/local/bin:/usr/bin", "NOTIFY_SOCKET=/run/notify"]);
        command.args(values("Environment")).args(values("ExecStart"));
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let service = Service { child, port: self.port, socket };
        service.wait_for("READY=1");
        service
    }

    /// Returns a command that runs the program of its arguments in the system. It keeps its process
    /// id, and has a `/proc` that ends with it.
    fn enter(&self) -> Command {
        let root = self.path("");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg("mount -t proc proc \"$0/proc\"; exec chroot \"$0\" \"$@\"").arg(root);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        // Only links are changed; there is no systemd that could start a service.
        command.env("SYSTEMD_OFFLINE", "1");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

impl Service {
    /// Sends a request. Returns the status.
    pub(crate) fn ask(&self) -> u16 {
        wait_until("the lane is ready", || get(self.port, "/health").status == 200);
        post(self.port, "/v1/chat/completions", &chat("a", Value::Null)).status
    }

    /// Waits for a message to the service manager.
    pub(crate) fn wait_for(&self, field: &str) {
        loop {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).expect("a message of the host");
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|line| line == field) {
                return;
            }
        }
    }

    /// Stops the service as systemd does.
    pub(crate) fn stop(&mut self) {
        send_signal(self.child.id(), Signal::TERM);
        self.wait_for("STOPPING=1");
        let mut status = None;
        wait_until("the service exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{status:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let processes = descendants_of(self.child.id());
            self.child.kill().ok(); // it may have exited meanwhile
            self.child.wait().ok();
            for process in processes
                .into_iter()
                .filter_map(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
            {
                // It may have ended with the host.
                rustix::process::kill_process(process, Signal::KILL).ok();
            }
        }
    }
}
