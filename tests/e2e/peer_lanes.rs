//! Lanes of another host as lanes of this one: `driver = "pointsman"`.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use pointsman_tests::client::{Response, chat, open, post, send};
use pointsman_tests::host::{Host, fake_lane, program, with_json_log};
use pointsman_tests::wait_until;
use pointsman_xtask::sha256;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "peer-key-0123456789";
const CLIENT: &str = "client-key-0123456789";
/// The keys of hosts that know each other.
const PEERS: &str = "[[peers]]\nname = \"other\"\nkey-file = \"peer.key\"\n";
const CLIENTS: &str = "[[keys]]\ntenant = \"team\"\nenv = \"CLIENT_KEY\"\n";

/// Starts a host that has the key of other hosts, and sends the same.
fn start(config: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), KEY).unwrap();
    fs::write(dir.path().join("fleet.salt"), "salt-0123456789abcdef").unwrap();
    let hash = sha256(CLIENT.as_bytes());
    let key = format!(
        "[[keys]]\nid = \"one\"\nhash = \"sha256:{hash}\"\ntenant = \"team\"\n\
         limits = {{ requests-per-minute = 2 }}\n"
    );
    fs::write(dir.path().join("keys.toml"), key).unwrap();
    let config = format!("{config}\n{PEERS}");
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("CLIENT_KEY", CLIENT)])
}

/// Returns the configuration of a lane of another host.
fn peer_lane(name: &str, host: &Host, there: &str) -> String {
    let port = host.port;
    format!(
        "[[lanes]]\nname = {name:?}\n[lanes.engine]\ndriver = \"pointsman\"\nlane = {there:?}\n\
         url = \"http://127.0.0.1:{port}\"\nkey-file = \"peer.key\"\n"
    )
}

/// Replaces the configuration, and has it reloaded.
fn reload(host: &Host, config: &str) {
    let before = host.events("config_reloaded", &[]).len();
    let config = with_json_log(&format!("{config}\n{PEERS}"));
    fs::write(host.dir.path().join("pointsman.toml"), config).unwrap();
    host.signal(Signal::HUP);
    wait_until("the configuration is reloaded", || {
        host.events("config_reloaded", &[]).len() > before
    });
}

fn ask(host: &Host, model: &str) -> Response {
    post(host.port, CHAT, &chat(model, json!({})))
}

fn served_by(response: &Response) -> Option<&str> {
    response.header("x-pointsman-lane")
}

#[test]
fn lane_of_another_host_has_its_names_state_and_slots() {
    let there = start(&lane("big", &["m"], &["--slots", "2"])).wait_until_ready();
    let here = start(&[CLIENTS, &peer_lane("far", &there, "big")].concat());
    here.wait_for_lane("far", "ready");
    let authorization = format!("Bearer {CLIENT}");
    for model in ["m", "far", "big"] {
        let body = chat(model, json!({})).to_string();
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
            ("x-request-id", "carried-on"),
            // What only hosts may say.
            ("x-pointsman-tenant", "forged"),
            ("x-pointsman-hops", "a,b,c,d,e"),
        ];
        let response = send(here.port, "POST", CHAT, &headers, body.as_bytes());
        assert_eq!((response.status, served_by(&response)), (200, Some("far")), "{model}");
        assert_eq!(response.json()["model"], model);
    }
    let accepted = || there.log_text().matches("\"tenant\":\"team\"").count();
    wait_until("the other host knows the tenant", || accepted() > 0);
    assert!(there.log_text().contains("carried-on"), "the id of the request is the client's");
    assert!(!there.log_text().contains("forged"));
    here.assert_no_request_lost();
}

#[test]
fn lane_that_is_not_loaded_there_is_loaded_for_a_request() {
    let more = "load = \"on-demand\"\nexpected-load-time = \"7s\"";
    let lane = fake_lane(FAKE_ENGINE, "big", &["m"], more, &["--load-ms", "300"]);
    let there = start(&lane).wait_until_ready();
    let here = start(&peer_lane("far", &there, "big"));
    here.wait_for_lane("far", "unloaded");
    assert_eq!(ask(&here, "m").status, 200);
    here.wait_for_lane("far", "ready");
}

#[test]
fn lane_that_the_other_host_lacks_is_down_with_the_lanes_that_there_are() {
    let there = start(&lane("big", &["m"], &[])).wait_until_ready();
    let here = start(&peer_lane("far", &there, "bigg"));
    let problem = || here.lane("far")["problem"].to_string();
    wait_until("the problem is known", || problem().contains("peer_lane_missing"));
    assert!(problem().contains("`big`"), "{}", problem());
    let refused = ask(&here, "far");
    assert_eq!((refused.status, refused.error_code()), (503, json!("no_lane_available")));
    assert!(!refused.text().contains("`big`"), "clients do not learn the lanes: {refused:?}");
}

