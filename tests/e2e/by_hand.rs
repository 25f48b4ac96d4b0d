//! Lanes and requests that operators manage by hand, and external lanes whose server comes and
//! goes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pointsman_tests::client::{Response, chat, post, stream};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::{wait_at_most, wait_until};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane};

const CHAT: &str = "/v1/chat/completions";

/// Runs `pointsman AREA COMMAND … --json` for a host; returns exit code, output and errors.
fn run(host: &Host, arguments: &[&str]) -> (i32, Value, String) {
    let output = command(host, arguments).arg("--json").output().unwrap();
    let out = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), out, errors)
}

fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(arguments).arg("--socket").arg(host.admin_socket().unwrap());
    command.env("USER", "ann").env_remove("SUDO_USER").stdin(Stdio::null());
    command
}

/// Runs a command that succeeds, and returns its output.
fn succeed(host: &Host, arguments: &[&str]) -> Value {
    let (code, out, errors) = run(host, arguments);
    assert_eq!(code, 0, "{arguments:?}: {errors}");
    out
}

fn ask(host: &Host, model: &str) -> Response {
    post(host.port, CHAT, &chat(model, json!({})))
}

#[test]
fn lane_is_unloaded_held_and_loaded_by_hand() {
    let host = host(&[lane("a", &["m"], &[]), lane("b", &["m", "b"], &[])].concat());
    let first = host.engine_pid("a");
    // An always-on lane is loaded again at once.
    succeed(&host, &["lane", "unload", "a"]);
    host.wait_for_lane("a", "ready");
    assert_ne!(host.engine_pid("a"), first);

    let held = succeed(&host, &["lane", "unload", "a", "--hold"]);
    assert_eq!((&held["engine"], &held["manual"]["mode"]), (&json!("cold"), &json!("held")));
    assert_eq!(held["manual"]["by"], "ann");
    assert_eq!(host.lane("a")["manual"], held["manual"]);
    assert_eq!(host.metric("pointsman_lane_manual", "lane=\"a\",mode=\"held\""), 1.0);
    host.wait_for_event("lane_commanded", &[("lane", "a"), ("command", "hold"), ("by", "ann")]);
    // A reload does not end a hold.
    let file = host.dir.path().join("pointsman.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("name = \"a\"\n", "name = \"a\"\nslots = 3\n")).unwrap();
    succeed(&host, &["reload"]);
    let listed = succeed(&host, &["lane", "list"]);
    assert_eq!((&listed[0]["slots"], &listed[0]["manual"]), (&json!(3), &held["manual"]));
    let answered = ask(&host, "m");
    assert_eq!((answered.status, answered.header("x-pointsman-lane")), (200, Some("b")));
    let refused = ask(&host, "a");
    assert_eq!((refused.status, refused.error_code()), (503, json!("no_lane_available")));
    assert!(refused.text().contains("[lane_held]"), "{}", refused.text());

    let (code, _, errors) = run(&host, &["lane", "drain", "a"]);
    assert!(code == 1 && errors.ends_with("[lane_held]\n"), "{errors}");
    let (code, _, errors) = run(&host, &["lane", "load", "aa"]);
    assert!(code == 1 && errors.ends_with("[lane_not_found]\n"), "{errors}");
    assert!(errors.contains("`a` or `b`"), "{errors}");

    let loaded = succeed(&host, &["lane", "load", "a"]);
    assert_eq!((&loaded["state"], &loaded["manual"]), (&json!("ready"), &Value::Null));
    assert_eq!(ask(&host, "a").status, 200);
    let listed = succeed(&host, &["lane", "list"]);
    assert_eq!((&listed[0]["name"], &listed[1]["state"]), (&json!("a"), &json!("ready")));
    host.assert_no_request_lost();
}

#[test]
fn drain_and_restart_cut_no_stream() {
    let host = host(&lane("a", &["a"], &[]));
    let first = host.engine_pid("a");
    host.set_script("a", json!({ "tokens": 20, "token-ms": 50 }));
    let mut running = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(running.read_until("data: "));
    let drained = succeed(&host, &["lane", "drain", "a"]);
    assert_eq!((&drained["manual"]["mode"], &drained["running"]), (&json!("draining"), &json!(1)));
    assert_eq!(ask(&host, "a").status, 503);
    succeed(&host, &["lane", "drain", "a", "--undo"]);
    let (code, _, errors) = run(&host, &["lane", "drain", "a", "--undo"]);
    assert!(code == 1 && errors.ends_with("[lane_not_draining]\n"), "{errors}");

    let restarted = succeed(&host, &["lane", "restart", "a"]);
    let (response, complete) = running.finish();
    assert!(complete && response.text().contains("[DONE]"), "{}", response.text());
    assert_eq!(restarted["state"], "ready");
    assert_ne!(restarted["pid"], first);
    host.assert_no_request_lost();
}

#[test]
fn load_fails_with_the_reason_of_the_engine() {
    let broken = fake_lane(
        FAKE_ENGINE,
        "a",
        &["a"],
        "load = \"on-demand\"",
        &["--load-ms", "200", "--fail-load", "3"],
    );
    let host = host(&broken);
    let (code, _, errors) = run(&host, &["lane", "load", "a"]);
    assert!(code == 1 && errors.ends_with("[lane_load_failed]\n"), "{errors}");
    assert!(errors.contains("[model_broken]"), "{errors}");
    let begun = succeed(&host, &["lane", "load", "a", "--no-wait"]);
    assert_eq!(begun["manual"]["mode"], "loading");
}

