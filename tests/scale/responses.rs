//! Responses that one host keeps, and others are asked for: by clients, and by pickers.

use std::fs;

use pointsman_tests::client::{Response, open, send};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use pointsman_xtask::sha256;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::envoy::{Envoy, free_port};
use crate::redis::Redis;

const RESPONSES: &str = "/v1/responses";
const PEER_KEY: &str = "peer-key-0123456789";
/// The secrets of two tenants.
const SECRET: &str = "client-key-0123456789";
const OTHER_SECRET: &str = "other-key-0123456789";
const ACCESS: &str = "[access]\nkeys = \"keys.toml\"\n";

/// Returns the folder and the beginning of the configuration of a host that shares by Redis.
fn prepare(name: &str, redis: &Redis) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), PEER_KEY).unwrap();
    let key = |id: &str, secret: &str| {
        let hash = sha256(secret.as_bytes());
        format!("[[keys]]\nid = {id:?}\nhash = \"sha256:{hash}\"\ntenant = {id:?}\n")
    };
    let keys = [key("one", SECRET), key("two", OTHER_SECRET)].concat();
    fs::write(dir.path().join("keys.toml"), keys).unwrap();
    let config = format!(
        "[shared-state]\nurl = \"{}\"\n\
         [fleet]\nname = {name:?}\ndown-after = \"2s\"\n\
         [[peers]]\nname = \"peer\"\nkey-file = \"peer.key\"\n",
        redis.url()
    );
    (dir, config)
}

/// Starts a host with this name, the keys of two tenants, and an engine of its own for the model
/// `m`.
fn start(name: &str, redis: &Redis, more: &str) -> Host {
    start_open(name, redis, &format!("{more}{ACCESS}"))
}

/// Starts a host that needs no keys of clients.
fn start_open(name: &str, redis: &Redis, more: &str) -> Host {
    let (dir, config) = prepare(name, redis);
    let lane = fake_lane(FAKE_ENGINE, "own", &["m"], "slots = 4", &[]);
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &format!("{config}{more}{lane}"), &[]);
    host.wait_for_lane("own", "ready");
    wait_for_redis(&host);
    host
}

fn wait_for_redis(host: &Host) {
    wait_until("the host shares", || host.metric("pointsman_shared_state_up", "") > 0.5);
}

/// Returns the configuration of a lane of another host.
fn lane_of(host: &Host) -> String {
    let port = host.port;
    format!(
        "[[lanes]]\nname = \"far\"\n[lanes.engine]\ndriver = \"pointsman\"\nlane = \"own\"\n\
         url = \"http://127.0.0.1:{port}\"\nkey-file = \"peer.key\"\n"
    )
}

fn ask_as(secret: &str, port: u16, method: &str, path: &str, body: &Value) -> Response {
    let bearer = format!("Bearer {secret}");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
        // What only hosts may say.
        ("x-pointsman-key", "0000000000000001"),
        ("x-pointsman-tenant", "one"),
    ];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(port, method, path, &headers, body.as_bytes())
}

fn ask(port: u16, method: &str, path: &str, body: &Value) -> Response {
    ask_as(SECRET, port, method, path, body)
}

fn create(port: u16, more: &Value) -> Response {
    let mut body = json!({ "model": "m", "input": "one" });
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    ask(port, "POST", RESPONSES, &body)
}

fn path_of(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    format!("{RESPONSES}/{}", response.json()["id"].as_str().unwrap())
}

/// A host that keeps a response, and one with a lane of it, which knows that.
struct Pair {
    redis: Redis,
    keeping: Host,
    here: Host,
    created: Response,
}

impl Pair {
    fn start() -> Self {
        let redis = Redis::run(&[]);
        let keeping = start("gpu-1", &redis, "");
        let here = start("gpu-2", &redis, &lane_of(&keeping));
        here.wait_for_lane("far", "ready");
        let created = create(keeping.port, &json!({}));
        let path = path_of(&created);
        wait_until("the host knows who keeps the response", || {
            ask(here.port, "GET", &path, &Value::Null).status == 200
        });
        Self { redis, keeping, here, created }
    }

    /// Returns what is added to the request of a turn that follows the response.
    fn follow(&self) -> Value {
        json!({ "previous_response_id": self.created.json()["id"] })
    }
}

