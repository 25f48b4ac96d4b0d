//! Lanes of one group that share the memory of a GPU.
//!
//! Each failure mode known from other model switchers has a test here that is named after it.

mod circuit_breaker;
mod fairness;
mod host_crash;
mod lane_status;
mod liveness;
mod load_failures;
mod memory;
mod priorities;
mod sleep_mode;
mod switching;
mod waiting_clients;

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{Response, ResponseStream, chat, get, post, stream};
use pointsman_tests::host::{Host, program};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
/// A configuration in which lanes switch as soon as a request needs another lane.
const SWITCH_IMMEDIATELY: &str = "switching = { min-residency = 0.0, linger = \"0s\" }\n";

/// Returns a lane of the group with a fake vLLM. `more` are keys of the lane, `engine` those of its
/// engine, `flags` those of the fake engine.
fn vllm_lane(name: &str, more: &str, engine: &str, flags: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\ngroup = \"gpu\"\nmemory = \"8GiB\"\n\
         expected-load-time = \"1s\"\n{more}\n\
         [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"/m/{name}\"\n\
         backoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\n\
         env = {{ FAKE_ENGINE = {flags:?} }}\n{engine}\n"
    )
}

/// Returns a lane outside the group with a fake llama.cpp, which is always loaded unless `more`
/// says otherwise.
fn llama_lane(name: &str, more: &str, flags: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\n{more}\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
         program = [{FAKE_ENGINE:?}]\n\
         model = \"/m/{name}.gguf\"\ncontext = 32768\nstop-grace = \"2s\"\n\
         backoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\n\
         env = {{ FAKE_ENGINE = {flags:?} }}\n"
    )
}

/// Changes a lane so that its engine restarts immediately after any number of crashes.
fn restarts_immediately(lane: &str) -> String {
    lane.replace("max-failures = 0", "max-failures = 0, reset-after = \"1ms\"")
}

/// Returns a configuration whose group has memory for one lane at a time.
fn single_lane_group(head: &str, lanes: &[String]) -> String {
    format!("{head}\n[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{}", lanes.concat())
}

fn start(config: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), config)
}

fn send_chat(host: &Host, model: &str) -> Response {
    post(host.port, CHAT, &chat(model, json!({ "max_tokens": 2 })))
}

/// Sends a chat request in a thread of its own.
fn spawn_chat(host: &Host, model: &str, more: Value) -> JoinHandle<Response> {
    let (port, body) = (host.port, chat(model, more));
    std::thread::spawn(move || post(port, CHAT, &body))
}

fn start_stream(host: &Host, model: &str) -> ResponseStream {
    stream(host.port, CHAT, &chat(model, json!({ "stream": true })))
}

/// Reads a whole stream in a thread of its own, because its head may arrive late.
fn spawn_stream(host: &Host, model: &str) -> JoinHandle<(Response, bool)> {
    let (port, body) = (host.port, chat(model, json!({ "stream": true })));
    std::thread::spawn(move || stream(port, CHAT, &body).finish())
}

/// Sends a request without reading the response. Dropping the socket disconnects the client.
fn silent_client(host: &Host, body: &Value) -> TcpStream {
    let text = body.to_string();
    let mut socket = TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{text}",
        text.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket
}

fn engine_is(host: &Host, lane: &str, state: &str) -> bool {
    host.lane(lane)["engine"] == state
}

fn queue_length(host: &Host, lane: &str) -> Value {
    host.lane(lane)["queued"].clone()
}

/// Returns the number of loads, into free memory or after an eviction.
fn switch_count(host: &Host) -> f64 {
    host.metric("pointsman_switches_total", "")
}

/// Returns the number of attempts that did not succeed.
fn failed_attempts(host: &Host) -> f64 {
    host.metric("pointsman_attempts_total", "")
        - host.metric("pointsman_attempts_total", "result=\"ok\"")
}

/// Returns the state that a lane's fake engine reports.
fn engine_state(host: &Host, lane: &str) -> Value {
    get(host.engine_port(lane), "/fake/state").json()
}

/// Returns the error event that a stream must end with.
fn final_error(text: &str) -> Value {
    assert!(!text.contains("[DONE]"), "{text}");
    let event = text.trim_end().rsplit("\n\n").next().unwrap();
    let event =
        event.strip_prefix("data: ").unwrap_or_else(|| panic!("no event at the end of {text}"));
    let event: Value = serde_json::from_str(event).unwrap();
    assert!(event["error"]["message"].is_string(), "{text}");
    event["error"].clone()
}

