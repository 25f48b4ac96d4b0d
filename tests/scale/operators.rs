//! What operators see of pickers and of the store that hosts share: status, metrics, `doctor`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::pick::{engines, envoy, picker};
use crate::redis::Redis;

const CHAT: &str = "/v1/chat/completions";

fn config(url: &str) -> String {
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "", &[]);
    format!("[shared-state]\nurl = {url:?}\nreplicas = 2\n{lane}")
}

fn start(url: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    Host::start_in(&program(FAKE_ENGINE), dir, &config(url), &[]).wait_until_ready()
}

#[test]
fn status_has_the_shared_store_and_how_many_use_it() {
    let mut redis = Redis::run(&[]);
    let hosts = [start(&redis.url()), start(&redis.url())];
    let store = |host: &Host| host.status()["shared_state"].clone();
    // Each host says every five seconds that it is there.
    wait_until("both hosts are seen", || hosts.iter().any(|host| store(host)["replicas"] == 2));
    let found = store(&hosts[0]);
    assert_eq!((&found["state"], &found["dropped"]), (&json!("up"), &json!(0)), "{found}");
    assert_eq!(found["expected_replicas"], 2);
    let since = |host: &Host| store(host)["since_unix_ms"].as_u64().unwrap();
    let up_since = since(&hosts[0]);
    redis.kill();
    wait_until("the store is away", || store(&hosts[0])["state"] == "down");
    assert!(since(&hosts[0]) >= up_since);
    redis.start();
    wait_until("the store is back", || store(&hosts[0])["state"] == "up");
    assert!(since(&hosts[0]) > up_since);
}

/// Returns the findings of `doctor` about the shared store.
fn findings(url: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pointsman.toml");
    // A password may not be in the configuration.
    fs::write(dir.path().join("url"), url).unwrap();
    fs::write(&file, config("unused").replace("url = \"unused\"", "url-file = \"url\"")).unwrap();
    let mut doctor = Command::new(program(FAKE_ENGINE));
    let output = doctor.args(["doctor", "--json", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("wrong-staple"), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let all = report["findings"].as_array().unwrap().clone();
    all.into_iter().filter(|finding| finding["check"] == "shared_state").collect()
}

#[test]
fn doctor_examines_the_shared_store() {
    let mut redis = Redis::run(&[]);
    let verdicts = |url: &str| -> Vec<String> {
        findings(url).iter().map(|found| found["verdict"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(verdicts(&redis.url()), ["ok"]);
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let found = findings(&redis.url());
    assert_eq!(found[0]["verdict"], "warning", "{found:?}");
    assert!(found[0]["fact"].as_str().unwrap().contains("allkeys-lru"), "{found:?}");
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    // Users: one with a wrong password, one who may not run scripts, one who may not read more.
    let wrong = format!("redis://:wrong-staple@127.0.0.1:{}", redis.port);
    for (name, rights) in [("few", "+ping"), ("scripts", "+eval +@sortedset ~{*")] {
        let rights: Vec<&str> = rights.split(' ').collect();
        let words = [&["ACL", "SETUSER", name, "on", ">pass"], &rights[..]].concat();
        assert_eq!(redis.command(&words), "+OK");
    }
    let url = |user: &str| format!("redis://{user}:pass@127.0.0.1:{}", redis.port);
    let (few, scripts) = (url("few"), url("scripts"));
    assert_eq!(verdicts(&scripts), ["note"]);
    for refused in [&wrong, &few] {
        let found = findings(refused);
        assert_eq!(found[0]["verdict"], "problem", "{found:?}");
        assert!(found[0]["fact"].as_str().unwrap().contains("refuses"), "{found:?}");
        assert!(found[0]["fix"].is_string(), "{found:?}");
    }
    redis.kill();
    let found = findings(&redis.url());
    assert_eq!(found[0]["verdict"], "problem", "{found:?}");
    assert!(found[0]["fact"].as_str().unwrap().contains("reached"), "{found:?}");
}

/// The metrics that only a host with these features has are those of the page, with type and help.
#[test]
fn metrics_of_pickers_and_of_the_shared_store_are_those_of_the_page() {
    let redis = Redis::run(&[]);
    let engines = engines([json!({}), json!({})]);
    let more = format!("[shared-state]\nurl = {:?}\n", redis.url());
    let picker = picker(&[engines[0].lane("a", "")], &more);
    let envoy = envoy(&picker, &engines);
    assert_eq!(post(envoy.port, CHAT, &chat("m", json!({}))).status, 200);
    assert_eq!(post(envoy.port, CHAT, &chat("other", json!({}))).status, 404);
    let count = |name: &str, labels: &str| picker.metric(name, labels);
    wait_until("all streams have ended", || count("pointsman_pick_streams", "") == 0.0);
    let decisions = |result| count("pointsman_pick_decisions_total", result);
    assert_eq!((decisions("\"picked\""), decisions("\"answered\"")), (1.0, 1.0));
    let immediate = "pointsman_pick_immediate_responses_total";
    assert_eq!(count(immediate, "code=\"model_not_found\""), 1.0);
    wait_until("the store counts its users", || {
        count("pointsman_shared_state_replicas", "") == 1.0
    });
    let text = picker.get("/metrics").text();
    let described = |kind: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.trim_end_matches('.').to_owned())).collect()
    };
    let (help, kinds) = (described("# HELP "), described("# TYPE "));
    let page = fs::read_to_string(root().join("host/docs/metrics.md")).unwrap();
    let rows = page.lines().filter(|line| {
        ["| `pointsman_pick_", "| `pointsman_shared_state_"].iter().any(|row| line.starts_with(row))
    });
    let mut checked = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0].trim_matches('`');
        assert_eq!(kinds.get(name).map(String::as_str), Some(cells[1]), "{row}");
        assert_eq!(help.get(name).map(String::as_str), Some(cells[3]), "{row}");
        checked += 1;
    }
    assert!(checked >= 13, "{checked}");
}
