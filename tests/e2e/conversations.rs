//! Conversations that survive a switch: what the slots of a llama.cpp have cached is saved before
//! its lane is unloaded, and restored before the next request of the conversation is sent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use pointsman_tests::client::{Response, get, post, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";

/// Returns a configuration with two lanes that take turns. `flags` are those of the fake engines.
fn two_lanes(head: &str, flags: &str) -> String {
    let lane = |name: &str| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"gpu\"\nmemory = \"8GiB\"\nslots = 2\n\
             expected-load-time = \"1s\"\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
             program = [{FAKE_ENGINE:?}]\nmodel = \"/m/{name}.gguf\"\ncontext = 32768\n\
             env = {{ FAKE_ENGINE = {flags:?} }}\n"
        )
    };
    format!(
        "switching = {{ min-residency = 0.0, linger = \"0s\" }}\n{head}\
         [[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{}{}",
        lane("a"),
        lane("b")
    )
}

fn start(head: &str, flags: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), &two_lanes(head, flags))
}

/// A conversation with so many turns, which is longer than the shortest that is saved.
fn conversation(name: &str, turns: usize) -> Vec<Value> {
    let mut messages = Vec::new();
    for turn in 0..turns {
        let text = format!("{name}, part {turn}: {}", "the quick brown fox ".repeat(60));
        messages.push(json!({ "role": "user", "content": text }));
        messages.push(json!({ "role": "assistant", "content": format!("answer {turn}") }));
    }
    messages.pop();
    messages
}

fn body(lane: &str, messages: &[Value]) -> Value {
    json!({ "model": lane, "messages": messages, "max_tokens": 4, "temperature": 0 })
}

fn ask(host: &Host, lane: &str, messages: &[Value]) -> Response {
    let response = post(host.port, CHAT, &body(lane, messages));
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

fn cached(response: &Response) -> u64 {
    response.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// Loads the other lane.
fn switch_to(host: &Host, lane: &str) {
    ask(host, lane, &[json!({ "role": "user", "content": "Hello." })]);
}

fn engine(host: &Host, lane: &str) -> Value {
    get(host.engine_port(lane), "/fake/state").json()
}

/// Stops a host as an operator does, and returns its directory for the next one.
fn stop(mut host: Host) -> TempDir {
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    host.into_dir()
}

/// Returns the saved files of a lane.
fn files(host: &Host, lane: &str) -> Vec<PathBuf> {
    let states = host.dir.path().join("state/pointsman");
    let state = fs::read_dir(states).unwrap().next().unwrap().unwrap().path();
    let folder = state.join("conversations").join(lane);
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Waits until the disk has what was saved of a lane.
fn wait_for_files(host: &Host, lane: &str, count: usize) {
    wait_until("conversations are saved", || files(host, lane).len() == 2 * count);
}

fn metric(host: &Host, name: &str, labels: &str) -> f64 {
    host.metric(&format!("pointsman_conversation_{name}"), labels)
}

#[test]
fn conversation_is_restored_after_a_switch() {
    let host = start("", "");
    let first = ask(&host, "a", &conversation("fox", 1));
    assert_eq!(cached(&first), 0);
    switch_to(&host, "b");
    wait_for_files(&host, "a", 1);
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in files(&host, "a") {
        assert_eq!((mode(&file), mode(&file.parent().unwrap().into())), (0o600, 0o700));
    }
    // A stream, whose usage is only in its last event.
    let mut request = body("a", &conversation("fox", 2));
    request["stream"] = true.into();
    request["stream_options"] = json!({ "include_usage": true });
    let second = post(host.port, CHAT, &request);
    assert!(second.text().contains("\"cached_tokens\":") && second.text().contains("[DONE]"));
    assert_eq!(engine(&host, "a")["restores"], 1);
    assert!(metric(&host, "restored_tokens_total", "lane=\"a\"") >= 300.0);
    assert!(metric(&host, "restore_seconds_count", "lane=\"a\"") >= 1.0);
    assert!(metric(&host, "saved_bytes_total", "lane=\"a\"") > 0.0);
    assert_eq!(metric(&host, "failures_total", ""), 0.0);
    // The later turn replaces the earlier one, and the next start restores it again.
    for turns in 3..5 {
        switch_to(&host, "b");
        wait_for_files(&host, "a", 1);
        assert!(cached(&ask(&host, "a", &conversation("fox", turns))) > 300);
        assert_eq!(engine(&host, "a")["restores"], 1);
    }
    assert_eq!(host.lane("a")["conversations"]["files"], 1);
}

#[test]
fn conversations_keep_their_slots_and_clients_do_not_choose() {
    let host = start("", "");
    for _ in 0..2 {
        for (name, slot) in [("fox", json!(7)), ("hen", json!("1")), ("owl", Value::Null)] {
            let mut request = body("a", &conversation(name, 1));
            request["id_slot"] = slot;
            assert_eq!(post(host.port, CHAT, &request).status, 200);
        }
    }
    // The third conversation takes the slot that was not used for longest, and so on.
    assert_eq!(engine(&host, "a")["named_slots"], json!([0, 1, 0, 1, 0, 1]));
    ask(&host, "a", &conversation("owl", 2));
    ask(&host, "a", &conversation("hen", 2));
    let named = engine(&host, "a")["named_slots"].clone();
    assert_eq!(named.as_array().unwrap()[6..], [json!(1), json!(0)]);
}

#[test]
fn conversations_survive_a_restart_of_the_host_but_not_another_model() {
    let host = start("", "");
    ask(&host, "a", &conversation("fox", 1));
    let dir = stop(host);
    let config = two_lanes("", "");
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]);
    assert!(cached(&ask(&host, "a", &conversation("fox", 2))) > 300);
    let dir = stop(host);
    let config = config.replace("/m/a.gguf", "/m/other.gguf");
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]);
    assert_eq!(cached(&ask(&host, "a", &conversation("fox", 3))), 0);
    assert_eq!(engine(&host, "a")["restores"], 0);
}

