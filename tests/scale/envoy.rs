//! Real Envoy, with the configuration of `examples/scale/envoy.yaml`, and engines behind it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::get;
use pointsman_tests::host::root;
use pointsman_tests::wait_until;
use serde_json::Value;
use tempfile::TempDir;

use crate::FAKE_ENGINE;

/// Returns a port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A fake engine that no host runs.
#[derive(Debug)]
pub(crate) struct Engine {
    process: Option<Process>,
    pub(crate) port: u16,
}

impl Engine {
    /// Starts an engine and waits until it responds.
    pub(crate) fn start(script: &Value) -> Self {
        let mut engine = Self { process: None, port: free_port() };
        engine.restart(script);
        engine
    }

    /// Starts the engine again, on the same port.
    pub(crate) fn restart(&mut self, script: &Value) {
        let mut command = Command::new(FAKE_ENGINE);
        command.args(["--flavour", "vllm", "--alias", "m", "--slots", "64", "--port"]);
        command.arg(self.port.to_string()).arg("--script").arg(script.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process(command.spawn().unwrap()));
        wait_until("the engine responds", || self.responds());
    }

    fn responds(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && get(self.port, "/health").status == 200
    }

    /// Kills the engine.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Returns the number of requests that have ended, in whatever way.
    pub(crate) fn ended(&self) -> usize {
        self.sum("vllm:request_success_total{")
    }

    /// Returns the number of requests that it computes.
    pub(crate) fn running(&self) -> usize {
        self.sum("vllm:num_requests_running{")
    }

    fn sum(&self, metric: &str) -> usize {
        let text = get(self.port, "/metrics").text();
        let values = text.lines().filter(|line| line.starts_with(metric));
        let values = values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        // Cast: small numbers without fractions.
        values.sum::<f64>() as usize
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the configuration of a lane with this engine. `more` are further keys of the lane.
    pub(crate) fn lane(&self, name: &str, more: &str) -> String {
        format!(
            "[[lanes]]\nname = \"{name}\"\nmodels = [\"m\"]\n{more}\n[lanes.engine]\ndriver = \
             \"external\"\nurl = \"http://{}\"\nprobe-interval = \"200ms\"\n",
            self.address()
        )
    }
}

/// A running Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    _process: Process,
    pub(crate) port: u16,
    admin: u16,
    log: PathBuf,
    _dir: TempDir,
}

impl Envoy {
    /// Starts Envoy with the ports of these pickers and engines. `change` changes its
    /// configuration.
    pub(crate) fn start(
        pickers: [u16; 2],
        engines: [u16; 2],
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let (port, admin) = (free_port(), free_port());
        let text = fs::read_to_string(root().join("examples/scale/envoy.yaml")).unwrap();
        let ports = [
            (9901, admin),
            (8080, port),
            (9002, pickers[0]),
            (9003, pickers[1]),
            (8001, engines[0]),
            (8002, engines[1]),
            // The third engine of the file: the same one again.
            (8003, engines[1]),
        ];
        let text = ports.iter().fold(text, |text, (from, to)| {
            let (from, to) = (format!("port_value: {from} "), format!("port_value: {to} "));
            assert!(text.contains(&from), "{from}");
            text.replace(&from, &to)
        });
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("envoy.yaml"), dir.path().join("log"));
        fs::write(&file, change(text)).unwrap();
        let mut command = Command::new(program());
        command.arg("-c").arg(&file).arg("--use-dynamic-base-id");
        command.args(["--concurrency", "1", "-l", "warning"]);
        let errors = fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let process = Process(command.spawn().unwrap());
        let envoy = Self { _process: process, port, admin, log, _dir: dir };
        envoy.wait_for_pickers(pickers);
        envoy
    }

    fn wait_for_pickers(&self, pickers: [u16; 2]) {
        wait_until("Envoy listens", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && std::net::TcpStream::connect(("127.0.0.1", self.admin)).is_ok()
        });
        wait_until("Envoy has checked the pickers", || {
            let clusters = get(self.admin, "/clusters").text();
            pickers.iter().all(|port| {
                let key = format!("pickers::127.0.0.1:{port}::health_flags::");
                let flags = clusters.lines().find_map(|line| line.strip_prefix(&key));
                let is_up = std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok();
                flags.is_some_and(|flags| (flags == "healthy") == is_up)
            })
        });
    }

    /// Returns what Envoy has logged.
    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Returns the path of Envoy.
fn program() -> PathBuf {
    let venv = std::env::var_os("POINTSMAN_VENV").map(PathBuf::from);
    let venv = venv.unwrap_or_else(|| {
        Path::new(&std::env::var_os("HOME").expect("a home")).join(".cache/pointsman/venv")
    });
    venv.join("bin/envoy")
}
