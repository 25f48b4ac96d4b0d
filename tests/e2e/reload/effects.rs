//! What each key of the configuration does in a running host, and when.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{chat, post, send};
use pointsman_tests::deployment::{Deployment, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use super::config;
use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";

/// Starts a host with an external lane `a` and these sections in front of it.
fn start(engine: &HostileEngine, sections: &str) -> Deployment {
    let text = format!("{sections}{}", external_lane("a", &["a"], engine, ""));
    Deployment::start(FAKE_ENGINE, policy_dir(&[]), &text)
}

/// Writes a configuration, waits until the host has examined it by itself, and returns the plan.
fn write(deployment: &Deployment, sections: &str, lanes: &str) -> Value {
    let examined = || deployment.host.status()["config"]["last_reload"].clone();
    let before = deployment.host.metric("pointsman_config_reloads_total", "");
    deployment.write_config(&format!("{sections}{lanes}"));
    wait_until("the host has reloaded", || {
        deployment.host.metric("pointsman_config_reloads_total", "") > before
    });
    assert_eq!(deployment.host.status()["config"]["error"], Value::Null);
    examined()["plan"].clone()
}

/// Returns the status of a request for the models, to this host name.
fn status_of(port: u16, name: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn settings_of_requests_change_at_once() {
    let engine = HostileEngine::honest();
    let deployment = start(&engine, "");
    let port = deployment.host.port;
    let lane = external_lane("a", &["a"], &engine, "");
    let ask = |body: Value| post(port, CHAT, &body);
    let long = "word ".repeat(1000);
    let long = json!({ "model": "a", "messages": [{ "role": "user", "content": long }] });
    assert_eq!(ask(long.clone()).status, 200);
    let plan = write(&deployment, "[server]\nmax-body = \"1KiB\"\n", &lane);
    assert_eq!(plan["changed"], json!(["server.max-body"]));
    assert_eq!(ask(long.clone()).status, 413);
    assert_eq!(deployment.host.status()["config"]["generation"], 2);
    assert_eq!(deployment.host.metric("pointsman_config_generation", ""), 2.0);

    let listener = "[server]\ncors = { origins = [\"https://x\"] }\nmodels = { alias = \"a\" }\n";
    write(&deployment, listener, &lane);
    assert_eq!(ask(long).status, 200);
    assert_eq!(ask(chat("alias", json!({}))).status, 200);
    let preflight = [("origin", "https://x"), ("access-control-request-method", "POST")];
    let response = send(port, "OPTIONS", CHAT, &preflight, b"");
    assert_eq!(response.header("access-control-allow-origin"), Some("https://x"));
    let plan = write(&deployment, "[server]\npath-prefix = \"/llm\"\n", &lane);
    let changed = ["server.cors.origins", "server.models", "server.path-prefix"];
    assert_eq!(plan["changed"], json!(changed));
    assert_eq!(ask(chat("a", json!({}))).status, 404);
    assert_eq!(post(port, "/llm/v1/chat/completions", &chat("a", json!({}))).status, 200);

    let by_name = || status_of(port, "other.example");
    write(&deployment, "", &lane);
    assert_eq!(by_name(), 421);
    write(&deployment, "[server]\nhosts = [\"other.example\"]\n", &lane);
    assert_eq!(by_name(), 200);
    deployment.host.assert_no_request_lost();
}

#[test]
fn records_are_turned_on_and_off() {
    let engine = HostileEngine::honest();
    let deployment = start(&engine, "");
    let lane = external_lane("a", &["a"], &engine, "");
    let lines = |folder: &str| {
        let file = deployment.host.dir.path().join(folder).join("decisions.jsonl");
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"decision\"")).count()
    };
    let ask = || assert_eq!(deployment.send_chat("a").status, 200);
    ask();
    write(&deployment, "[records]\ndir = \"one\"\n", &lane);
    ask();
    wait_until("a record is written", || lines("one") == 1);
    write(&deployment, "[records]\ndir = \"two\"\nsample = \"0%\"\n", &lane);
    ask();
    write(&deployment, "[records]\ndir = \"two\"\n", &lane);
    ask();
    wait_until("a record is in the other folder", || lines("two") == 1);
    write(&deployment, "", &lane);
    ask();
    // A folder that cannot be used changes nothing.
    fs::write(deployment.host.dir.path().join("file"), "").unwrap();
    let broken = format!("[server]\nmax-body = \"1KiB\"\n[records]\ndir = \"file\"\n{lane}");
    deployment.write_config(&broken);
    let outcome = deployment.reload();
    assert_eq!(outcome["result"], "rejected");
    assert!(outcome["error"].as_str().unwrap().contains("records.dir"), "{outcome}");
    assert_eq!((lines("one"), lines("two")), (1, 1));
}

#[test]
fn keys_that_take_effect_later_are_named_until_they_are_changed_back() {
    let engine = HostileEngine::honest();
    let deployment = start(&engine, "");
    let lane = external_lane("a", &["a"], &engine, "");
    let later = "[server]\nhttp2 = false\nmax-body = \"2MiB\"\n[state]\ndir = \"elsewhere\"\n\
                 [[listeners]]\naddress = \"127.0.0.1:1\"\n";
    let plan = write(&deployment, later, &lane);
    assert_eq!(plan["changed"], json!(["server.max-body"]));
    assert_eq!(plan["handover"], json!(["listeners.\"127.0.0.1:1\"", "server.http2"]));
    assert_eq!(plan["restart"], json!(["state.dir"]));
    // Another change does not make the host forget them.
    write(&deployment, &later.replace("2MiB", "3MiB"), &lane);
    let status = deployment.host.status()["config"].clone();
    assert_eq!(status["handover_for"], plan["handover"]);
    assert_eq!(status["restart_for"], json!(["state.dir"]));
    assert!(!deployment.host.dir.path().join("elsewhere").exists());
    write(&deployment, "", &lane);
    let status = deployment.host.status()["config"].clone();
    assert_eq!((&status["handover_for"], &status["restart_for"]), (&json!([]), &json!([])));
    deployment.reload();
    assert_eq!(deployment.host.status()["config"]["last_reload"]["result"], "unchanged");
    assert_eq!(deployment.send_chat("a").status, 200);
}

