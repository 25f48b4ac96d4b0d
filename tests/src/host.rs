//! The program under test, with its configuration, its log and its figures.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{get, post};
use crate::wait_until;

/// The project's folder.
pub fn root() -> PathBuf {
    // At run time: two clones may share a target directory, and so one binary of this.
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("run by cargo");
    Path::new(&manifest).parent().unwrap().to_owned()
}

/// A running host. Ended, with all its engines, when dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    pub port: u16,
    pub dir: TempDir,
    log: PathBuf,
    stopped: bool,
}

/// How large a host is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub resident: u64,
    pub maps: usize,
    pub threads: usize,
}

/// The program. `cargo xtask test` builds it; so does `cargo build`.
///
/// # Panics
/// If it has not been built.
pub fn program(fake_engine: &str) -> PathBuf {
    let program = Path::new(fake_engine).with_file_name("pointsman");
    assert!(
        program.exists(),
        "{} is missing; build it with: cargo build -p pointsman",
        program.display()
    );
    program
}

/// A lane with a fake engine: TOML for the configuration. `arguments` are those of the fake engine.
pub fn fake_lane(
    fake_engine: &str,
    name: &str,
    models: &[&str],
    more: &str,
    arguments: &[&str],
) -> String {
    let mut command = vec![fake_engine, "--port", "{port}", "--alias", "{lane}"];
    command.extend(arguments);
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = {models:?}\n{more}\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
         command = {}\nstop-grace = \"2s\"\nbackoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\n",
        json!(command)
    )
}

impl Host {
    /// Start with this configuration, and wait until it listens.
    pub fn start(program: &Path, config: &str) -> Self {
        Self::start_in(program, tempfile::tempdir().unwrap(), config, &[])
    }

    /// The same in a folder that is there already, with environment variables.
    pub fn start_in(program: &Path, dir: TempDir, config: &str, env: &[(&str, &str)]) -> Self {
        let file = dir.path().join("pointsman.toml");
        fs::write(&file, config).unwrap();
        let log = dir.path().join("log");
        let port_file = dir.path().join("port");
        let mut command = Command::new(program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "debug,hyper_util=info"])
            .arg(&file);
        command.arg("--port-file").arg(&port_file);
        command.env("XDG_STATE_HOME", dir.path().join("state")).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut host = Self { child: command.spawn().unwrap(), port: 0, dir, log, stopped: false };
        wait_until("the host listens", || {
            if let Some(status) = host.child.try_wait().unwrap() {
                panic!("the host ended: {status}\n{}", host.log());
            }
            port_file.exists()
        });
        host.port = fs::read_to_string(&port_file).unwrap().trim().parse().unwrap();
        host
    }

    /// Wait until all lanes serve, but for those that are loaded only when they are wanted.
    #[must_use]
    pub fn ready(self) -> Self {
        wait_until("all lanes serve", || {
            let status = self.status();
            let mut lanes = status["lanes"].as_array().unwrap().iter();
            lanes.all(|lane| lane["state"] == "ready" || lane["state"] == "unloaded")
        });
        self
    }

    /// Wait until a lane is in a state.
    pub fn wait_for(&self, lane: &str, state: &str) {
        wait_until(&format!("lane {lane} is {state}"), || self.lane(lane)["state"] == state);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn status(&self) -> Value {
        get(self.port, "/status").json()
    }

    /// What `/status` says of a lane.
    pub fn lane(&self, name: &str) -> Value {
        let status = self.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().find(|lane| lane["name"] == name).unwrap().clone()
    }

    /// Port of a lane's engine.
    pub fn engine_port(&self, lane: &str) -> u16 {
        self.lane(lane)["port"].as_u64().unwrap().try_into().unwrap()
    }

    /// Process id of a lane's engine.
    pub fn engine_pid(&self, lane: &str) -> u32 {
        self.lane(lane)["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Change how a lane's fake engine answers.
    pub fn script(&self, lane: &str, script: Value) {
        let reply = post(self.engine_port(lane), "/fake/script", &script);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// Sum of a metric over all label sets that contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = get(self.port, "/metrics").text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let of_name = lines.filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
                && line.contains(labels)
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Promise 1: every accepted request has ended in exactly one way, and none is left over.
    pub fn assert_nothing_lost(&self) {
        wait_until("nothing is in flight", || self.metric("pointsman_in_flight", "") == 0.0);
        let ends = ["answered", "fell_back", "errors", "client_gone"];
        let ended: f64 =
            ends.iter().map(|end| self.metric(&format!("pointsman_{end}_total"), "")).sum();
        assert_eq!(self.metric("pointsman_accepted_total", ""), ended);
        // The actor hears of a lease a moment after the request has ended.
        let idle = |name: &str| self.metric(name, "") == 0.0;
        wait_until("no slot is held and nobody waits", || {
            idle("pointsman_lane_running") && idle("pointsman_lane_queued")
        });
    }

    /// `/proc/PID/…` of the host: bytes in memory, lines of its maps, threads.
    pub fn size(&self) -> Size {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let read = |file: &str| fs::read_to_string(proc.join(file)).unwrap();
        let status = read("status");
        let line =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        let kilobytes: u64 = line("VmRSS:").trim_end_matches(" kB").parse().unwrap();
        Size {
            resident: kilobytes << 10,
            maps: read("maps").lines().count(),
            threads: line("Threads:").parse().unwrap(),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// All processes below the host, and with them the keeper.
    pub fn children(&self) -> HashSet<u32> {
        below(self.pid())
    }

    /// The processes of a lane's engine.
    pub fn engine_family(&self, lane: &str) -> HashSet<u32> {
        let engine = self.engine_pid(lane);
        let mut family = below(engine);
        family.insert(engine);
        family
    }

    /// Wait for the end.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the host ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.stopped = true;
        status.unwrap()
    }

    /// Leave the folder of a host that has ended, or ends now, to the next one.
    pub fn left(mut self) -> TempDir {
        if !self.stopped {
            let family = self.children();
            self.signal(Signal::KILL);
            self.ended();
            wait_until("the keeper has ended the engines", || {
                family.iter().all(|pid| !alive(*pid))
            });
        }
        fs::remove_file(self.dir.path().join("port")).unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Stop it as an operator would, and see that nothing is left.
    pub fn stop(mut self) {
        let children = self.children();
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.log());
        // The keeper ends a moment after us, everything else before.
        wait_until("nothing is left", || children.iter().all(|child| !alive(*child)));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of the host\n{}", self.log());
        }
        if !self.stopped {
            // The engines go with it: the kernel sees to that.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Is there such a process, other than as a zombie?
pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z') && !rest.starts_with('X'))
}

/// All descendants of a process.
pub fn below(pid: u32) -> HashSet<u32> {
    let mut found = HashSet::new();
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?))
        })
        .collect();
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        let children = parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| *pid);
        open.extend(children.filter(|child| found.insert(*child)));
    }
    found
}
