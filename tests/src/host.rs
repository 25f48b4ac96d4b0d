//! The host program under test: its process, configuration, log, status and metrics.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Response, get, get_unix, post};
use crate::log::{self, LogEvent};
use crate::wait_until;

/// Returns the root directory of the project.
pub fn root() -> PathBuf {
    // Read at run time, because two clones may share a target directory and so this binary.
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("run by cargo");
    Path::new(&manifest).parent().unwrap().to_owned()
}

/// A running host. Dropping it kills the host, its keeper and its engines.
#[derive(Debug)]
pub struct Host {
    child: Child,
    pub port: u16,
    pub dir: TempDir,
    log: PathBuf,
    admin_socket: OnceLock<PathBuf>,
    exited: bool,
}

/// The resources that a host process uses.
#[derive(Debug, Clone, Copy)]
pub struct ResourceUsage {
    /// Resident memory in bytes.
    pub resident: u64,
    /// Number of memory mappings.
    pub maps: usize,
    pub threads: usize,
}

/// Returns the path of the host program: that in `POINTSMAN_PROGRAM`, with which figures of a
/// release binary are measured, or the one which is built beside the fake engine.
///
/// # Panics
/// If the host program has not been built.
pub fn program(fake_engine: &str) -> PathBuf {
    if let Some(program) = std::env::var_os("POINTSMAN_PROGRAM") {
        return program.into();
    }
    let program = Path::new(fake_engine).with_file_name("pointsman");
    assert!(
        program.exists(),
        "{} is missing; build it with: cargo build -p pointsman",
        program.display()
    );
    program
}

/// Returns the configuration of a lane with a fake engine. `more` are further keys of the lane,
/// `arguments` those of the fake engine.
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
        "[[lanes]]\nname = {name:?}\nmodels = {models:?}\n{more}\n[lanes.engine]\n\
         driver = \"llama-cpp\"\ncommand = {}\nstop-grace = \"2s\"\n\
         backoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\n",
        json!(command)
    )
}

/// Returns the configuration with the JSON log that [`Host::events`] reads.
pub fn with_json_log(config: &str) -> String {
    format!("log.format = \"json\"\n{config}")
}

impl Host {
    /// Starts a host with this configuration and waits until it listens.
    pub fn start(program: &Path, config: &str) -> Self {
        Self::start_in(program, tempfile::tempdir().unwrap(), config, &[])
    }

    /// Starts a host in an existing directory, with additional environment variables, and waits
    /// until it listens.
    pub fn start_in(program: &Path, dir: TempDir, config: &str, env: &[(&str, &str)]) -> Self {
        Self::start_with_log(program, dir, config, env, "debug,hyper_util=info")
    }

