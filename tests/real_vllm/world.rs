//! What is there: vLLM, models, and a host with two lanes that have memory for one.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pointsman_tests::host::{Host, program, root};
use serde_json::json;

use crate::report::Report;
use crate::talk::{CHAT, asking, exchange};
use crate::watch::Watch;
use crate::{FAKE_ENGINE, LOAD_LIMIT, wait_long};

/// The lane with vLLM.
pub(crate) const VLLM: &str = "orchestrator";
/// The lane with llama.cpp.
pub(crate) const LLAMA: &str = "reader";

/// A host that is watched. Who watches it stops before it does.
pub(crate) struct Running {
    pub(crate) watch: Watch,
    pub(crate) host: Host,
}

pub(crate) struct World {
    /// With `venv` and `model` in it.
    vllm: PathBuf,
    /// Of the virtual environment with llama.cpp.
    python: PathBuf,
    running: Option<Rc<Running>>,
    pub(crate) report: Report,
}

impl World {
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

    /// The host, started if need be.
    pub(crate) fn host(&mut self) -> Rc<Running> {
        let config = self.config();
        let running = self.running.get_or_insert_with(|| {
            let host = Host::start(&program(FAKE_ENGINE), &config);
            let watch = Watch::start(host.port);
            Rc::new(Running { watch, host })
        });
        Rc::clone(running)
    }

    /// The host with vLLM loaded and idle.
    pub(crate) fn ready(&mut self) -> Rc<Running> {
        let running = self.host();
        let host = &running.host;
        let begun = Instant::now();
        while host.lane(VLLM)["engine"] != "ready" {
            assert!(begun.elapsed() < LOAD_LIMIT, "{}", host.lane(VLLM));
            // Refused at once while the lane is down.
            drop(exchange(host.port, "POST", CHAT, &asking(VLLM, 1, &json!({})).to_string()));
            std::thread::park_timeout(Duration::from_millis(200));
        }
        wait_long("the lane is idle", || host.lane(VLLM)["running"] == 0);
        running
    }

    /// Another host, which nobody watches.
    pub(crate) fn fresh(&self) -> Host {
        Host::start(&program(FAKE_ENGINE), &self.config())
    }

    /// The host with vLLM loaded and idle, to be ended: nobody watches it any more.
    pub(crate) fn take(&mut self) -> Host {
        drop(self.ready());
        let running = self.running.take().and_then(Rc::into_inner).unwrap();
        drop(running.watch);
        running.host
    }

    /// End what is still running.
    pub(crate) fn end(mut self) {
        if let Some(Running { watch, host }) = self.running.take().and_then(Rc::into_inner) {
            drop(watch);
            host.stop();
        }
    }

    /// The end of the host's log.
    pub(crate) fn show_log(&self) {
        let Some(Running { host, .. }) = self.running.as_deref() else { return };
        let log = host.log();
        // Without our own looks.
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
min_residency = 0.0
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