#[test]
fn useless_restores_are_switched_off() {
    let host = start("", "--useless-restores");
    for turns in 1..5 {
        assert_eq!(cached(&ask(&host, "a", &conversation("fox", turns))), 0);
        let restores = u64::from(turns == 2 || turns == 3);
        assert_eq!(engine(&host, "a")["restores"], restores, "{turns}");
        switch_to(&host, "b");
    }
    assert_eq!(metric(&host, "failures_total", "reason=\"useless\""), 2.0);
    assert_eq!(metric(&host, "restored_tokens_total", ""), 0.0);
    let event = host.wait_for_event("conversations_off", &[("lane", "a")]);
    assert_eq!(event.text("reason"), "useless");
    assert_eq!(host.lane("a")["conversations"]["off"], "useless");
    assert_eq!(host.lane("b")["conversations"]["off"], Value::Null);
}

#[test]
fn failures_to_save_are_counted_and_never_the_client_s() {
    for (flags, reason, off) in
        [("--full-disk", "disk", Value::Null), ("--vision", "unsupported", json!("unsupported"))]
    {
        let host = start("", flags);
        ask(&host, "a", &conversation("fox", 1));
        switch_to(&host, "b");
        assert_eq!(cached(&ask(&host, "a", &conversation("fox", 2))), 0);
        let labels = format!("reason=\"{reason}\"");
        assert_eq!(metric(&host, "failures_total", &labels), 1.0, "{flags}");
        assert_eq!(host.lane("a")["conversations"], json!({ "files": 0, "bytes": 0, "off": off }));
        assert!(files(&host, "a").is_empty());
        host.assert_no_request_lost();
    }
}

#[test]
fn damaged_file_is_deleted_and_the_request_served() {
    let host = start("", "");
    ask(&host, "a", &conversation("fox", 1));
    switch_to(&host, "b");
    wait_for_files(&host, "a", 1);
    for file in files(&host, "a") {
        if file.extension().is_some_and(|extension| extension == "bin") {
            let size = fs::metadata(&file).unwrap().len();
            fs::write(&file, vec![0; usize::try_from(size).unwrap()]).unwrap();
        }
    }
    assert_eq!(cached(&ask(&host, "a", &conversation("fox", 2))), 0);
    assert_eq!(metric(&host, "failures_total", "reason=\"refused\""), 1.0);
    assert!(files(&host, "a").is_empty());
}

