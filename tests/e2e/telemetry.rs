//! The access log, log files, and the export of traces and metrics.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pointsman_tests::client::{chat, post, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clients::prepared_dir;
use crate::{FAKE_ENGINE, lane};

/// Starts a host with two lanes, of which the first one fails.
fn host(head: &str, env: &[(&str, &str)]) -> Host {
    let lanes = ["a", "b"].map(|name| lane(name, &["m"], &[]));
    let config = format!("{head}\n{}", lanes.concat());
    let dir = tempfile::tempdir().unwrap();
    Host::start_in(&program(FAKE_ENGINE), dir, &config, env).wait_until_ready()
}

/// Returns the objects of a file, as soon as it has this number of lines.
fn lines(path: PathBuf, count: usize) -> Vec<Value> {
    let read = || fs::read_to_string(&path).unwrap_or_default();
    wait_until("the file has all lines", || read().lines().count() >= count);
    read().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_request_has_one_line_in_the_access_log() {
    let head = "log.dir = \"logs\"\nlog.access-client = \"network\"\nlog.access-omit = [\"id\"]\n";
    let host = host(head, &[]);
    host.set_script("a", json!({ "status": 500 }));
    let forged = "x\n{\"status\":200}";
    let answers = [
        post(host.port, "/v1/chat/completions", &chat("m", json!({}))),
        post(host.port, "/v1/chat/completions", &chat(forged, json!({}))),
    ];
    assert_eq!(answers.map(|answer| answer.status), [200, 404]);
    host.get("/health");
    let logs = host.dir.path().join("logs");
    let [served, refused] = &lines(logs.join("access.log"), 2)[..] else { panic!("lines") };
    assert_eq!((&served["model"], &served["status"]), (&"m".into(), &200.into()), "{served}");
    assert_eq!((&served["client"], &served["lane"]), (&"127.0.0.0".into(), &"b".into()));
    assert_eq!((&served["outcome"], &served["attempts"]), (&"fell-back".into(), &2.into()));
    assert_eq!(
        (&served["endpoint"], &served["stream"]),
        (&"chat-completions".into(), &false.into())
    );
    assert!(served["output_tokens"].as_u64().unwrap() > 0, "{served}");
    assert!(served["response_bytes"].as_u64().unwrap() > 0, "{served}");
    assert!(served["duration_ms"].as_u64() >= served["ttft_ms"].as_u64(), "{served}");
    assert!(served.get("id").is_none() && served.get("trace_id").is_none(), "{served}");
    assert_eq!((&refused["status"], &refused["code"]), (&404.into(), &"model_not_found".into()));
    assert_eq!(refused["attempts"], 0);
    wait_until("the log file has the same events as the log", || {
        let text = fs::read_to_string(logs.join("pointsman.log")).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"request_finished\"")).count() == 1
    });
    assert_eq!(host.metric("pointsman_access_log_lines_dropped_total", "reason=\"write\""), 0.0);
}

#[test]
fn log_directory_of_the_environment_is_used_and_files_may_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let host = host("", &[("LOG_DIRECTORY", logs.to_str().unwrap())]);
    let ask = || post(host.port, "/v1/chat/completions", &chat("m", json!({})));
    assert_eq!(ask().status, 200);
    assert_eq!(lines(logs.join("access.log"), 1).len(), 1);
    fs::rename(logs.join("access.log"), logs.join("moved")).unwrap();
    assert_eq!(ask().status, 200);
    assert_eq!(lines(logs.join("access.log"), 1).len(), 1);
    assert_eq!(lines(logs.join("moved"), 1).len(), 1);
}

#[test]
fn log_files_that_cannot_be_written_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let below_file = file.join("logs");
    let host = host("", &[("LOG_DIRECTORY", below_file.to_str().unwrap())]);
    host.wait_for_event("log_file_unavailable", &[]);
    let answer = post(host.port, "/v1/chat/completions", &chat("m", json!({})));
    assert_eq!(answer.status, 200);
    wait_until("the line is counted as dropped", || {
        host.metric("pointsman_access_log_lines_dropped_total", "reason=\"write\"") >= 1.0
    });
    host.stop();
}

/// An OTLP receiver of another project, which prints what it receives.
struct Receiver {
    child: Child,
    port: u16,
    out: PathBuf,
    _dir: tempfile::TempDir,
}

