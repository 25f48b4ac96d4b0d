//! The configuration's `[policies]` is taken up while the host serves; the rest of it waits for the next start.

use std::fs;

use pointsman_tests::guests::Guest;
use pointsman_tests::load::Load;
use pointsman_tests::site::{Site, chain, folder};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{config, engines, site};
use crate::FAKE_ENGINE;

/// Names of the policies in their order.
fn names(site: &Site) -> Vec<String> {
    let policies = site.host.status()["policies"].clone();
    policies
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["name"].as_str().unwrap().to_owned())
        .collect()
}

/// What stands for the configuration of a policy comes out as its reason.
const SAYS_ITS_CONFIGURATION: &str = r#"
(func (export "pointsman:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32)
  (call $why_text (local.get 0) (local.get 1)) (i32.const 1024))"#;

#[test]
fn order_weights_settings_and_members_change_without_a_restart() {
    let opinions =
        [Guest::new("first").why("first").lane(0), Guest::new("second").why("second").lane(1)];
    let site = site(&opinions);
    let before = engines(&site);
    let load = Load::start(site.host.port, 2, "auto");
    // The last note is the one that is shown.
    assert_eq!(
        (names(&site), site.why("auto").as_str()),
        (vec!["first".into(), "second".into()], "second")
    );
    site.configure(&config(&chain(&["second", "first"], "")));
    site.wait_for_why("auto", "first");
    assert_eq!(names(&site), ["second", "first"]);
    let versions = site.policy("first")["history"].clone();
    assert_eq!(versions, json!([]), "another order is no other version");

    // Whose scores weigh more has its lane.
    for (weight, lane) in [(10, "b"), (3000, "a")] {
        site.configure(&config(
            &(chain(&["first"], &format!("weight = {weight}")) + &chain(&["second"], "")),
        ));
        site.reload();
        assert_eq!(site.ask("auto").header("x-pointsman-lane"), Some(lane), "weight {weight}");
    }
    site.configure(&config(&chain(&["second"], "")));
    site.reload();
    assert_eq!((names(&site), site.why("auto").as_str()), (vec!["second".into()], "second"));
    assert_eq!(site.admin("GET", "/policies/first", "").status, 404);
    site.configure(&config(""));
    site.reload();
    assert_eq!(site.ask("auto").header("x-pointsman-policy"), Some("built-in"));
    site.configure(&config(&chain(&["second", "first"], "")));
    site.reload();
    assert_eq!(site.why("auto"), "first");
    assert_eq!(engines(&site), before);
    assert!(load.end().keys().all(|seen| seen.status == 200));
    site.host.assert_nothing_lost();
}

#[test]
fn another_configuration_of_a_policy_is_another_version_of_it() {
    let dir = folder(&[Guest::new("p").code(SAYS_ITS_CONFIGURATION)]);
    let site = Site::start(FAKE_ENGINE, dir, &config(&chain(&["p"], "config = { a = 1 }")));
    assert_eq!(site.why("auto"), "{\"a\":1}");
    let first = site.policy("p");
    site.configure(&config(&chain(&["p"], "config = { a = 2 }")));
    site.wait_for_why("auto", "{\"a\":2}");
    let second = site.policy("p");
    assert_eq!(second["history"][0]["version"], first["version"]);
    assert_eq!(second["component_sha256"], first["component_sha256"]);
    assert_eq!(second["config"], json!({ "a": 2 }));
    // Going back is going back to the configuration, too.
    let (code, out, err) = site.cli(&["rollback", "p"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.why("auto"), "{\"a\":1}");
}

#[test]
fn the_failure_mode_changes_at_once() {
    let site = site(&[Guest::new("p").code("(ADVISE unreachable)")]);
    for (mode, status) in [("refuse", 503), ("skip", 200)] {
        site.configure(&config(&chain(&["p"], &format!("on-error = {mode:?}"))));
        site.reload();
        assert_eq!(site.ask("auto").status, status, "{mode}");
        assert_eq!(site.policy("p")["on_error"], mode);
    }
}

#[test]
fn a_broken_configuration_changes_nothing_and_is_shown() {
    let site = site(&[Guest::new("p").why("one")]);
    let good = config(&chain(&["p"], ""));
    for (broken, part) in [
        (format!("{good}[policies"), "is not TOML: unclosed table"),
        (config(&chain(&["p", "p"], "")), "stands in the chain already"),
        (config(&chain(&["p"], "colour = 3")), "colour"),
        (config(&chain(&["p"], "rollout = \"often\"")), "rollout"),
    ] {
        site.configure(&broken);
        wait_until("the mistake is shown", || {
            site.host.status()["config"]["error"].as_str().is_some_and(|error| error.contains(part))
        });
        assert_eq!(site.why("auto"), "one");
        assert!(site.host.log().contains("the configuration stays as it was"));
        site.configure(&good);
        wait_until("it is healed", || site.host.status()["config"]["error"].is_null());
    }
    fs::remove_file(site.host.dir.path().join("pointsman.toml")).unwrap();
    site.reload();
    assert_ne!(site.host.status()["config"]["error"], Value::Null);
    assert_eq!(site.why("auto"), "one");
}

#[test]
fn what_needs_a_restart_is_named_and_the_policies_change_all_the_same() {
    let site = site(&[Guest::new("p").why("one"), Guest::new("q").why("two")]);
    let before = engines(&site);
    let with_lane = config(&chain(&["p"], "")) + &crate::lane("c", &["c"], &[]);
    site.configure(&with_lane);
    // What an operator types who does not wait for anything.
    site.host.signal(Signal::HUP);
    wait_until("the section is named", || {
        site.host.status()["config"]["restart_for"] == json!(["lanes"])
    });
    assert_eq!(site.why("auto"), "one");
    assert_eq!((engines(&site), site.ask("c").status), (before, 404));
    site.configure(&config(&chain(&["p", "q"], "")));
    site.reload();
    assert_eq!(site.host.status()["config"]["restart_for"], json!([]));
}