#[test]
fn budget_and_the_shortest_length_are_the_operator_s() {
    let settings = "[conversations]\nmin-tokens = 400\nmax-bytes = \"5KiB\"\n";
    let host = start(settings, "");
    // Too short, and two of which one fits.
    for messages in [conversation("a", 1), conversation("fox", 3), conversation("hen", 3)] {
        ask(&host, "a", &messages);
    }
    switch_to(&host, "b");
    wait_until("one is saved", || host.lane("a")["conversations"]["files"] == 1);
    assert!(host.lane("a")["conversations"]["bytes"].as_u64().unwrap() <= 5 << 10);
    ask(&host, "a", &conversation("fox", 4));
    assert!(metric(&host, "failures_total", "") <= 2.0);
    let host = start("[conversations]\nenabled = false\n", "");
    ask(&host, "a", &conversation("fox", 1));
    switch_to(&host, "b");
    assert_eq!(host.lane("a")["conversations"], Value::Null);
    assert_eq!(cached(&ask(&host, "a", &conversation("fox", 2))), 0);
    assert_eq!(engine(&host, "a")["named_slots"], json!([null]));
}

#[test]
fn tenants_have_conversations_of_their_own_which_can_be_erased() {
    let keys = "[[keys]]\ntenant = \"red\"\nenv = \"RED_KEY\"\n\
                [[keys]]\ntenant = \"blue\"\nenv = \"BLUE_KEY\"\n";
    let dir = tempfile::tempdir().unwrap();
    let secrets = [("RED_KEY", "red-0123456789abcdef"), ("BLUE_KEY", "blue-0123456789abcdef")];
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &two_lanes(keys, ""), &secrets);
    let ask = |key: &str, lane: &str, messages: &[Value]| {
        let secret = format!("Bearer {key}-0123456789abcdef");
        let headers = [("authorization", secret.as_str()), ("content-type", "application/json")];
        let body = body(lane, messages).to_string();
        let response = send(host.port, "POST", CHAT, &headers, body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
        response
    };
    let hello = [json!({ "role": "user", "content": "Hello." })];
    ask("red", "a", &conversation("fox", 1));
    ask("red", "b", &hello);
    wait_for_files(&host, "a", 1);
    // The same conversation of another tenant, which must not notice that of the first one.
    assert_eq!(cached(&ask("blue", "a", &conversation("fox", 2))), 0);
    ask("red", "b", &hello);
    wait_for_files(&host, "a", 2);
    let erased = erase(&host, "tenant=red");
    assert_eq!(erased["files"], 1);
    wait_for_files(&host, "a", 1);
    assert_eq!(cached(&ask("red", "a", &conversation("fox", 2))), 0);
    ask("red", "b", &hello);
    wait_for_files(&host, "a", 2);
    assert!(cached(&ask("blue", "a", &conversation("fox", 3))) > 300);
    // A key that is removed takes its conversations with it.
    let config = host.dir.path().join("pointsman.toml");
    let text = fs::read_to_string(&config).unwrap();
    let red = "[[keys]]\ntenant = \"red\"\nenv = \"RED_KEY\"\n";
    assert!(text.contains(red));
    fs::write(&config, text.replace(red, "")).unwrap();
    host.wait_for_event("conversations_erased", &[("tenant", "red")]);
    wait_for_files(&host, "a", 1);
    assert_eq!(erase(&host, "all=true")["files"], 1);
    assert!(files(&host, "a").is_empty());
    assert_eq!(erase(&host, "")["error"]["code"], "invalid_request");
}

/// Erases conversations by the admin API.
fn erase(host: &Host, query: &str) -> Value {
    use std::io::{Read as _, Write as _};
    let mut socket = std::os::unix::net::UnixStream::connect(host.admin_socket().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = format!(
        "DELETE /conversations?{query} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}