#[test]
fn log_of_an_engine_is_shown_and_followed() {
    let host = host(&lane("a", &["a"], &["--flavour", "vllm", "--load-ms", "300"]));
    let lines = |arguments: &[&str]| {
        let output = command(&host, arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let all = lines(&["lane", "logs", "a"]);
    assert!(all.lines().count() > 1, "{all}");
    assert_eq!(lines(&["lane", "logs", "a", "--lines", "1"]).lines().count(), 1);
    let mut follow = command(&host, &["lane", "logs", "a", "--follow"]);
    let log = host.dir.path().join("followed");
    follow.stdout(std::fs::File::create(&log).unwrap());
    let _follow = Killed(follow.spawn().unwrap());
    let followed = || std::fs::read_to_string(&log).unwrap();
    wait_until("the last lines are printed", || followed().starts_with(&all));
    // The next engine logs to the same place.
    let before = followed().len();
    succeed(&host, &["lane", "restart", "a"]);
    wait_until("new lines are printed", || followed().len() > before);
}

/// A process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn requests_are_listed_and_cancelled() {
    let one_slot = fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 1", &[]);
    let host = host(&format!("server.keep-alive = \"100ms\"\n{one_slot}"));
    host.set_script("a", json!({ "tokens": 1000, "token-ms": 50 }));
    let streaming = |id: &str| {
        let body = chat("a", json!({ "stream": true })).to_string();
        let headers = [("content-type", "application/json"), ("x-request-id", id)];
        pointsman_tests::client::open(host.port, "POST", CHAT, &headers, body.as_bytes())
    };
    let mut running = streaming("running-1");
    assert!(running.read_until("data: "));
    let mut waiting = streaming("waiting-1");
    assert!(waiting.read_until(": keep-alive"));
    let find = |id: &str| {
        let listed = succeed(&host, &["request", "list"]);
        listed.as_array().unwrap().iter().find(|request| request["id"] == id).cloned()
    };
    wait_until("tokens are counted", || find("running-1").unwrap()["tokens"].as_u64() > Some(1));
    let request = find("running-1").unwrap();
    assert_eq!((&request["state"], &request["lane"]), (&json!("responding"), &json!("a")));
    assert_eq!((&request["model"], &request["position"]), (&json!("a"), &Value::Null));
    let request = find("waiting-1").unwrap();
    assert_eq!((&request["state"], &request["position"]), (&json!("queued"), &json!(1)));

    for (id, stream) in [("waiting-1", waiting), ("running-1", running)] {
        assert_eq!(succeed(&host, &["request", "cancel", id])["cancelled"], 1);
        let (response, complete) = stream.finish();
        let text = response.text();
        assert!(complete && text.contains("\"request_cancelled\""), "{id}: {text}");
        assert!(!text.contains("[DONE]"), "{id}: {text}");
        wait_until("the request is gone", || find(id).is_none());
    }
    let (code, _, errors) = run(&host, &["request", "cancel", "running-1"]);
    assert!(code == 1 && errors.ends_with("[request_not_found]\n"), "{errors}");
    host.wait_for_event("request_cancelled", &[("cancelled_id", "running-1"), ("by", "ann")]);
    host.assert_no_request_lost();
    host.set_script("a", json!({}));
    assert_eq!(ask(&host, "a").status, 200, "the slot is free again");
}

#[test]
fn external_server_is_used_soon_after_it_comes_up_and_its_metrics_are_shown() {
    let port = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let host = Host::start(
        &program(FAKE_ENGINE),
        &format!(
            "[[lanes]]\nname = \"x\"\nslots = 1\n[lanes.engine]\ndriver = \"external\"\n\
             url = \"http://127.0.0.1:{port}/v1\"\n"
        ),
    );
    wait_until("the lane is down", || host.lane("x")["state"] == "down");
    let mut engine = Command::new(FAKE_ENGINE);
    engine.args(["--port", &port.to_string(), "--flavour", "vllm", "--alias", "x"]);
    engine.args(["--script", r#"{"kv-usage": 0.25}"#]).stdin(Stdio::null());
    let _engine = Killed(engine.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let health = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    wait_until("the server is up", health);
    let up = Instant::now();
    // Far less than the interval of 5 s; with time to spare for a busy machine.
    wait_at_most(Duration::from_secs(3), "the lane is ready", || {
        host.lane("x")["state"] == "ready"
    });
    println!("used after {:?}", up.elapsed());
    wait_until("metrics are scraped", || host.lane("x")["kv_used_permille"] == 250);
    assert_eq!(host.metric("pointsman_engine_kv_used_ratio", "lane=\"x\""), 0.25);
    let (code, _, errors) = run(&host, &["lane", "restart", "x"]);
    assert!(code == 1 && errors.ends_with("[lane_not_managed]\n"), "{errors}");
    assert_eq!(succeed(&host, &["lane", "drain", "x"])["manual"]["mode"], "draining");
    assert_eq!(ask(&host, "x").status, 503);
    assert_eq!(succeed(&host, &["lane", "load", "x"])["state"], "ready");
    assert_eq!(ask(&host, "x").status, 200);
}