/// Of an external lane, which has no engine to restart.
#[test]
fn properties_of_lanes_change_at_once() {
    let engine = HostileEngine::honest();
    let deployment = start(&engine, "");
    let base = external_lane("a", &["a"], &engine, "");
    let lane_of = |field: &str| deployment.host.lane("a")[field].clone();
    for (more, path) in [
        ("cost = 7", "lanes.a.cost"),
        ("labels = { kind = \"x\" }", "lanes.a.labels"),
        ("max-context = 4096", "lanes.a.max-context"),
    ] {
        let plan = write(&deployment, "", &external_lane("a", &["a"], &engine, more));
        let changed = plan["changed"].as_array().unwrap();
        assert!(changed.contains(&json!(path)), "{plan}");
        assert_eq!((&plan["restarted"], &plan["added"]), (&json!([]), &json!([])));
    }
    let plan = write(&deployment, "", &base.replace("slots = 16", "slots = 3"));
    assert!(plan["changed"].as_array().unwrap().contains(&json!("lanes.a.slots")), "{plan}");
    assert_eq!(lane_of("slots_free"), 3);
    let alias = "[[models]]\nname = \"alias\"\nlanes = [\"a\"]\n[queue]\nper-lane = 0\n";
    let plan = write(&deployment, alias, &base);
    assert_eq!(plan["added"], json!(["models.alias"]));
    assert_eq!(deployment.send_chat("alias").status, 200);
    write(&deployment, "", &base);
    assert_eq!(deployment.send_chat("alias").status, 404);
    deployment.host.assert_no_request_lost();
}

#[test]
fn lanes_are_added_and_removed() {
    let engine = HostileEngine::honest();
    let deployment = start(&engine, "");
    let (a, b) = (
        external_lane("a", &["a", "auto"], &engine, ""),
        external_lane("b", &["b", "auto"], &engine, ""),
    );
    let plan = write(&deployment, "", &format!("{a}{b}"));
    assert_eq!((&plan["added"], &plan["removed"]), (&json!(["lanes.b"]), &json!([])));
    wait_until("the new lane serves", || deployment.send_chat("b").status == 200);
    let plan = write(&deployment, "", &b);
    assert_eq!(plan["removed"], json!(["lanes.a"]));
    assert_eq!(deployment.send_chat("a").status, 404);
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-lane"), Some("b"));
    let lanes = deployment.host.status()["lanes"].clone();
    let names: Vec<&str> =
        lanes.as_array().unwrap().iter().map(|lane| lane["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b"]);
    deployment.host.assert_no_request_lost();
}

/// Returns a policy whose compilation takes a while: many functions with many instructions.
fn large_guest() -> Guest {
    let body = "(local.set 0 (i64.mul (i64.add (local.get 0) (i64.const 7)) (local.get 1)))
        (local.set 1 (i64.xor (i64.shl (local.get 1) (i64.const 3)) (local.get 0)))";
    let function =
        format!("(func (param i64) (param i64) (result i64) {} (local.get 1))", body.repeat(100));
    Guest::new("p").reason("large").code(&function.repeat(600))
}

#[test]
fn revoked_key_does_not_wait_for_a_compiler() {
    let dir = policy_dir(&[Guest::new("p").reason("small")]);
    fs::write(dir.path().join("one"), "secret-one").unwrap();
    fs::write(dir.path().join("two"), "secret-two").unwrap();
    let key = |file: &str| format!("[[keys]]\ntenant = {file:?}\nfile = {file:?}\n");
    let chain = pointsman_tests::deployment::chain(&["p"], "");
    let with = |keys: &str| format!("{keys}{}", config(&chain));
    let both = with(&(key("one") + &key("two")));
    let deployment = Deployment::start(FAKE_ENGINE, dir, &both);
    let ask = |secret: &str| {
        let bearer = format!("Bearer {secret}");
        let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
        let body = chat("auto", json!({ "max_tokens": 1 })).to_string();
        send(deployment.host.port, "POST", CHAT, &headers, body.as_bytes())
    };
    let reason = |secret: &str| ask(secret).header("x-pointsman-reason").map(str::to_owned);
    assert_eq!(reason("secret-one").as_deref(), Some("small"));
    deployment.write_policy(&large_guest());
    let compiles = || {
        let children = deployment.host.descendants();
        children.iter().any(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.contains("compile-policy")
        })
    };
    wait_until("the policy is being compiled", compiles);
    deployment.write_config(&with(&key("two")));
    wait_until("the key is revoked", || ask("secret-one").status == 401);
    assert!(compiles(), "the compiler has ended before the key was revoked");
    assert_eq!(reason("secret-two").as_deref(), Some("small"));
    wait_until("the policy is active", || reason("secret-two").as_deref() == Some("large"));
    assert_eq!(ask("secret-one").status, 401);
}
