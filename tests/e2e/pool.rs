//! Lanes that take turns on one GPU. For each failure that others had in the field there is a test here that names it.

mod alive;
mod breaker;
mod dies;
mod failing;
mod fair;
mod memory;
mod order;
mod shown;
mod sleeper;
mod switching;
mod waiting;

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

use pointsman_tests::client::{Reply, Stream, chat, get, post, stream};
use pointsman_tests::host::{Host, program};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
/// Switches come about as soon as somebody wants another lane.
const AT_ONCE: &str = "switching = { min-residency = 0.0, linger = \"0s\" }\n";

/// A lane of the group, with a vLLM. `more` are keys of the lane, `engine` those of its engine, `flags` those of the fake.
fn vllm(name: &str, more: &str, engine: &str, flags: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\ngroup = \"gpu\"\nmemory = \"8GiB\"\nexpected-load-time = \"1s\"\n{more}\n\
         [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"/m/{name}\"\n\
         backoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\nenv = {{ FAKE_ENGINE = {flags:?} }}\n{engine}\n"
    )
}

/// A lane beside the group, with a llama.cpp. It is always loaded, unless `more` says otherwise.
fn llama(name: &str, more: &str, flags: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\n{more}\n[lanes.engine]\ndriver = \"llama-cpp\"\nprogram = [{FAKE_ENGINE:?}]\n\
         model = \"/m/{name}.gguf\"\ncontext = 32768\nstop-grace = \"2s\"\n\
         backoff = {{ initial = \"200ms\", max = \"1s\", max-failures = 0 }}\nenv = {{ FAKE_ENGINE = {flags:?} }}\n"
    )
}

/// A lane that comes back at once, however often it dies.
fn comes_back(lane: &str) -> String {
    lane.replace("max-failures = 0", "max-failures = 0, reset-after = \"1ms\"")
}

/// A configuration with room for one of the lanes.
fn one_at_a_time(head: &str, lanes: &[String]) -> String {
    format!("{head}\n[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{}", lanes.concat())
}

fn start(config: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), config)
}

fn ask(host: &Host, model: &str) -> Reply {
    post(host.port, CHAT, &chat(model, json!({ "max_tokens": 2 })))
}

/// The same in a thread.
fn asking(host: &Host, model: &str, more: Value) -> JoinHandle<Reply> {
    let (port, body) = (host.port, chat(model, more));
    std::thread::spawn(move || post(port, CHAT, &body))
}

fn streaming(host: &Host, model: &str) -> Stream {
    stream(host.port, CHAT, &chat(model, json!({ "stream": true })))
}

/// The head of a stream, read in a thread: it may be long in coming.
fn streaming_later(host: &Host, model: &str) -> JoinHandle<(Reply, bool)> {
    let (port, body) = (host.port, chat(model, json!({ "stream": true })));
    std::thread::spawn(move || stream(port, CHAT, &body).finish())
}

/// A client that sends a request and reads nothing. It leaves when this is dropped.
fn leaver(host: &Host, body: &Value) -> TcpStream {
    let text = body.to_string();
    let mut socket = TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket
}

fn is_engine(host: &Host, lane: &str, state: &str) -> bool {
    host.lane(lane)["engine"] == state
}

fn queued(host: &Host, lane: &str) -> Value {
    host.lane(lane)["queued"].clone()
}

/// Lanes that were loaded, be it into free room or in another's place.
fn loads(host: &Host) -> f64 {
    host.metric("pointsman_switches_total", "")
}

/// Tries that did not end well.
fn failed_tries(host: &Host) -> f64 {
    host.metric("pointsman_attempts_total", "")
        - host.metric("pointsman_attempts_total", "result=\"ok\"")
}

/// What the lane's engine says of itself.
fn engine(host: &Host, lane: &str) -> Value {
    get(host.engine_port(lane), "/fake/state").json()
}

/// The error that a stream ends with.
fn last_words(text: &str) -> Value {
    assert!(!text.contains("[DONE]"), "{text}");
    let event = text.trim_end().rsplit("\n\n").next().unwrap();
    let event =
        event.strip_prefix("data: ").unwrap_or_else(|| panic!("no event at the end of {text}"));
    let event: Value = serde_json::from_str(event).unwrap();
    assert!(event["error"]["message"].is_string(), "{text}");
    event["error"].clone()
}

/// The seed of this run: that of `POOL_SEED`, or a new one.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("POOL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(u64::from(now) + 1);
    println!("POOL_SEED={seed}");
    seed
}

/// xorshift64*: the same from the same seed.
struct Random(u64);

impl Random {
    fn of(seed: u64, part: u64) -> Self {
        Self(seed.wrapping_mul(2 * part + 1) | 1)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % most
    }
}

/// A made-up machine with one GPU, whose memory the engines share. Its driver takes back what a process held some time after
/// that has gone; it runs here, because what an engine starts ends with it.
struct Machine {
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
            // Process 1 is not one of our engines.
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
        std::thread::park_timeout(Duration::from_millis(2));
    }
    for mut helper in helpers.into_values() {
        helper.kill().unwrap();
        helper.wait().unwrap();
    }
}

/// Processes that hold memory.
fn holders(root: &Path) -> Vec<String> {
    let held = fs::read_dir(root.join("held")).into_iter().flatten().flatten();
    let names = held.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.off.store(true, Ordering::Relaxed);
        drop(self.driver.take().map(JoinHandle::join));
    }
}

impl Machine {
    /// With so much memory, which is free so long after its holder has gone.
    fn new(total: u64, linger_ms: u64) -> Self {
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

    fn path(&self) -> &Path {
        self.root.path()
    }

    /// Flags of an engine that takes so much of it.
    fn flags(&self, bytes: u64) -> String {
        let (root, linger) = (self.path().display(), self.linger_ms);
        format!("--memory-root {root} --memory-bytes {bytes} --memory-linger-ms {linger}")
    }

    /// Processes that hold some of it.
    fn holders(&self) -> Vec<String> {
        holders(self.path())
    }

    /// Somebody else takes some of it.
    fn taken_by(&self, pid: u32, bytes: u64) {
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

    /// The host, on this machine.
    fn program(&self) -> std::path::PathBuf {
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

/// A configuration whose group has this memory of the GPU.
fn on_gpu(head: &str, memory: &str, lanes: &[String]) -> String {
    format!("{head}\n[[groups]]\nname = \"gpu\"\npool = \"gpu\"\n{memory}\n{}", lanes.concat())
}