fn attempts(host: &Host) -> f64 {
    host.metric("pointsman_attempts_total", "")
}

#[test]
fn host_passes_requests_about_a_response_on_to_the_host_that_keeps_it() {
    let pair = Pair::start();
    let Pair { redis, keeping, here, created } = &pair;
    let stranger = start("gpu-3", redis, "");
    let (path, id, follow) = (path_of(created), created.json()["id"].clone(), pair.follow());
    let get = |host: &Host, path: &str| ask(host.port, "GET", path, &Value::Null);
    assert_eq!(get(here, &path).json(), created.json());
    let items = get(here, &format!("{path}/input_items?limit=5"));
    assert_eq!(items.json()["data"][0]["content"][0]["text"], "one", "{}", items.text());

    // A turn goes to the host that has the earlier ones, and not to the engine here.
    let turn = create(here.port, &follow);
    assert_eq!(turn.json()["previous_response_id"], id, "{}", turn.text());
    assert_eq!(turn.json()["model"], "m");
    assert_eq!(turn.header("x-pointsman-lane"), Some("far"));
    assert_eq!(get(keeping, &path_of(&turn)).json(), turn.json(), "it is kept there");
    let tokens = |response: &Response| response.json()["usage"]["input_tokens"].as_u64().unwrap();
    assert!(tokens(&turn) > tokens(created), "the engine gets the earlier turns");
    let bearer = format!("Bearer {SECRET}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let body = json!({ "model": "m", "input": "x", "stream": true, "previous_response_id": id });
    let body = body.to_string();
    let streamed = open(here.port, "POST", RESPONSES, &headers, body.as_bytes());
    let (streamed, is_whole) = streamed.finish();
    assert!(is_whole && streamed.text().contains("response.completed"), "{}", streamed.text());

    // Without a lane of the host that keeps it, as before.
    for response in [get(&stranger, &path), create(stranger.port, &follow)] {
        assert_eq!((response.status, response.error_code()), (404, "response_elsewhere".into()));
    }
    assert!(attempts(&stranger) < 0.1, "its engine gets nothing");

    let deleted = ask(here.port, "DELETE", &path, &Value::Null);
    assert_eq!(deleted.json()["deleted"], true, "{}", deleted.text());
    for host in [keeping, here] {
        let gone = get(host, &path);
        assert_eq!((gone.status, gone.error_code()), (404, "not_found".into()));
    }
    assert_eq!(create(here.port, &follow).error_code(), "previous_response_not_found");
    for host in [keeping, here, &stranger] {
        host.assert_no_request_lost();
    }
}

#[test]
fn response_of_another_tenant_is_unknown_at_every_host() {
    let pair = Pair::start();
    let Pair { keeping, here, created, .. } = &pair;
    let path = path_of(created);
    for host in [keeping, here] {
        for (method, path) in [("GET", path.clone()), ("DELETE", path.clone())] {
            let response = ask_as(OTHER_SECRET, host.port, method, &path, &Value::Null);
            assert_eq!((response.status, response.error_code()), (404, "not_found".into()));
        }
        let id = &created.json()["id"];
        let body = json!({ "model": "m", "input": "x", "previous_response_id": id });
        let response = ask_as(OTHER_SECRET, host.port, "POST", RESPONSES, &body);
        let code = response.error_code();
        assert_eq!((response.status, code), (404, "previous_response_not_found".into()));
    }
    // Another host may ask, and is told nothing without the client's key.
    let response = ask_as(PEER_KEY, keeping.port, "GET", &path, &Value::Null);
    assert_eq!((response.status, response.error_code()), (404, "not_found".into()));
    assert_eq!(ask(here.port, "GET", &path, &Value::Null).status, 200, "it is still there");
}

#[test]
fn request_that_has_been_on_too_many_hosts_is_not_passed_on() {
    let redis = Redis::run(&[]);
    let keeping = start_open("gpu-1", &redis, "");
    let here = start_open("gpu-2", &redis, &lane_of(&keeping));
    here.wait_for_lane("far", "ready");
    let body = json!({ "model": "m", "input": "one" }).to_string();
    let json = ("content-type", "application/json");
    let created = send(keeping.port, "POST", RESPONSES, &[json], body.as_bytes());
    let path = path_of(&created);
    let get = |hops: &str| {
        let bearer = format!("Bearer {PEER_KEY}");
        // The clients of a host without keys have the number 0.
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-pointsman-key", "0"),
            ("x-pointsman-hops", hops),
        ];
        let response = send(here.port, "GET", &path, &headers, b"");
        (response.status, response.error_code())
    };
    wait_until("the host knows who keeps it", || get("a").0 == 200);
    assert_eq!(get("a,b,c").0, 200);
    assert_eq!(get("a,b,c,d"), (404, "response_elsewhere".into()));
    assert_eq!(get("a,,b"), (404, "response_elsewhere".into()));
}

