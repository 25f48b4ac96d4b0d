//! A version that has just replaced another one is watched, and taken back by itself.

use pointsman_tests::guests::swap;
use pointsman_tests::load::Load;
use pointsman_tests::site::Site;
use serde_json::{Value, json};

use super::{new, old, site};

/// Traps in every twentieth call, as the policy's state counts them.
const EVERY_20TH: &str = r#"
(USE state.increment $increment)
(ADVISE
  (call $increment (TEXT "calls") (i64.const 1) (i32.const 0) (i32.const 3000))
  (if (i64.eqz (i64.rem_s (i64.load (i32.const 3008)) (i64.const 20))) (then unreachable))
  (i32.const 2048))"#;

/// Counts to some millions, which takes milliseconds.
const SLOW: &str = r#"
(ADVISE
  (local $left i32)
  (local.set $left (i32.const 3000000))
  (loop $again
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $again (local.get $left)))
  (i32.const 2048))"#;

/// Wait until the version is taken back while clients ask; the reason.
fn taken_back(site: &Site, load: &Load, bad: &Value) -> String {
    assert_ne!(bad["probation"], Value::Null, "{bad}");
    let shown =
        site.wait_for("it is taken back", "p", |policy| policy["version"] != bad["version"]);
    load.more(10);
    assert_eq!(site.why("auto"), "old");
    assert_eq!(shown["set_aside"][0]["version"], bad["fingerprint"].as_str().unwrap()[..8]);
    assert_eq!(site.host.metric("pointsman_policy_changes_total", "result=\"taken-back\""), 1.0);
    let reason = shown["set_aside"][0]["reason"].as_str().unwrap().to_owned();
    let (version, error) =
        (bad["version"].as_str().unwrap(), shown["error"]["what"].as_str().unwrap());
    assert_eq!(error, format!("version {version} was taken back: {reason}"));
    assert!(site.host.log().contains(&format!("taken back: {reason}")));
    // It stays away, though it is what is in the folder.
    let wasm = site.policies().join("p/policy.wasm");
    swap(&wasm, &std::fs::read(&wasm).unwrap());
    site.reload();
    assert_eq!(site.why("auto"), "old");
    let again = site.policy("p")["error"]["what"].as_str().unwrap().to_owned();
    assert!(
        again.contains("was set aside: ") && again.contains("or promote that version"),
        "{again}"
    );
    reason
}

#[test]
fn a_version_that_faults_now_and_then_is_taken_back() {
    let site = site(old(), "probation = { duration = \"1h\", max-faults = \"2%\" }");
    let load = Load::start(site.host.port, 2, "auto");
    let bad = site.take_up(&new().code(EVERY_20TH));
    let reason = taken_back(&site, &load, &bad);
    assert!(reason.contains("calls ended in a fault"), "{reason}");
    let seen = load.end();
    assert!(seen.keys().all(|seen| seen.status == 200), "{seen:?}");
    site.host.assert_nothing_lost();
}

#[test]
fn a_version_that_is_slow_is_taken_back() {
    let site = site(
        old(),
        "budget = \"500us\"\ndeadline = \"100ms\"\nprobation = { duration = \"1h\", max-slow = \"50%\" }",
    );
    let load = Load::start(site.host.port, 2, "auto");
    let bad = site.take_up(&new().code(SLOW));
    let reason = taken_back(&site, &load, &bad);
    assert!(reason.ends_with("calls took longer than its budget"), "{reason}");
    assert!(load.end().keys().all(|seen| seen.status == 200));
}

#[test]
fn a_version_that_stands_its_probation_stays() {
    let site = site(old(), "probation = { duration = \"300ms\" }");
    let watched = site.take_up(&new());
    assert_ne!(watched["probation"], Value::Null);
    let stays = site.wait_for("it is over", "p", |policy| policy["probation"].is_null());
    assert_eq!((&stays["version"], &stays["set_aside"]), (&watched["version"], &json!([])));
    assert_eq!(site.why("auto"), "new");
}