impl Receiver {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let port = free_port();
        let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
        command.args(["-u", "-m", "oteltap", "--port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(File::create(&out).unwrap());
        let receiver = Self { child: command.spawn().unwrap(), port, out, _dir: dir };
        wait_until("the receiver listens", || !receiver.text().is_empty());
        receiver
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    /// Returns what was received so far.
    fn received(&self) -> Vec<Value> {
        let text = self.text();
        // The last line may be written at this moment.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn spans(&self) -> Vec<Value> {
        self.received().into_iter().filter(|object| object["spanId"].is_string()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|attribute| attribute["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("no {key} in {span}"))["value"];
    value.as_object().unwrap().values().next().unwrap()
}

/// Waits for the spans of a request and of the switch to lane b. Returns both.
fn spans_of_request_and_switches(receiver: &Receiver) -> (Vec<Value>, Vec<Value>) {
    let of_request = |span: &Value| span["traceId"] == TRACE;
    wait_until("the spans are received", || {
        let spans = receiver.spans();
        // The last one that is sent of a switch.
        let is_switch = |span: &Value| {
            span["name"] == "switch.load" && attribute(span, "pointsman.lane") == "b"
        };
        spans.iter().filter(|span| of_request(span)).count() >= 8 && spans.iter().any(is_switch)
    });
    receiver.spans().into_iter().partition(of_request)
}

/// Checks the spans of the switch from lane c to lane b, for which a request has waited.
fn assert_switch_is_linked(request: &[Value], switches: &[Value]) {
    let mut roots = switches.iter().filter(|span| span["name"] == "switch");
    let root = roots.find(|span| attribute(span, "pointsman.lane") == "b").unwrap();
    assert_eq!(attribute(root, "pointsman.evicted"), "c");
    assert_eq!(attribute(root, "pointsman.cause"), "request");
    let time = |span: &Value, key: &str| -> u64 { span[key].as_str().unwrap().parse().unwrap() };
    let (mut end, mut names) = (time(root, "startTimeUnixNano"), Vec::new());
    for part in switches.iter().filter(|span| span["parentSpanId"] == root["spanId"]) {
        assert_eq!(time(part, "startTimeUnixNano"), end, "each part follows the one before");
        end = time(part, "endTimeUnixNano");
        names.push(&part["name"]);
    }
    assert_eq!(names, ["switch.drain", "switch.unload", "switch.load"]);
    assert_eq!(end, time(root, "endTimeUnixNano"));
    let load = request.iter().find(|span| span["name"] == "load").unwrap();
    let link = &load["links"][0];
    assert_eq!((&link["traceId"], &link["spanId"]), (&root["traceId"], &root["spanId"]));
}

const JSON: (&str, &str) = ("content-type", "application/json");
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Sends a streamed request that belongs to a trace, and returns its body.
fn stream_in_trace(port: u16, flags: &str) -> String {
    let body = chat("m", json!({ "stream": true })).to_string();
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "vendor=1"), JSON];
    let response = send(port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    response.text()
}

#[test]
fn trace_of_queue_switch_fallback_and_stream_is_received() {
    let receiver = Receiver::start();
    let group = |load: &str| format!("group = \"gpu\"\nmemory = \"8GiB\"\n{load}");
    let of_group = |name: &str, model: &str, load: &str| {
        pointsman_tests::host::fake_lane(FAKE_ENGINE, name, &[model], &group(load), &[])
    };
    let lanes = [
        lane("a", &["m"], &[]),
        of_group("b", "m", ""),
        of_group("c", "other", "load = \"at-start\""),
    ];
    let config = format!(
        "[telemetry]\nendpoint = \"http://127.0.0.1:{}\"\nmetrics-interval = \"1s\"\n\
         [switching]\nlinger = \"0s\"\n[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{}",
        receiver.port,
        lanes.concat()
    );
    let host = Host::start(&program(FAKE_ENGINE), &config);
    host.wait_for_lane("a", "ready");
    host.wait_for_lane("c", "ready");
    host.set_script("a", json!({ "status": 500 }));
    stream_in_trace(host.port, "01");
    let (spans, switches) = spans_of_request_and_switches(&receiver);
    assert_switch_is_linked(&spans, &switches);
    assert!(spans.iter().all(|span| span["traceState"] == "vendor=1"), "{spans:#?}");
    let named =
        |name: &str| spans.iter().filter(|span| span["name"] == name).cloned().collect::<Vec<_>>();
    let [root] = &named("POST /v1/chat/completions")[..] else { panic!("{spans:#?}") };
    assert_eq!((&root["parentSpanId"], &root["kind"]), (&PARENT.into(), &2.into()));
    assert_eq!(attribute(root, "http.response.status_code"), "200");
    assert_eq!(attribute(root, "pointsman.outcome"), "fell-back");
    let attempts = named("attempt");
    let lanes: Vec<_> = attempts.iter().map(|span| attribute(span, "pointsman.lane")).collect();
    assert_eq!(lanes, ["a", "b"], "{spans:#?}");
    assert!(
        attempts
            .iter()
            .chain(&named("policy"))
            .all(|span| { span["parentSpanId"] == root["spanId"] })
    );
    // The first attempt has not waited; on a busy machine it may look so.
    let queues = named("queue");
    let queue = queues.last().unwrap();
    let [load] = &named("load")[..] else { panic!("{spans:#?}") };
    assert_eq!(queue["parentSpanId"], attempts[1]["spanId"]);
    assert_eq!(load["parentSpanId"], queue["spanId"]);
    let [failed, served] = &named("chat m")[..] else { panic!("{spans:#?}") };
    assert_eq!((&failed["status"]["code"], &failed["kind"]), (&2.into(), &3.into()));
    assert_eq!(served["parentSpanId"], attempts[1]["spanId"]);
    assert_eq!(attribute(served, "gen_ai.operation.name"), "chat");
    assert_eq!(attribute(served, "gen_ai.request.model"), "m");
    assert_eq!(attribute(served, "server.address"), "127.0.0.1");
    attribute(served, "gen_ai.usage.output_tokens");
    let [stream] = &named("stream")[..] else { panic!("{spans:#?}") };
    assert_eq!(stream["parentSpanId"], served["spanId"]);
    let time = |span: &Value, key: &str| -> u64 { span[key].as_str().unwrap().parse().unwrap() };
    for span in &spans {
        let (start, end) = (time(span, "startTimeUnixNano"), time(span, "endTimeUnixNano"));
        assert!(time(root, "startTimeUnixNano") <= start && start <= end, "{span}");
        assert!(end <= time(root, "endTimeUnixNano"), "{span}");
    }
    let is_metric = |object: &Value| object["name"] == "pointsman_in_flight";
    wait_until("the metrics are received", || receiver.received().iter().any(is_metric));
    // Neither is a prompt in the spans, nor a request that its client does not trace.
    stream_in_trace(host.port, "00");
    host.stop();
    assert!(!receiver.text().contains("hello"), "{}", receiver.text());
    let roots = receiver.spans();
    let roots = roots.iter().filter(|span| span["name"] == "POST /v1/chat/completions");
    assert_eq!(roots.count(), 1);
}

#[test]
fn collector_that_stalls_or_is_absent_harms_nothing() {
    let stalled = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = free_port();
    for port in [stalled.local_addr().unwrap().port(), absent] {
        let endpoint = format!("http://127.0.0.1:{port}");
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let mut host = host("telemetry.timeout = \"500ms\"", &env);
        for _ in 0..20 {
            let answer = post(host.port, "/v1/chat/completions", &chat("m", json!({})));
            assert_eq!(answer.status, 200);
        }
        host.wait_for_event("telemetry_not_exported", &[]);
        host.assert_no_request_lost();
        host.signal(Signal::TERM);
        assert!(host.wait_for_exit().success());
    }
}

/// Returns the headers that an engine gets of a request with these.
fn engine_headers(head: &str, sent: &[(&str, &str)]) -> String {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = engine.local_addr().unwrap().port();
    let config = format!(
        "{head}\n[[lanes]]\nname = \"x\"\nmodels = [\"m\"]\n[lanes.engine]\ndriver = \
         \"external\"\nurl = \"http://127.0.0.1:{port}/v1\"\n"
    );
    let received = std::thread::spawn(move || {
        loop {
            let (mut connection, _) = engine.accept().unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut request = Vec::new();
            let mut bytes = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match connection.read(&mut bytes) {
                    Ok(count @ 1..) => request.extend_from_slice(&bytes[..count]),
                    Ok(_) | Err(_) => break,
                }
            }
            let body = "{\"data\":[]}";
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}");
            let response = format!("{head}\r\ncontent-type: application/json\r\n\r\n{body}");
            // The host may have closed the connection of a probe.
            connection.write_all(response.as_bytes()).ok();
            let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
            if request.starts_with("post /v1/chat/completions") {
                return request;
            }
        }
    });
    let host = Host::start(&program(FAKE_ENGINE), &config).wait_until_ready();
    let body = chat("m", json!({})).to_string();
    let headers = [sent, &[JSON]].concat();
    send(host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    received.join().unwrap()
}

#[test]
fn engines_get_the_trace_context() {
    let (parent, state) = (format!("00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=1"));
    let sent = [("traceparent", parent.as_str()), state];
    let off = engine_headers("", &sent);
    assert!(off.contains(&format!("traceparent: {parent}\r\n")), "{off}");
    let head = "telemetry.endpoint = \"http://127.0.0.1:9\"";
    let on = engine_headers(head, &sent);
    assert!(on.contains(&format!("traceparent: 00-{TRACE}-")), "{on}");
    assert!(!on.contains(PARENT) && on.contains("tracestate: vendor=1\r\n"), "{on}");
    let new = engine_headers(head, &[state]);
    assert!(new.contains("traceparent: 00-") && !new.contains("tracestate"), "{new}");
}
