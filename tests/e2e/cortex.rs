//! Cortex's backend with its own settings, against the example for Cortex, in a network of its own:
//! through switches, the crash of an engine and a restart of the host.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use pointsman_tests::host::{Host, root, send_signal};
use pointsman_tests::wait_until;
use pointsman_xtask::setup::namespace_command;
use rustix::process::Signal;
use serde_json::Value;
use toml::{Table, Value as Toml};

use crate::FAKE_ENGINE;
use crate::clients::prepared_dir;
use crate::groups::FakeMachine;

/// Set for the test that runs in the namespaces.
const INSIDE: &str = "POINTSMAN_TEST_NAMESPACES";
const NAME: &str = "cortex::backend_meets_only_errors_that_its_specification_allows";
/// The names that Cortex's containers resolve.
const HOSTS: &str = "127.0.0.1 localhost inference-vllm\n";
/// Brings up the network and the names, and runs a program.
const SCRIPT: &str = "ip link set lo up && mount --bind \"$0\" /etc/hosts && exec \"$@\"";

const GIB: u64 = 1 << 30;
/// The lanes whose engines take turns, or share the GPU.
const VLLM_LANES: [&str; 3] = ["orchestrator", "coder", "fast_rag"];

#[test]
fn backend_meets_only_errors_that_its_specification_allows() {
    if std::env::var_os(INSIDE).is_some() {
        return serve_backend();
    }
    let Some(mut command) = namespace_command() else {
        println!("SKIPPED: {NAME}: namespaces of the network and of mounts are not permitted");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, HOSTS).unwrap();
    command.args(["sh", "-c", SCRIPT]).arg(hosts).arg(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1");
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}; see its output above");
}

/// Returns the example, in which only the engines' programs, what is known of their loads, and the
/// folders are replaced.
fn example(machine: &FakeMachine) -> String {
    let file = root().join("examples/cortex.toml");
    let mut config: Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let text = |value: &str| Toml::String(value.to_owned());
    let policies = root().join("policies").display().to_string();
    for (section, key, value) in
        [("state", "dir", "state"), ("policies", "dir", &policies), ("policies", "cache", "cache")]
    {
        config[section].as_table_mut().unwrap().insert(key.to_owned(), text(value));
    }
    config.remove("log");
    for lane in config["lanes"].as_array_mut().unwrap() {
        let lane = lane.as_table_mut().unwrap();
        lane.insert("expected-load-time".to_owned(), text("1s"));
        let mut flags = "--load-ms 1000 --script '{\"token-ms\": 50}'".to_owned();
        if VLLM_LANES.contains(&lane["name"].as_str().unwrap()) {
            let memory = lane["memory"].as_str().unwrap().trim_end_matches("GiB");
            flags += &format!(" {}", machine.flags(memory.parse::<u64>().unwrap() * GIB));
        }
        let engine = lane["engine"].as_table_mut().unwrap();
        engine.insert("program".to_owned(), Toml::Array(vec![text(FAKE_ENGINE)]));
        let env = engine.entry("env").or_insert_with(|| Toml::Table(Table::new()));
        env.as_table_mut().unwrap().insert("FAKE_ENGINE".to_owned(), text(&flags));
    }
    toml::to_string(&config).unwrap()
}

/// Returns a machine with Cortex's memory.
fn machine() -> FakeMachine {
    let machine = FakeMachine::new(64 * GIB, 200);
    let proc = machine.path().join("proc");
    fs::create_dir_all(&proc).unwrap();
    let (total, available) = ((64 * GIB) >> 10, (60 * GIB) >> 10);
    let text = format!("MemTotal: {total} kB\nMemAvailable: {available} kB\n");
    fs::write(proc.join("meminfo"), text).unwrap();
    machine
}

/// A running backend.
struct Backend {
    child: Child,
    commands: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Backend {
    fn start() -> Self {
        let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
        command.arg(root().join("tests/python/cortex_backend.py"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, commands, output }
    }

    /// Sends a word, and returns the line that follows.
    fn send(&mut self, word: &str) -> String {
        writeln!(self.commands, "{word}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// Says what happens to the host from now on.
    fn phase(&mut self, phase: &str) {
        assert_eq!(self.send(phase).trim_end(), phase);
    }

    /// Stops all agents, and returns what they have met.
    fn stop(mut self) -> Value {
        let report = self.send("stop");
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&report).unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It has ended already, unless the test has failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn answered(host: &Host) -> f64 {
    ["answered", "fell_back"]
        .iter()
        .map(|outcome| host.metric(&format!("pointsman_{outcome}_total"), ""))
        .sum()
}

fn wait_for_answers(host: &Host, more: f64) {
    let target = answered(host) + more;
    wait_until("the backend has more answers", || answered(host) >= target);
}

fn wait_for_switches(host: &Host, more: f64) {
    let switches = || host.metric("pointsman_switches_total", "");
    let target = switches() + more;
    wait_until("lanes have been switched", || switches() >= target);
}

/// Kills the engine of a lane that is serving a request; returns the lane.
fn kill_busy_engine(host: &Host) -> &'static str {
    let mut killed = None;
    wait_until("an engine is busy", || {
        let is_busy = |name: &&&str| {
            let lane = host.lane(name);
            lane["state"] == "ready" && lane["running"].as_u64() > Some(0)
        };
        killed = VLLM_LANES.iter().find(is_busy).copied();
        killed.inspect(|lane| send_signal(host.engine_pid(lane), Signal::KILL)).is_some()
    });
    killed.unwrap()
}

fn serve_backend() {
    let machine = machine();
    let (program, config) = (machine.program(), example(&machine));
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::start_as_configured(&program, dir, &config).wait_until_ready();
    let mut backend = Backend::start();
    wait_for_switches(&host, 3.0);
    wait_for_answers(&host, 30.0);

    backend.phase("crash");
    let killed = kill_busy_engine(&host);
    wait_for_answers(&host, 20.0);
    wait_until("the lane has recovered", || {
        ["ready", "unloaded"].iter().any(|state| host.lane(killed)["state"] == *state)
    });
    backend.phase("steady");
    wait_for_switches(&host, 1.0);

    backend.phase("restart");
    host.signal(Signal::TERM);
    let status = host.wait_for_exit();
    assert!(status.success(), "{status}\n{}", host.log_text());
    let host = Host::start_as_configured(&program, host.into_dir(), &config).wait_until_ready();
    wait_for_answers(&host, 20.0);
    backend.phase("steady");
    wait_for_switches(&host, 1.0);
    let report = backend.stop();

    print_table(&report);
    assert_eq!(report["wrong"], Value::Array(Vec::new()), "killed: {killed}");
    assert!(report["health"]["200"].as_u64() > Some(0), "{report}");
    host.assert_no_request_lost();
    host.stop();
}

fn print_table(report: &Value) {
    println!("| lane | call | answered | errors that were allowed |");
    println!("|---|---|---|---|");
    for row in report["rows"].as_array().unwrap() {
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        println!(
            "| {} | {} | {} | {} |",
            text("lane"),
            text("how"),
            row["answered"],
            row["retried"]
        );
    }
    println!("/health: {}; LangGraph: {}", report["health"], report["langgraph"]);
}
