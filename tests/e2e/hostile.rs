//! Hostile policies, beside those of `policy.rs`: each costs its advice and nothing else.

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::guests::{Guest, component, module, swap};
use pointsman_tests::site::{Site, chain, folder};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

fn site(guests: &[Guest], links: &str) -> Site {
    let lanes =
        ["a", "b"].map(|name| lane(name, &[name, "auto"], &["--script", r#"{"echo": true}"#]));
    Site::start(
        FAKE_ENGINE,
        folder(guests),
        &format!("[policies]\ncache = \"cache\"\n{links}{}", lanes.concat()),
    )
}

fn of(site: &Site, figure: &str, policy: &str) -> f64 {
    site.host.metric(&format!("pointsman_policy_{figure}_total"), &format!("policy=\"{policy}\""))
}

/// The component of a policy whose name is that of its file, in the folder of another one.
fn put(site: &Site, name: &str, component: &[u8]) {
    site.put(&Guest::new(name));
    swap(&site.policies().join(name).join("policy.wasm"), component);
}

/// What fails in the middle of a call: counted under its kind, three times, and then it is not asked any more.
#[test]
fn whoever_fails_in_a_call_is_counted_and_left_out() {
    let things = "export things: interface { resource thing { constructor(); } }";
    let hostile = [
        (Guest::named("handle-bomb").world(things), "trap"),
        (Guest::named("calls-import-in-realloc"), "trap"),
        (Guest::named("list-length-overflow"), "trap"),
        (Guest::named("loop-in-post-return"), "timeout"),
    ];
    let guests: Vec<Guest> = hostile
        .iter()
        .map(|(guest, _)| guest.clone())
        .chain([Guest::new("good").why("good")])
        .collect();
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let site = site(&guests, &chain(&names, ""));
    for policy in site.host.status()["policies"].as_array().unwrap() {
        assert_eq!(policy["state"], "active", "{policy}");
    }
    let before = site.host.size();
    for round in 1..=4 {
        assert_eq!(site.why("auto"), "good");
        for (guest, kind) in &hostile {
            let name = guest.name.as_str();
            assert_eq!(of(&site, "faults", name), f64::from(round.min(3)), "{name}");
            let figures = get(site.host.port, "/metrics").text();
            let is_of_kind = |line: &str| {
                line.starts_with("pointsman_policy_faults")
                    && line.contains(name)
                    && line.contains(kind)
            };
            assert!(figures.lines().any(is_of_kind), "{name}: {kind}\n{figures}");
        }
    }
    for (guest, _) in &hostile {
        assert_eq!(site.policy(&guest.name)["state"], "out-of-service");
    }
    let after = site.host.size();
    assert!(
        after.threads <= before.threads + 2 && after.resident < before.resident + (24 << 20),
        "{before:?} {after:?}"
    );
    site.host.assert_nothing_lost();
}

/// A section of a component with a core module in it.
fn section(module: &[u8]) -> Vec<u8> {
    let mut section = vec![1];
    let mut length = module.len();
    loop {
        let more = length > 0x7f;
        section.push((length & 0x7f) as u8 | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    section.extend(module);
    section
}

/// A good policy with modules behind it that it does not use.
fn with_modules(name: &str, module: &str, count: usize) -> Vec<u8> {
    let module = section(&wat::parse_str(module).unwrap());
    [Guest::new(name).build(), module.repeat(count)].concat()
}

#[test]
fn whoever_is_too_large_or_something_else_is_not_compiled() {
    let functions = format!("(module {})", "(func)".repeat(100_001));
    let function = format!("(module (func {}))", "(drop (i32.const 1))".repeat(400_000));
    let least = module("wrong-world", "(ADVISE (i32.const 1024))");
    let wrong = component(&least, "policy", |wit| wit.replace("out-of-budget,", "out-of-time,"));
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(4096, 0);
    let table = [
        (
            "modules",
            with_modules("modules", "(module)", 65),
            "it has 66 core modules, and 64 are the limit",
        ),
        (
            "functions",
            with_modules("functions", &functions, 1),
            "functions, and 100000 are the limit",
        ),
        (
            "function",
            with_modules("function", &function, 1),
            "bytes in one function, and 1048576 are the limit",
        ),
        ("wrong-world", wrong, "it was built for another contract than 0.1.0"),
        (
            "cwasm",
            elf,
            "it is compiled machine code (.cwasm), which is only ever loaded from the host's own cache",
        ),
    ];
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).chain(["good"]).collect();
    let guests: Vec<Guest> = names.iter().map(|name| Guest::new(name).why(name)).collect();
    let site = site(&guests, &chain(&names, ""));
    let before = site.host.size();
    for (name, component, sentence) in &table {
        put(&site, name, component);
        site.reload();
        let shown = site.policy(name);
        let error = shown["error"]["what"].as_str().unwrap_or("none");
        assert!(error.contains(sentence), "{name}: {error}");
        assert_eq!(
            (shown["state"].as_str(), of(&site, "load_failures", name)),
            (Some("active"), 1.0),
            "{name}"
        );
        assert_eq!(site.why("auto"), "good", "{name}");
    }
    let after = site.host.size();
    assert!(
        after.threads <= before.threads + 4 && after.resident < before.resident + (48 << 20),
        "{before:?} {after:?}"
    );
    site.host.assert_nothing_lost();
}

#[test]
fn a_flood_of_lines_is_dammed_and_counted() {
    let site = site(&[Guest::named("log-flood")], &chain(&["log-flood"], "deadline = \"100ms\""));
    for _ in 0..3 {
        assert_eq!(site.ask("auto").status, 200);
    }
    let written =
        site.host.log().lines().filter(|line| line.contains("a drop of the flood")).count();
    let dropped = site.host.metric("pointsman_policy_advice_dropped_total", "what=\"log\"");
    assert_eq!(written as f64 + dropped, 3000.0);
    assert!((1..=200).contains(&written), "{written} lines");
    assert_eq!(of(&site, "faults", "log-flood"), 0.0);
    site.host.assert_nothing_lost();
}

#[test]
fn a_flood_of_state_is_evicted() {
    let site =
        site(&[Guest::named("state-flood")], &chain(&["state-flood"], "deadline = \"100ms\""));
    assert_eq!(site.ask("auto").status, 200);
    let before = site.host.size();
    for _ in 0..300 {
        assert_eq!(site.ask("auto").status, 200);
    }
    // 60 MB were put into it, and it has room for one.
    let after = site.host.size();
    assert!(after.resident < before.resident + (16 << 20), "{before:?} -> {after:?}");
    assert_eq!(of(&site, "faults", "state-flood"), 0.0);
    assert_eq!(site.host.metric("pointsman_policy_calls_total", "result=\"ok\""), 301.0);
    site.host.assert_nothing_lost();
}

#[test]
fn what_nobody_allowed_is_left_out_of_the_advice() {
    let guests = [
        Guest::named("edit-forbidden-field"),
        Guest::named("score-out-of-range"),
        Guest::new("honest").lane(0),
    ];
    // 65535 points, of which 1000 count, against 1000 with a little more weight.
    let links = chain(&["edit-forbidden-field", "score-out-of-range"], "")
        + &chain(&["honest"], "weight = 1100");
    let site = site(&guests, &links);
    let body = chat("auto", json!({ "user": "me" }));
    let reply = post(site.host.port, CHAT, &body);
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("a")),
        "{}",
        reply.text()
    );
    let arrived: Value = serde_json::from_str(reply.json()["body"].as_str().unwrap()).unwrap();
    assert_eq!((&arrived["user"], &arrived["messages"]), (&body["user"], &body["messages"]));
    assert_ne!(arrived["model"], "other");
    assert!(!reply.text().contains("stolen"));
    for what in ["set-field", "set-model", "set-header"] {
        let dropped =
            site.host.metric("pointsman_policy_advice_dropped_total", &format!("what=\"{what}\""));
        assert_eq!(dropped, 1.0, "{what}");
    }
    assert_eq!(site.host.metric("pointsman_policy_faults_total", ""), 0.0);
    site.host.assert_nothing_lost();
}
