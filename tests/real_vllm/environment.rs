//! The test environment: vLLM, models, and a host with two lanes that have memory for one engine.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pointsman_tests::host::{Host, program, root};
use serde_json::json;

use crate::client::{CHAT, chat_body, raw_request};
use crate::report::Report;
use crate::status_monitor::StatusMonitor;
use crate::{FAKE_ENGINE, LOAD_TIMEOUT, wait_long};

/// The name of the lane with vLLM.
pub(crate) const VLLM: &str = "orchestrator";
/// The name of the lane with llama.cpp.
pub(crate) const LLAMA: &str = "reader";

/// A host and its monitor, which must be dropped before the host.
pub(crate) struct MonitoredHost {
    pub(crate) monitor: StatusMonitor,
    pub(crate) host: Host,
}

pub(crate) struct TestEnvironment {
    /// The directory with `venv` and `model`.
    vllm: PathBuf,
    /// The Python of the virtual environment with llama.cpp.
    python: PathBuf,
    running: Option<Rc<MonitoredHost>>,
    pub(crate) report: Report,
}

impl TestEnvironment {
    pub(crate) fn find() -> Self {
        let folder = |variable: &str| {
            let folder = std::env::var_os(variable).map(PathBuf::from);
            folder.unwrap_or_else(|| {
                panic!("{variable} is not set; `cargo xtask real-vllm` runs this")
            })
        };
        Self {
            vllm: folder("POINTSMAN_REAL_VLLM"),
            python: folder("POINTSMAN_VENV").join("bin/python"),
            running: None,
            report: Report::open(),
        }
    }

    /// Returns the host, which is started if necessary.
    pub(crate) fn host(&mut self) -> Rc<MonitoredHost> {
        let config = self.config();
        let running = self.running.get_or_insert_with(|| {
            let host = Host::start(&program(FAKE_ENGINE), &config);
            let monitor =
                StatusMonitor::start(host.admin_socket().expect("an admin socket").to_owned());
            Rc::new(MonitoredHost { monitor, host })
        });
        Rc::clone(running)
    }

    /// Returns the host with vLLM loaded and idle.
    pub(crate) fn ready_host(&mut self) -> Rc<MonitoredHost> {
        let running = self.host();
        let host = &running.host;
        let start = Instant::now();
        while host.lane(VLLM)["engine"] != "ready" {
            assert!(start.elapsed() < LOAD_TIMEOUT, "{}", host.lane(VLLM));
            // The request is rejected immediately while the lane is down.
            raw_request(host.port, "POST", CHAT, &chat_body(VLLM, 1, &json!({})).to_string()).ok();
            pointsman_tests::pause(Duration::from_millis(200));
        }
        wait_long("the lane is idle", || host.lane(VLLM)["running"] == 0);
        running
    }

    /// Starts another host without a monitor.
    pub(crate) fn start_unmonitored(&self) -> Host {
        // The engines end with the host.
        let config = format!("state.orphan-grace = \"0s\"\n{}", self.config());
        Host::start(&program(FAKE_ENGINE), &config)
    }

    /// Returns the host with vLLM loaded and idle, without its monitor, for a test that ends the
    /// host.
    pub(crate) fn take_host(&mut self) -> Host {
        drop(self.ready_host());
        let running = self.running.take().and_then(Rc::into_inner).unwrap();
        drop(running.monitor);
        running.host
    }

    /// Stops the host if it is running.
    pub(crate) fn stop(mut self) {
        if let Some(MonitoredHost { monitor, host }) = self.running.take().and_then(Rc::into_inner)
        {
            drop(monitor);
            host.stop();
        }
    }

    /// Prints the end of the host's log.
    pub(crate) fn show_log(&self) {
        let Some(MonitoredHost { host, .. }) = self.running.as_deref() else { return };
        let log = host.log_text();
        // Without the requests of the monitor.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("/status")).collect();
        println!("--- log of the host\n{}", lines[lines.len().saturating_sub(100)..].join("\n"));
    }

    fn config(&self) -> String {
        let vllm = json!(self.vllm.join("venv/bin/vllm"));
        let model = json!(self.vllm.join("model"));
        let script = root().join("examples/llama_engine.py");
        let llama = json!([&self.python, script, "--port", "{port}", "--alias", "{lane}"]);
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
[queue]
max-wait = "5m"
[switching]
min-residency = 0.0
linger = "0s"
[[groups]]
name = "box"
memory = "4GiB"
pool = "system"
[[lanes]]
name = "{VLLM}"
group = "box"
memory = "3GiB"
slots = 4
[lanes.engine]
driver = "vllm"
program = [{vllm}]
model = {model}
dtype = "float32"
max-model-len = 1024
enforce-eager = true
load-format = "dummy"
shutdown-timeout = "10s"
start-timeout = "10m"
[lanes.engine.env]
VLLM_TARGET_DEVICE = "cpu"
HF_HUB_OFFLINE = "1"
VLLM_CPU_KVCACHE_SPACE = "1"
VLLM_CPU_CI_ENV = "1"
OMP_NUM_THREADS = "1"
VLLM_CPU_OMP_THREADS_BIND = "nobind"
[[lanes]]
name = "{LLAMA}"
group = "box"
memory = "3GiB"
slots = 2
[lanes.engine]
driver = "llama-cpp"
command = {llama}
"#
        )
    }
}