    /// Starts a host as [`Host::start_in`] does, with this filter of its log.
    pub fn start_with_log(
        program: &Path,
        dir: TempDir,
        config: &str,
        env: &[(&str, &str)],
        filter: &str,
    ) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--log", filter];
        Self::launch(program, dir, config, env, &arguments)
    }

    /// Starts an endpoint picker, and waits until it listens. The port is that of its service for
    /// the proxy.
    pub fn start_picker(program: &Path, dir: TempDir, config: &str) -> Self {
        let arguments =
            ["pick", "--listen", "127.0.0.1:0", "--log", "debug,hyper_util=info,h2=info"];
        Self::launch(program, dir, config, &[], &arguments)
    }

    /// Starts a host that listens where its configuration says, and waits until it listens.
    pub fn start_as_configured(program: &Path, dir: TempDir, config: &str) -> Self {
        Self::launch(program, dir, config, &[], &["serve", "--log", "debug,hyper_util=info"])
    }

    fn launch(
        program: &Path,
        dir: TempDir,
        config: &str,
        env: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let file = dir.path().join("pointsman.toml");
        fs::write(&file, with_json_log(config)).unwrap();
        let log = dir.path().join("log");
        let port_file = dir.path().join("port");
        let mut command = Command::new(program);
        command.args(arguments).arg(&file);
        command.arg("--port-file").arg(&port_file);
        command.env("XDG_STATE_HOME", dir.path().join("state")).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let (child, admin_socket) = (command.spawn().unwrap(), OnceLock::new());
        let mut host = Self { child, port: 0, dir, log, admin_socket, exited: false };
        wait_until("the host listens", || {
            if let Some(status) = host.child.try_wait().unwrap() {
                panic!("the host exited: {status}\n{}", host.log_text());
            }
            port_file.exists()
        });
        // The first listener's; further ones follow.
        let ports = fs::read_to_string(&port_file).unwrap();
        host.port = ports.lines().next().unwrap().parse().unwrap();
        host
    }

    /// Returns the port of a listener: 0 is `server.listen`, 1 the first of `[[listeners]]`.
    ///
    /// # Panics
    /// If the host has fewer listeners with a port.
    pub fn listener_port(&self, index: usize) -> u16 {
        let mut port = None;
        wait_until(&format!("listener {index} is in the log"), || {
            let events = self.events("listening", &[]);
            port = events.get(index).map(|event| event.text("address"));
            port.is_some()
        });
        port.unwrap().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Waits until every lane is ready or, if it is loaded on demand, unloaded.
    #[must_use]
    pub fn wait_until_ready(self) -> Self {
        wait_until("all lanes are ready", || {
            let status = self.status();
            let is_settled = |lane: &Value| lane["state"] == "ready" || lane["state"] == "unloaded";
            // There are no lanes yet while policies are loaded.
            status["lanes"].as_array().is_some_and(|lanes| lanes.iter().all(is_settled))
        });
        self
    }

    /// Waits until a lane is in a state.
    pub fn wait_for_lane(&self, lane: &str, state: &str) {
        wait_until(&format!("lane {lane} is {state}"), || self.lane(lane)["state"] == state);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the log as text, for example to search it for secrets.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns all events of the log, oldest first.
    pub fn all_events(&self) -> Vec<LogEvent> {
        log::parse(&self.log_text())
    }

    /// Returns the events of this name that have these fields, oldest first.
    pub fn events(&self, name: &str, fields: &[(&str, &str)]) -> Vec<LogEvent> {
        self.all_events().into_iter().filter(|event| event.matches(name, fields)).collect()
    }

    /// Waits for an event and returns the first one.
    ///
    /// Also for events that follow from something a test has seen: the log may be written later
    /// than the response or the status.
    ///
    /// # Panics
    /// If the event does not appear in the log.
    pub fn wait_for_event(&self, name: &str, fields: &[(&str, &str)]) -> LogEvent {
        let mut found = None;
        wait_until(&format!("the log has the event {name} {fields:?}"), || {
            found = self.events(name, fields).into_iter().next();
            found.is_some()
        });
        found.unwrap()
    }

    /// Returns the socket of the admin API; `None` if the host has none.
    pub fn admin_socket(&self) -> Option<&Path> {
        if self.admin_socket.get().is_none() {
            let events = self.events("admin_listening", &[]);
            let mut sockets = events.iter().map(|event| event.text("socket"));
            let socket = sockets.find(|socket| !socket.is_empty())?;
            // Another thread may have found the same socket.
            self.admin_socket.set(socket.into()).ok();
        }
        self.admin_socket.get().map(PathBuf::as_path)
    }

    /// Sends a request as an operator, or as a client if the host has no admin socket.
    pub fn get(&self, path: &str) -> Response {
        match self.admin_socket() {
            Some(socket) => get_unix(socket, path).expect("a response on the admin socket"),
            None => get(self.port, path),
        }
    }

    /// Returns the status that operators see.
    pub fn status(&self) -> Value {
        self.get("/status").json()
    }

    /// Returns the status of a lane.
    pub fn lane(&self, name: &str) -> Value {
        let status = self.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().find(|lane| lane["name"] == name).unwrap().clone()
    }

    /// Returns the port of a lane's engine.
    pub fn engine_port(&self, lane: &str) -> u16 {
        self.lane(lane)["port"].as_u64().unwrap().try_into().unwrap()
    }

    /// Returns the process id of a lane's engine.
    pub fn engine_pid(&self, lane: &str) -> u32 {
        self.lane(lane)["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Changes how a lane's fake engine responds.
    pub fn set_script(&self, lane: &str, script: Value) {
        let response = post(self.engine_port(lane), "/fake/script", &script);
        assert_eq!(response.status, 200, "{}", response.text());
    }

    /// Returns the sum of a metric over all label sets that contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let matching = lines.filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
                && line.contains(labels)
        });
        matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Asserts that every accepted request has ended in exactly one way and that none is left.
    pub fn assert_no_request_lost(&self) {
        wait_until("no request is in flight", || self.metric("pointsman_in_flight", "") == 0.0);
        let outcomes = ["answered", "fell_back", "errors", "client_gone"];
        let ended: f64 = outcomes
            .iter()
            .map(|outcome| self.metric(&format!("pointsman_{outcome}_total"), ""))
            .sum();
        assert_eq!(self.metric("pointsman_accepted_total", ""), ended);
        // The fleet actor returns a slot a moment after the request has ended.
        let idle = |name: &str| self.metric(name, "") == 0.0;
        wait_until("no slot is held and no request is queued", || {
            idle("pointsman_lane_running") && idle("pointsman_lane_queued")
        });
    }

    /// Reads the resource usage of the host from `/proc`.
    pub fn resource_usage(&self) -> ResourceUsage {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let read = |file: &str| fs::read_to_string(proc.join(file)).unwrap();
        let status = read("status");
        let line =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        let kilobytes: u64 = line("VmRSS:").trim_end_matches(" kB").parse().unwrap();
        ResourceUsage {
            resident: kilobytes << 10,
            maps: read("maps").lines().count(),
            threads: line("Threads:").parse().unwrap(),
        }
    }

    /// Returns the number of open descriptors of the host.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Returns all descendants of the host, including the keeper.
    pub fn descendants(&self) -> HashSet<u32> {
        descendants_of(self.pid())
    }

    /// Returns the processes of a lane's engine.
    pub fn engine_processes(&self, lane: &str) -> HashSet<u32> {
        let engine = self.engine_pid(lane);
        let mut processes = descendants_of(engine);
        processes.insert(engine);
        processes
    }

    /// Waits until the host has exited.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the host exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.exited = true;
        status.unwrap()
    }

    /// Kills the host if it is running, and its keeper and its engines, and returns its directory
    /// for the next host.
    pub fn into_dir(mut self) -> TempDir {
        if !self.exited {
            self.signal(Signal::KILL);
            self.wait_for_exit();
        }
        kill_keepers(self.dir.path());
        self.into_dir_of_killed()
    }

    /// Returns the directory of a host that has exited for the next host, which may take over the
    /// engines.
    pub fn into_dir_of_killed(mut self) -> TempDir {
        assert!(self.exited);
        fs::remove_file(self.dir.path().join("port")).unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// Stops the host with SIGTERM, as an operator does, and asserts that no process is left.
    pub fn stop(mut self) {
        let descendants = self.descendants();
        self.signal(Signal::TERM);
        let status = self.wait_for_exit();
        assert!(status.success(), "{status}\n{}", self.log_text());
        // The keeper exits a moment after the host, all other processes before.
        wait_until("no process is left", || descendants.iter().all(|pid| !is_alive(*pid)));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of the host\n{}", self.log_text());
        }
        if !self.exited {
            // The host may have exited already.
            self.child.kill().ok();
            self.child.wait().ok();
        }
        // It would keep the engines for the next host.
        kill_keepers(self.dir.path());
    }
}

pub fn send_signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Returns the keepers of hosts whose state directory is in this directory.
pub fn keepers(dir: &Path) -> Vec<u32> {
    let is_keeper = |pid: &u32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split('\0').skip(1);
        words.next() == Some("keeper")
            && words.next().is_some_and(|state| Path::new(state).starts_with(dir))
    };
    let processes = fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_keeper).collect()
}

/// Kills keepers and their engines.
fn kill_keepers(dir: &Path) {
    let Ok(dir) = dir.canonicalize() else { return };
    for keeper in keepers(&dir) {
        let engines = descendants_of(keeper);
        for pid in [keeper].into_iter().chain(engines.iter().copied()) {
            // It may have exited already.
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).ok();
        }
        wait_until("the keeper and its engines are killed", || {
            engines.iter().chain([&keeper]).all(|pid| !is_alive(*pid))
        });
    }
}

/// Returns true if the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z') && !rest.starts_with('X'))
}

/// Returns all descendants of a process.
pub fn descendants_of(pid: u32) -> HashSet<u32> {
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
