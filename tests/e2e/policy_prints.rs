//! What policies print with the means of their language, and the time that they print.

use std::fs;

use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::clients::prepared_dir;
use crate::faults::start_broken;
use crate::policy_cli::policy;
use crate::policy_simulation::{pointsman, simulate, text};

/// The policies of `tests/broken` print this before they fail, followed by the time in quotes.
const PRINTED: &str = "called at \"";

#[test]
fn prints_are_in_the_log_of_the_host() {
    for language in ["javascript", "typescript", "python"] {
        let deployment = start_broken(language);
        assert_eq!(deployment.send_chat("auto").status, 200);
        let mut found = None;
        wait_until("the line is logged", || {
            let events = deployment.host.all_events();
            found = events.into_iter().find(|event| event.message().starts_with(PRINTED));
            found.is_some()
        });
        let event = found.unwrap();
        assert_eq!((event.level(), event.target()), ("INFO", "policy"), "{language}");
        assert!(!event.text("request_id").is_empty(), "{language}: {event:?}");
        // The clock of the request, and not one from before the build.
        let year = event.message()[PRINTED.len()..].get(..4).map(str::parse::<u32>);
        assert!(matches!(year, Some(Ok(2025..3000))), "{language}: {event:?}");
        deployment.host.assert_no_request_lost();
    }
}

#[test]
fn prints_are_shown_to_the_author() {
    let name = "broken-javascript";
    let prepared = prepared_dir("POINTSMAN_FRESH_GUESTS", "target/guests/fresh").join(name);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(prepared.join("policy.wasm"), folder.join("policy.wasm")).unwrap();
    // Without `[build]`, nothing is built.
    let manifest = format!("name = {name:?}\nversion = \"0.1.0\"\napi = \"0.1\"\n");
    fs::write(folder.join("policy.toml"), manifest).unwrap();
    let case = json!({
        "name": "prints", "expect": { "lane": "a" },
        "request": {
            "body": { "model": "auto", "messages": [] }, "now-ms": 1_700_000_000_123_u64,
        },
        "fleet": { "lanes": [{ "name": "a", "models": ["auto"] }] },
    });
    fs::write(folder.join("cases.jsonl"), format!("{case}\n")).unwrap();

    let line = format!("{PRINTED}2023-11-14T22:13:20.123Z\"");
    let (_, out, err) = policy(&["test", text(&folder), "--format", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(report["cases"][0]["log"][0], json!({ "level": "info", "message": line }));
    let (_, out, err) = policy(&["trace", "prints", "--dir", text(&folder)]);
    assert!(out.contains(&line), "{out}{err}");
    let (_, out, err) = pointsman(&["policy", "dev", text(&folder), "--once"]);
    assert!(out.contains(&line), "{out}{err}");

    let (_, report, shown) = simulate(dir.path(), name, &[]);
    let log = &report["variants"][0]["runs"][0]["policy-calls"][0]["log"];
    assert!(log[0].as_str().unwrap().starts_with(&format!("info  {PRINTED}")), "{log}");
    assert!(shown.contains(PRINTED), "{shown}");
}