/// Returns the seed of this run: the value of `GROUPS_SEED`, or a new seed. Prints the seed.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("GROUPS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(u64::from(now) + 1);
    println!("GROUPS_SEED={seed}");
    seed
}

/// A pseudo-random generator (xorshift64*): the same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn for_client(seed: u64, client: u64) -> Self {
        // An odd factor gives each client another sequence; the state must not be zero.
        Self(seed.wrapping_mul(2 * client + 1) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}

/// A simulated machine with one GPU whose memory the engines share.
///
/// Its driver frees the memory of a process some time after the process has exited. The driver runs
/// in the test process, because everything that an engine starts is killed with the engine.
pub(crate) struct FakeMachine {
    root: TempDir,
    linger_ms: u64,
    off: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
}

const GIB: u64 = 1 << 30;

fn driver(root: &Path, linger_ms: u64, off: &AtomicBool) {
    let mut helpers: HashMap<String, Child> = HashMap::new();
    while !off.load(Ordering::Relaxed) {
        for pid in holders(root) {
            // A test uses process 1 for memory that no engine holds.
            if pid != "1" && !helpers.contains_key(&pid) {
                let mut helper = Command::new(FAKE_ENGINE);
                helper
                    .arg("memory-helper")
                    .arg(root)
                    .args([&pid, &linger_ms.to_string()])
                    .stdout(Stdio::null());
                helpers.insert(pid, helper.spawn().unwrap());
            }
        }
        helpers.retain(|_, helper| helper.try_wait().unwrap().is_none());
        pointsman_tests::pause(Duration::from_millis(2));
    }
    for mut helper in helpers.into_values() {
        helper.kill().unwrap();
        helper.wait().unwrap();
    }
}

/// Returns the ids of the processes that hold memory.
fn holders(root: &Path) -> Vec<String> {
    let held = fs::read_dir(root.join("held")).into_iter().flatten().flatten();
    let names = held.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.off.store(true, Ordering::Relaxed);
        // A panic of the driver has been printed; panicking again here would abort the test.
        self.driver.take().map(JoinHandle::join);
    }
}

impl FakeMachine {
    /// Makes a machine with `total` bytes of memory, which are freed `linger_ms` after their
    /// holder has exited.
    pub(crate) fn new(total: u64, linger_ms: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let card = root.path().join("sys/class/drm/renderD128/device");
        fs::create_dir_all(&card).unwrap();
        for (name, text) in [
            ("vendor", "0x1002".to_owned()),
            ("mem_info_vram_total", total.to_string()),
            ("mem_info_vram_used", "0".to_owned()),
        ] {
            fs::write(card.join(name), text + "\n").unwrap();
        }
        let off = Arc::new(AtomicBool::new(false));
        let driver = std::thread::spawn({
            let (root, off) = (root.path().to_owned(), Arc::clone(&off));
            move || driver(&root, linger_ms, &off)
        });
        Self { root, linger_ms, off, driver: Some(driver) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// Returns the flags of a fake engine that holds this much memory.
    pub(crate) fn flags(&self, bytes: u64) -> String {
        let (root, linger) = (self.path().display(), self.linger_ms);
        format!("--memory-root {root} --memory-bytes {bytes} --memory-linger-ms {linger}")
    }

    /// Returns the ids of the processes that hold memory.
    fn holders(&self) -> Vec<String> {
        holders(self.path())
    }

    /// Makes a process hold memory that does not belong to an engine.
    fn occupy(&self, pid: u32, bytes: u64) {
        let process = self.path().join("sys/class/kfd/kfd/proc").join(pid.to_string());
        let (held, card) =
            (self.path().join("held"), self.path().join("sys/class/drm/renderD128/device"));
        fs::create_dir_all(&process).unwrap();
        fs::create_dir_all(&held).unwrap();
        for file in
            [held.join(pid.to_string()), process.join("vram_1"), card.join("mem_info_vram_used")]
        {
            fs::write(file, format!("{bytes}\n")).unwrap();
        }
    }

    /// Returns a program that runs the host on this machine.
    pub(crate) fn program(&self) -> std::path::PathBuf {
        let script = self.path().join("host");
        let host = program(FAKE_ENGINE);
        let text = format!(
            "#!/bin/sh\nexec {:?} \"$@\" --machine {:?}\n",
            host.display(),
            self.path().display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    fn start(&self, config: &str) -> Host {
        Host::start(&self.program(), config)
    }
}

/// Returns a configuration whose group uses the GPU with these memory keys.
fn gpu_group(head: &str, memory: &str, lanes: &[String]) -> String {
    format!("{head}\n[[groups]]\nname = \"gpu\"\npool = \"gpu\"\n{memory}\n{}", lanes.concat())
}
