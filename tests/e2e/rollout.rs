//! How a new version begins, and how it is left again: tried out beside the old one, watched, taken back, promoted.

mod probation;
mod signed;

use std::collections::BTreeMap;

use pointsman_tests::client::{Reply, chat, send};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::Load;
use pointsman_tests::site::{Site, chain, folder};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Two lanes, and policies in front of them.
fn config(links: &str) -> String {
    let lanes = ["a", "b"].map(|name| lane(name, &[name, "auto"], &[]));
    format!("[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}{}", lanes.concat())
}

/// A host with one policy, for which `link` says how new versions begin.
fn site(guest: Guest, link: &str) -> Site {
    let config = config(&chain(&[guest.name.as_str()], link));
    Site::start(FAKE_ENGINE, folder(&[guest]), &config)
}

fn old() -> Guest {
    Guest::new("p").why("old").lane(0)
}

fn new() -> Guest {
    Guest::new("p").why("new").lane(1)
}

/// Run a command that has to succeed.
fn order(site: &Site, arguments: &[&str]) -> String {
    let (code, out, err) = site.cli(arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    out
}

/// A request with this id, and perhaps with this key.
fn ask_as(site: &Site, id: &str, key: Option<&str>) -> Reply {
    let key = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json"), ("x-request-id", id)];
    headers.extend(key.as_deref().map(|key| ("authorization", key)));
    let body = chat("auto", json!({ "max_tokens": 1 })).to_string();
    let reply = send(site.host.port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

fn why(reply: &Reply) -> &str {
    reply.header("x-pointsman-reason").unwrap_or_default()
}

/// Counts its calls in its state, and says how many there were.
const COUNTS: &str = r#"
(USE state.increment $increment)
(ADVISE
  (call $increment (TEXT "calls") (i64.const 1) (i32.const 0) (i32.const 3000))
  (call $why_number (i64.load (i32.const 3008)))
  (i32.const 2048))"#;

#[test]
fn a_shadow_is_compared_and_decides_nothing_until_it_is_promoted() {
    let site = site(old(), "rollout = \"shadow\"");
    let trial = site.take_up(&new());
    assert_eq!((&trial["trial"]["mode"], &trial["error"]), (&json!("shadow"), &Value::Null));
    for _ in 0..5 {
        let reply = site.ask("auto");
        assert_eq!((why(&reply), reply.header("x-pointsman-lane")), ("old", Some("a")));
    }
    let compared = site
        .wait_for("the shadow was asked", "p", |policy| policy["trial"]["differed"] == json!(5));
    let difference = &compared["trial"]["differences"][4];
    assert_eq!((&difference["what"], &compared["trial"]["agreed"]), (&json!(["lanes"]), &json!(0)));
    assert_ne!(difference["active"]["lanes"], difference["shadow"]["lanes"]);
    assert_eq!(site.host.metric("pointsman_policy_shadow_total", "result=\"differed\""), 5.0);
    let shown = order(&site, &["show", "p"]);
    assert!(shown.contains("shadow") && shown.contains("differed: 5"), "{shown}");

    // One of the same opinion takes its place.
    site.take_up(&old().why("the same in other words"));
    assert_eq!(why(&site.ask("auto")), "old");
    site.wait_for("they agree", "p", |policy| policy["trial"]["agreed"] == json!(1));
    site.take_up(&new());
    order(&site, &["promote", "p"]);
    let reply = site.ask("auto");
    assert_eq!((why(&reply), reply.header("x-pointsman-lane")), ("new", Some("b")));
    let shown = site.policy("p");
    assert_eq!(
        (&shown["trial"], shown["history"].as_array().map(Vec::len)),
        (&Value::Null, Some(1))
    );
    site.host.assert_nothing_lost();
}

#[test]
fn a_shadow_has_a_state_of_its_own() {
    let site = site(old().code(COUNTS), "rollout = \"shadow\"");
    assert_eq!([why(&site.ask("auto")), why(&site.ask("auto"))], ["1", "2"]);
    site.take_up(&new().code(COUNTS));
    for calls in 3..=6 {
        assert_eq!(why(&site.ask("auto")), calls.to_string(), "only its own calls count");
    }
    let compared =
        site.wait_for("the shadow was asked", "p", |policy| policy["trial"]["calls"] == json!(4));
    // Its notes tell what it found in its state.
    let notes = compared["trial"]["differences"][3]["shadow"]["notes"].to_string();
    assert!(notes.contains('4') && !notes.contains('6'), "{notes}");
    order(&site, &["promote", "p"]);
    assert_eq!(why(&site.ask("auto")), "7", "whoever is in service has the policy's state");
}

/// A shadow that traps, and one that never ends: no request knows, and nobody waits.
#[test]
fn a_shadow_that_fails_costs_the_requests_nothing() {
    let site = site(old(), "rollout = \"shadow\"\ndeadline = \"100ms\"");
    for (code, kind) in [
        ("(ADVISE unreachable)", "trap"),
        ("(ADVISE (loop $again (br $again)) unreachable)", "timeout"),
    ] {
        site.take_up(&new().why(kind).code(code));
        let mut times = Vec::new();
        for _ in 0..10 {
            let begun = std::time::Instant::now();
            assert_eq!(why(&site.ask("auto")), "old");
            times.push(begun.elapsed());
        }
        // Whoever waited for the shadow waited for its deadline, in each of the calls before its breaker opened.
        let fastest = times[..3].iter().min().unwrap();
        assert!(fastest.as_millis() < 90, "{kind}: {times:?}");
        let failed =
            site.wait_for("it has failed", "p", |policy| policy["trial"]["failed"] == json!(10));
        assert_eq!((&failed["state"], &failed["faults"]), (&json!("active"), &json!(0)));
        // Three faults, and its breaker keeps it from being asked: the others cost nothing at all.
        assert_eq!(failed["trial"]["faults"], 3, "{kind}");
        assert_eq!(
            site.host.metric("pointsman_policy_faults_total", &format!("kind=\"{kind}\"")),
            3.0
        );
    }
    site.host.assert_nothing_lost();
}

#[test]
fn a_canary_gets_about_its_share_of_the_requests() {
    let link = "rollout = \"canary\"\ncanary = { share = \"20%\", by = \"request\" }";
    let site = site(old(), link);
    let trial = site.take_up(&new());
    assert_eq!(
        (&trial["trial"]["mode"], &trial["trial"]["share_permille"]),
        (&json!("canary"), &json!(200))
    );
    let canaries: Vec<bool> = std::thread::scope(|scope| {
        let asking = |part: usize| {
            let site = &site;
            scope.spawn(move || {
                let ids = (0..500).map(|id| format!("request-{part}-{id}"));
                ids.map(|id| why(&ask_as(site, &id, None)) == "new").collect::<Vec<bool>>()
            })
        };
        let parts: Vec<_> = (0..4).map(asking).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    let share = canaries.iter().filter(|is_canary| **is_canary).count();
    // 400 are expected, with a deviation of 18.
    assert!((320..=480).contains(&share), "{share} of 2000");
    for (id, was) in canaries.iter().enumerate().take(40) {
        let again = ask_as(&site, &format!("request-0-{id}"), None);
        assert_eq!(why(&again) == "new", *was, "the same request, the same version");
        assert_eq!(again.header("x-pointsman-lane"), Some(if *was { "b" } else { "a" }));
    }
    order(&site, &["promote", "p"]);
    assert!((0..20).all(|id| why(&ask_as(&site, &id.to_string(), None)) == "new"));
    order(&site, &["rollback", "p"]);
    assert!((0..20).all(|id| why(&ask_as(&site, &id.to_string(), None)) == "old"));
    site.host.assert_nothing_lost();
}

#[test]
fn a_tenant_stays_with_its_version() {
    let dir = folder(&[old()]);
    let mut head = String::new();
    for tenant in 0..40 {
        std::fs::write(dir.path().join(format!("{tenant}.key")), format!("key-{tenant}\n"))
            .unwrap();
        head += &format!("[[keys]]\ntenant = \"team-{tenant}\"\nfile = \"{tenant}.key\"\n");
    }
    let link = "rollout = \"canary\"\ncanary = { share = \"50%\" }";
    let site = Site::start(FAKE_ENGINE, dir, &(head + &config(&chain(&["p"], link))));
    site.take_up(&new());
    let versions = |round: u32| -> BTreeMap<u32, String> {
        let of = |tenant: u32| {
            let id = format!("{round}-{tenant}");
            (tenant, why(&ask_as(&site, &id, Some(&format!("key-{tenant}")))).to_owned())
        };
        (0..40).map(of).collect()
    };
    let first = versions(0);
    let canaries = first.values().filter(|why| *why == "new").count();
    assert!((8..=32).contains(&canaries), "{canaries} of 40");
    for round in 1..4 {
        assert_eq!(versions(round), first);
    }
    // Given up, it is asked by nobody any more, and not taken from the folder again.
    order(&site, &["rollback", "p"]);
    assert!(versions(4).values().all(|why| why == "old"));
    site.reload();
    let shown = site.policy("p");
    assert_eq!(
        (&shown["trial"], &shown["set_aside"][0]["reason"]),
        (&Value::Null, &json!("rolled back by hand"))
    );
}

#[test]
fn a_canary_that_faults_is_given_up() {
    let site = site(old(), "rollout = \"canary\"\ncanary = { share = \"50%\", by = \"request\" }");
    let load = Load::start(site.host.port, 2, "auto");
    let bad = site.take_up(&new().code("(ADVISE unreachable)"))["trial"]["version"].clone();
    let shown = site.wait_for("it is given up", "p", |policy| policy["trial"].is_null());
    let error = shown["error"]["what"].as_str().unwrap_or("none");
    let sentence =
        format!("version {} was taken back: it was taken out of service: ", bad.as_str().unwrap());
    assert!(error.starts_with(&sentence), "{error}");
    assert_eq!(shown["set_aside"][0]["version"], bad.as_str().unwrap()[2..]);
    load.more(20);
    assert!(load.end().keys().all(|seen| seen.status == 200));
    wait_until("only the old one decides", || why(&site.ask("auto")) == "old");
    let held_back = site.host.metric("pointsman_policy_out_of_service", "");
    assert_eq!(held_back, 0.0, "nobody is woken for a version that is not asked any more");
    let (code, _, err) = site.cli(&["promote", "p"]);
    assert!(code == 1 && err.contains("no version of it is tried out"), "{err}");
    site.host.assert_nothing_lost();
}

#[test]
fn a_trial_goes_on_after_a_restart() {
    let link = "rollout = \"shadow\"";
    let site = site(old(), link);
    let trial = site.take_up(&new())["trial"]["version"].clone();
    let site = site.again(FAKE_ENGINE, &config(&chain(&["p"], link)));
    assert_eq!((why(&site.ask("auto")), &site.policy("p")["trial"]["version"]), ("old", &trial));
    order(&site, &["promote", "p"]);
    let site = site.again(FAKE_ENGINE, &config(&chain(&["p"], link)));
    let shown = site.policy("p");
    assert_eq!((&shown["version"], &shown["trial"]), (&trial, &Value::Null));
    // Given up, it stays away.
    let given_up = site.take_up(&new().why("newer"))["trial"]["version"].clone();
    assert_ne!(given_up, Value::Null);
    order(&site, &["rollback", "p"]);
    let site = site.again(FAKE_ENGINE, &config(&chain(&["p"], link)));
    let shown = site.policy("p");
    assert_eq!((why(&site.ask("auto")), &shown["trial"]), ("new", &Value::Null));
    assert!(shown["error"]["what"].as_str().unwrap().contains("was set aside"), "{shown}");
}

#[test]
fn operators_go_back_and_forth_by_name() {
    let site = site(old(), "");
    let id = |version: &Value| version["fingerprint"].as_str().unwrap()[..8].to_owned();
    let versions: Vec<String> =
        ["one", "two", "three"].map(|why| id(&site.take_up(&old().why(why)))).into();
    order(&site, &["rollback", "p", "--to", &versions[0]]);
    assert_eq!(why(&site.ask("auto")), "one");
    // What was left is not taken from the folder again, but can be had by name.
    site.reload();
    assert_eq!(why(&site.ask("auto")), "one");
    order(&site, &["promote", "p", &versions[2]]);
    assert_eq!(why(&site.ask("auto")), "three");
    for (arguments, sentence) in [
        (
            vec!["promote", "p", &versions[2]],
            format!("version {} is in service already", versions[2]),
        ),
        (
            vec!["rollback", "p", "--to", "0badc0de"],
            "there is no version `0badc0de`; there are: ".to_owned(),
        ),
        (vec!["promote", "p"], "no version of it is tried out; name the version".to_owned()),
    ] {
        let (code, _, err) = site.cli(&arguments);
        assert!(code == 1 && err.contains(&sentence), "{arguments:?}: {err}");
    }
    order(&site, &["disable", "p"]);
    assert_eq!(site.ask("auto").header("x-pointsman-policy"), Some("built-in"));
    // Disabled, it still takes up what is new.
    site.take_up(&new());
    assert_eq!(site.ask("auto").header("x-pointsman-policy"), Some("built-in"));
    order(&site, &["enable", "p"]);
    assert_eq!(why(&site.ask("auto")), "new");
    site.host.assert_nothing_lost();
}

/// The policy has not changed, and how it is tried out has.
#[test]
fn what_is_tried_out_is_tried_out_in_another_way_when_the_configuration_says_so() {
    let site = site(old(), "rollout = \"shadow\"");
    assert_eq!(site.take_up(&new())["trial"]["mode"], "shadow");
    let canary = "rollout = \"canary\"\ncanary = { share = \"100%\" }";
    for (link, mode, decides) in [
        (canary, json!("canary"), "new"),
        ("rollout = \"shadow\"", json!("shadow"), "old"),
        ("", Value::Null, "new"),
    ] {
        site.configure(&config(&chain(&["p"], link)));
        site.reload();
        let shown = site.policy("p");
        assert_eq!((&shown["trial"]["mode"], &shown["error"]), (&mode, &Value::Null), "{shown}");
        assert_eq!(site.why("auto"), decides, "{link}");
    }
    let shown = site.policy("p");
    assert_eq!(shown["history"].as_array().map(Vec::len), Some(1), "{shown}");
}