#[test]
fn background_response_is_cancelled_over_another_host_and_a_killed_host_is_named() {
    let pair = Pair::start();
    let Pair { keeping, here, created, .. } = &pair;
    let first_path = path_of(created);
    let more = json!({ "background": true, "previous_response_id": created.json()["id"] });
    let queued = create(here.port, &more);
    let path = path_of(&queued);
    assert_eq!(queued.json()["background"], true, "{}", queued.text());
    let cancel = ask(here.port, "POST", &format!("{path}/cancel"), &Value::Null);
    assert_eq!(cancel.status, 200, "{}", cancel.text());
    let status = |port: u16| ask(port, "GET", &path, &Value::Null).json()["status"].clone();
    wait_until("it has ended", || {
        ["cancelled", "completed"].map(Value::from).contains(&status(keeping.port))
    });
    assert_eq!(status(here.port), status(keeping.port));
    keeping.signal(Signal::KILL);
    let response = ask(here.port, "GET", &first_path, &Value::Null);
    let code = "response_host_unreachable";
    assert_eq!((response.status, response.error_code()), (503, code.into()), "{}", response.text());
    assert!(response.text().contains("gpu-1"));
    wait_until("the lane is down", || here.lane("far")["state"] == "down");
    let turn = create(here.port, &pair.follow());
    assert_eq!((turn.status, turn.error_code()), (503, "no_lane_available".into()));
}

#[test]
fn picker_sends_a_conversation_to_the_host_that_keeps_it() {
    let redis = Redis::run(&[]);
    let hosts = [start("gpu-1", &redis, ""), start("gpu-2", &redis, "")];
    let (dir, config) = prepare("picker", &redis);
    let of_host = |(name, host): (&str, &Host)| {
        let port = host.port;
        format!(
            "[[pick.hosts]]\nname = {name:?}\nurl = \"http://127.0.0.1:{port}\"\n\
             key-file = \"peer.key\"\n"
        )
    };
    let found: Vec<String> = ["g1", "g2"].into_iter().zip(&hosts).map(of_host).collect();
    let config = format!("{config}{ACCESS}[pick]\n{}", found.concat());
    let picker = Host::start_picker(&program(FAKE_ENGINE), dir, &config);
    wait_until("the lanes of both hosts are ready", || {
        let status = picker.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.len() == 2 && lanes.iter().all(|lane| lane["state"] == "ready")
    });
    wait_for_redis(&picker);
    let ports = [hosts[0].port, hosts[1].port];
    let envoy = Envoy::start([picker.port, free_port()], ports, |text| text);
    // Each host gets some of them.
    let created: Vec<Response> = (0..6).map(|_| create(envoy.port, &json!({}))).collect();
    for first in &created {
        let path = path_of(first);
        wait_until("the picker knows who keeps it", || {
            ask(envoy.port, "GET", &path, &Value::Null).status == 200
        });
        let follow = json!({ "previous_response_id": first.json()["id"] });
        let turn = create(envoy.port, &follow);
        assert_eq!(turn.status, 200, "{}\n{}", turn.text(), picker.log_text());
        let other = ask_as(OTHER_SECRET, envoy.port, "GET", &path, &Value::Null);
        assert_eq!((other.status, other.error_code()), (404, "not_found".into()));
    }
    let executed = attempts(&hosts[0]) + attempts(&hosts[1]);
    assert!((executed - 12.0).abs() < 0.1, "each request is executed once: {executed}");
}