/// Returns the number of requests that a host has accepted.
fn accepted(host: &Host) -> f64 {
    host.metric("pointsman_accepted_total", "")
}

/// The hosts of a ring, each of which has a lane of the next one; all of their engines fail.
fn ring(len: usize) -> Vec<Host> {
    let own: Vec<String> = (0..len)
        .map(|index| lane(&format!("own{index}"), &["m"], &["--script", r#"{"status":500}"#]))
        .collect();
    let hosts: Vec<Host> = own.iter().map(|own| start(own).wait_until_ready()).collect();
    for (index, host) in hosts.iter().enumerate() {
        let next = (index + 1) % len;
        let far = peer_lane("far", &hosts[next], &format!("own{next}"));
        reload(host, &[own[index].as_str(), &far].concat());
    }
    for host in &hosts {
        host.wait_for_lane("far", "ready");
    }
    hosts
}

#[test]
fn requests_do_not_go_round_in_circles() {
    for len in [2, 3] {
        let hosts = ring(len);
        let before: f64 = hosts.iter().map(accepted).sum();
        for _ in 0..3 {
            let response = ask(&hosts[0], "m");
            let code = response.error_code();
            assert!(response.status >= 500, "{len}: {response:?}");
            assert!(code == json!("engine_error") || code == json!("loop_detected"), "{code}");
        }
        let after: f64 = hosts.iter().map(accepted).sum();
        // Each host is asked at most once by each other one, and the first one once more.
        assert!(after - before <= 3.0 * (len as f64 + 1.0), "{len}: {before} {after}");
        hosts.iter().for_each(Host::assert_no_request_lost);
    }
}

#[test]
fn request_that_has_been_here_stays_here() {
    let there = start(&lane("big", &["m"], &[])).wait_until_ready();
    let here = start(&peer_lane("far", &there, "big"));
    here.wait_for_lane("far", "ready");
    let authorization = format!("Bearer {KEY}");
    let ask = |hops: &str| {
        let body = chat("m", json!({})).to_string();
        let headers = [
            ("content-type", "application/json"),
            ("authorization", authorization.as_str()),
            ("x-pointsman-hops", hops),
        ];
        let response = send(here.port, "POST", CHAT, &headers, body.as_bytes());
        (response.status, response.json()["error"]["code"].clone())
    };
    assert_eq!(ask("a"), (200, Value::Null));
    assert_eq!(ask("a,b,c,d"), (508, json!("loop_detected")), "too many hosts");
    let mut fleet = open(here.port, "GET", "/fleet", &[("authorization", &authorization)], b"");
    assert!(fleet.read_until("\n\n"));
    let text = String::from_utf8_lossy(&fleet.body).into_owned();
    let topology = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let topology: Value = serde_json::from_str(topology).unwrap();
    assert_eq!(topology["lanes"], json!([]), "lanes of others are not told of");
    let id = topology["host"]["id"].as_str().unwrap();
    assert_eq!(ask(id), (508, json!("loop_detected")));
}

/// Sends requests while the other host disappears, and returns how they ended.
fn disappear(signal: Signal) -> Vec<(u16, Option<String>)> {
    let there = start(&fake_lane(FAKE_ENGINE, "big", &["m"], "slots = 8", &[])).wait_until_ready();
    there.set_script("big", json!({ "prompt-ms": 1500, "tokens": 2 }));
    let stale = "[fleet]\nstale-after = \"1500ms\"\ndown-after = \"3s\"\n";
    let more = "load = \"on-demand\"";
    let spare = fake_lane(FAKE_ENGINE, "spare", &["m"], more, &["--load-ms", "100"]);
    let here = start(&[stale, &peer_lane("far", &there, "big"), &spare].concat());
    here.wait_for_lane("far", "ready");
    let port = here.port;
    let requests: Vec<_> =
        (0..8).map(|_| thread::spawn(move || post(port, CHAT, &chat("m", json!({}))))).collect();
    wait_until("the other host has requests", || accepted(&there) >= 4.0);
    there.signal(signal);
    let ends = requests.into_iter().map(|request| {
        let response = request.join().unwrap();
        (response.status, served_by(&response).map(str::to_owned))
    });
    let ends = ends.collect();
    here.wait_for_lane("far", "down");
    assert!(here.lane("far")["problem"].to_string().contains("peer_unreachable"));
    assert_eq!(served_by(&ask(&here, "m")), Some("spare"));
    here.assert_no_request_lost();
    if signal == Signal::STOP {
        there.signal(Signal::CONT);
        here.wait_for_lane("far", "ready");
    }
    ends
}

#[test]
fn requests_of_a_host_that_is_killed_are_served_elsewhere() {
    let ends = disappear(Signal::KILL);
    assert!(ends.iter().all(|(status, _)| *status == 200), "{ends:?}");
    assert!(ends.iter().any(|(_, lane)| lane.as_deref() == Some("spare")), "{ends:?}");
}

#[test]
fn requests_of_a_host_that_is_frozen_are_served_elsewhere() {
    let ends = disappear(Signal::STOP);
    assert!(ends.iter().all(|(status, _)| *status == 200), "{ends:?}");
    assert!(ends.iter().any(|(_, lane)| lane.as_deref() == Some("spare")), "{ends:?}");
}

#[test]
fn guards_and_limits_hold_for_lanes_of_other_hosts() {
    let there = start(&lane("big", &["m"], &[])).wait_until_ready();
    let guard = "[[guards]]\nname = \"stay\"\nnever-labels = { where = \"far\" }\n\
                 when.headers = { x-data-class = \"secret\" }\n";
    let far = peer_lane("far", &there, "big");
    let far = far.replace("[lanes.engine]", "labels = { where = \"far\" }\n[lanes.engine]");
    let here = start(&["[access]\nkeys = \"keys.toml\"\n", guard, &far].concat());
    here.wait_for_lane("far", "ready");
    let authorization = format!("Bearer {CLIENT}");
    let ask = |more: &[(&str, &str)]| {
        let body = chat("m", json!({})).to_string();
        let own = [("content-type", "application/json"), ("authorization", authorization.as_str())];
        let headers = [&own[..], more].concat();
        let response = send(here.port, "POST", CHAT, &headers, body.as_bytes());
        (response.status, response.json()["error"]["code"].clone())
    };
    assert_eq!(ask(&[("x-data-class", "secret")]), (403, json!("guard_refused")));
    assert_eq!(ask(&[]), (200, Value::Null));
    assert_eq!(ask(&[]), (429, json!("rate_limit_exceeded")));
    assert_eq!(accepted(&there), 1.0, "the other host got what was allowed");
}

/// Sends a request without waiting for its response, which does not come.
fn begin(host: &Host, id: &str, more: &str) -> TcpStream {
    let body = chat("m", json!({})).to_string();
    let len = body.len();
    let mut stream = TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         x-request-id: {id}\r\ncontent-length: {len}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

/// Returns the place of a request in a queue of this host; `None` if it is not queued. To the id of
/// a client, a host adds its own part.
fn position(host: &Host, id: &str) -> Option<u64> {
    let requests = host.get("/requests").json()["requests"].take();
    let is_it =
        |request: &&Value| request["id"].as_str().is_some_and(|known| known.starts_with(id));
    requests.as_array()?.iter().find(is_it)?["position"].as_u64()
}

#[test]
fn priority_of_the_first_host_holds_in_the_queue_of_the_other() {
    let big = fake_lane(FAKE_ENGINE, "big", &["m"], "slots = 1", &[]);
    let there = start(&big).wait_until_ready();
    there.set_script("big", json!({ "prompt-ms": 60_000 }));
    let guard = "[[guards]]\nname = \"urgent\"\nmin-priority = 5\n\
                 when.headers = { x-urgent = \"1\" }\n";
    let far = peer_lane("far", &there, "big");
    let here = start(&[guard, &far, "queue-there = 4\n"].concat());
    here.wait_for_lane("far", "ready");
    let _served = begin(&here, "served", "");
    wait_until("the engine has a request", || there.metric("pointsman_lane_running", "") > 0.0);
    let _low = begin(&here, "low", "");
    wait_until("the second one waits there", || position(&there, "low") == Some(1));
    let _high = begin(&here, "high", "x-urgent: 1\r\n");
    wait_until("the third one waits there", || position(&there, "high").is_some());
    let positions = ["high", "low"].map(|id| position(&there, id));
    assert_eq!(positions, [Some(1), Some(2)], "the urgent one overtakes");
}

/// Returns the tokens of a prompt that a lane is expected to have cached.
fn cached_tokens(host: &Host, lane: &str, body: &Value) -> u64 {
    let file = host.dir.path().join("request.json");
    fs::write(&file, body.to_string()).unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("decide").arg(&file).args(["--json", "--socket"]);
    let output = command.arg(host.admin_socket().unwrap()).output().unwrap();
    let decided: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lanes = decided["lanes"].as_array().unwrap();
    lanes.iter().find(|known| known["name"] == lane).unwrap()["cached_tokens"].as_u64().unwrap()
}

#[test]
fn lane_is_known_for_the_prompts_that_the_other_host_has_served() {
    let salt = "[fleet]\nsalt-file = \"fleet.salt\"\n";
    let there = start(&[salt, &lane("big", &["m"], &[])].concat()).wait_until_ready();
    let here = start(&[salt, &peer_lane("far", &there, "big")].concat());
    here.wait_for_lane("far", "ready");
    let prompt = |text: &str| {
        let messages = json!([{ "role": "user", "content": text.repeat(200) }]);
        json!({ "model": "m", "messages": messages })
    };
    let (known, other) = (prompt("the same long beginning of all prompts, "), prompt("different "));
    assert_eq!(cached_tokens(&here, "far", &known), 0);
    // Not by this host, which can know of it only by what the other one tells.
    assert_eq!(post(there.port, CHAT, &known).status, 200);
    wait_until("the prompt is known", || cached_tokens(&here, "far", &known) > 500);
    assert_eq!(cached_tokens(&here, "far", &other), 0);
}

#[test]
fn deadline_of_the_first_host_holds_and_none_of_a_client() {
    let there = start(&lane("big", &["m"], &[])).wait_until_ready();
    there.set_script("big", json!({ "prompt-ms": 1000, "tokens": 1 }));
    let authorization = format!("Bearer {KEY}");
    let ask = |more: &[(&str, &str)]| {
        let own = [("content-type", "application/json"), ("x-pointsman-deadline-ms", "200")];
        let headers = [&own[..], more].concat();
        let body = chat("m", json!({})).to_string();
        let response = send(there.port, "POST", CHAT, &headers, body.as_bytes());
        (response.status, response.json()["error"]["code"].clone())
    };
    assert_eq!(ask(&[("authorization", authorization.as_str())]), (504, json!("engine_timeout")));
    assert_eq!(ask(&[]), (200, Value::Null));
}

#[test]
fn operators_see_the_hosts_of_lanes_and_who_reads_this_one() {
    let big = fake_lane(FAKE_ENGINE, "big", &["m"], "slots = 2", &[]);
    let there = start(&["[fleet]\nname = \"gpu-2\"\n", &big].concat()).wait_until_ready();
    let stale = "[fleet]\nstale-after = \"500ms\"\ndown-after = \"1500ms\"\n";
    let here = start(&[stale, &peer_lane("far", &there, "big")].concat());
    here.wait_for_lane("far", "ready");
    let found = here.lane("far")["host"].clone();
    assert_eq!((&found["name"], &found["lane"]), (&json!("gpu-2"), &json!("big")));
    assert_eq!((&found["liveness"], &found["there"]["state"]), (&json!("live"), &json!("ready")));
    assert_eq!(found["there"]["slots"], 2);
    assert!(found["silent_ms"].as_u64().is_some_and(|silent| silent < 1500), "{found}");
    assert!(!here.status().to_string().contains(KEY));
    assert_eq!(there.lane("big")["host"], Value::Null, "its own lane");
    let readers = there.status()["fleet_readers"].clone();
    assert_eq!(readers.as_array().map(Vec::len), Some(1), "{readers}");
    assert_eq!(readers[0]["name"], "other");
    assert!(readers[0]["since_unix_ms"].is_u64(), "{readers}");
    there.signal(Signal::STOP);
    wait_until("the host is down", || here.lane("far")["host"]["liveness"] == "down");
    let found = here.lane("far")["host"].clone();
    assert!(found["silent_ms"].as_u64().is_some_and(|silent| silent >= 1500), "{found}");
    let mut list = Command::new(program(FAKE_ENGINE));
    list.args(["lane", "list", "--socket"]).arg(here.admin_socket().unwrap());
    let text = String::from_utf8(list.output().unwrap().stdout).unwrap();
    assert!(text.contains("gpu-2") && text.contains("no event for"), "{text}");
    there.signal(Signal::CONT);
    wait_until("the host is live", || here.lane("far")["host"]["liveness"] == "live");
    drop(here);
    wait_until("the reader is gone", || there.status()["fleet_readers"] == json!([]));
}
