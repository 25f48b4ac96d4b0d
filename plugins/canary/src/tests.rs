use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{LaneAdvice, LaneState};

use super::*;

fn canary(config: &str) -> Canary {
    Canary::configure(config).unwrap()
}

/// Two stable lanes and the canary, all of the model `auto`.
fn host() -> FakeHost {
    FakeHost::new(FakeFleet::new(&["old-1", "old-2", "new"]))
}

fn asking(id: &str) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#).with_id(id)
}

fn of(tenant: &str) -> FakeRequest {
    asking("1").of_tenant(tenant)
}

/// Does the request go to the canary? Anything but its advice or the one to avoid it is a mistake.
fn drawn(host: &FakeHost, policy: &Canary, request: &FakeRequest) -> bool {
    match host.advise(policy, request).unwrap().lanes {
        LaneAdvice::Only(lanes) if lanes == [2] => true,
        LaneAdvice::Avoid(lanes) if lanes == [2] => false,
        other => panic!("{other:?}"),
    }
}

fn why(host: &FakeHost, policy: &Canary, request: &FakeRequest) -> String {
    match host.advise(policy, request).unwrap().notes.swap_remove(0).value {
        Scalar::Text(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn shares_are_kept_and_grow_without_moving_anybody_back() {
    let host = host();
    let drawn_at = |share| -> Vec<bool> {
        let policy = canary(&format!(r#"{{"canary": "new", "share-permille": {share}}}"#));
        (0..1000).map(|n| drawn(&host, &policy, &of(&format!("tenant-{n}")))).collect()
    };
    let count = |drawn: &[bool]| drawn.iter().filter(|drawn| **drawn).count();
    let (none, few, many, all) = (drawn_at(0), drawn_at(100), drawn_at(300), drawn_at(1000));
    assert_eq!((count(&none), count(&all)), (0, 1000));
    assert!((75..125).contains(&count(&few)) && (260..340).contains(&count(&many)));
    assert!(few.iter().zip(&many).all(|(few, many)| many >= few), "who is in stays in");
}

#[test]
fn tenants_stay_where_they_are_drawn_and_a_salt_draws_anew() {
    let host = host();
    let half = canary(r#"{"canary": "new", "share-permille": 500}"#);
    let salted = canary(r#"{"canary": "new", "share-permille": 500, "salt": "second try"}"#);
    let mut moved = 0;
    for n in 0..100 {
        let tenant = format!("tenant-{n}");
        let first = drawn(&host, &half, &of(&tenant));
        for id in ["2", "3"] {
            assert_eq!(drawn(&host, &half, &asking(id).of_tenant(&tenant).with_seed(n)), first);
        }
        moved += usize::from(drawn(&host, &salted, &of(&tenant)) != first);
    }
    assert!((30..70).contains(&moved), "{moved}");
}

#[test]
fn requests_are_drawn_by_id_or_seed_where_the_operator_says_so() {
    let host = host();
    let count = |config: &str, request: fn(u64) -> FakeRequest| {
        let policy = canary(config);
        (0..1000).filter(|n| drawn(&host, &policy, &request(*n))).count()
    };
    let by_id = r#"{"canary": "new", "share-permille": 200, "by": "request"}"#;
    assert!((160..240).contains(&count(by_id, |n| asking(&n.to_string()).of_tenant("acme"))));
    assert!([0, 1000].contains(&count(by_id, |n| asking("same").with_seed(n))));
    let by_seed = r#"{"canary": "new", "share-permille": 200, "by": "seed"}"#;
    assert!((160..240).contains(&count(by_seed, |n| of("acme").with_seed(n))));
    let by_tenant = r#"{"canary": "new", "share-permille": 200}"#;
    assert!((160..240).contains(&count(by_tenant, |n| asking(&n.to_string()))), "no tenant");
}

#[test]
fn named_tenants_are_always_or_never_in_it() {
    let host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 0, "always": ["us"]}"#);
    assert!(drawn(&host, &policy, &of("us")) && !drawn(&host, &policy, &of("them")));
    let policy = canary(r#"{"canary": "new", "share-permille": 1000, "never": ["careful"]}"#);
    assert!(!drawn(&host, &policy, &of("careful")) && drawn(&host, &policy, &of("them")));
}

#[test]
fn the_canary_falls_back_to_the_stable_lanes_soonest_first() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.fleet.stat_mut("old-1").est_wait_ms = 100;
    let steps = |host: &FakeHost| -> Vec<LaneId> {
        let advice = host.advise(&policy, &of("a")).unwrap();
        advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect()
    };
    assert_eq!(steps(&host), [1, 0]);
    host.fleet.stat_mut("old-2").state = LaneState::Down;
    assert_eq!(steps(&host), [0]);
}

#[test]
fn too_many_errors_hold_it_back_for_a_while() {
    let mut host = host();
    let policy = canary(
        r#"{"canary": "new", "share-permille": 1000, "max-errors-permille": 200, "hold-s": 60}"#,
    );
    host.fleet.stat_mut("new").errors = 200;
    assert!(drawn(&host, &policy, &of("a")));
    host.fleet.stat_mut("new").errors = 201;
    assert_eq!(
        why(&host, &policy, &of("a")),
        "drawn for new, but 201 of 1000 requests failed there"
    );
    host.fleet.stat_mut("new").errors = 0;
    assert_eq!(why(&host, &policy, &of("a")), "drawn for new, but it is held back for its faults");
    host.advance(60_000);
    assert!(drawn(&host, &policy, &of("a")));
    assert_eq!((host.counted("tripped"), host.counted("canary"), host.lines().len()), (1, 2, 1));
    host.fill_state();
    host.fleet.stat_mut("new").errors = 500;
    assert!(!drawn(&host, &policy, &of("a")), "without room the figures alone decide");
}

#[test]
fn a_slow_or_cold_or_dead_canary_gets_nothing() {
    let mut host = host();
    let slow = canary(r#"{"canary": "new", "share-permille": 1000, "max-first-token-ms": 500}"#);
    host.fleet.stat_mut("new").ttft_p50_ms = 501;
    assert_eq!(why(&host, &slow, &of("a")), "drawn for new, but its first token takes 501 ms");
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.advance(300_000);
    host.fleet.stat_mut("new").state = LaneState::Unloaded;
    assert_eq!(why(&host, &policy, &of("a")), "drawn for new, but it is not loaded");
    assert!(drawn(
        &host,
        &canary(r#"{"canary": "new", "share-permille": 1000, "cold": true}"#),
        &of("a")
    ));
    host.fleet.stat_mut("new").state = LaneState::Down;
    assert_eq!(why(&host, &policy, &of("a")), "drawn for new, but it is not able to serve");
}

#[test]
fn where_only_the_canary_works_it_serves_everybody() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 0}"#);
    host.fleet.stat_mut("old-1").state = LaneState::Down;
    host.fleet.stat_mut("old-2").state = LaneState::Draining;
    let advice = host.advise(&policy, &of("a")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Any);
}

#[test]
fn models_without_the_canary_are_none_of_its_business() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.fleet.lane_mut("new").models = vec!["new".into()];
    assert_eq!(host.advise(&policy, &of("a")).unwrap(), Advice::any());
    for idle in [r#"{"canary": "gone"}"#, "{}"] {
        assert_eq!(host.advise(&canary(idle), &of("a")).unwrap(), Advice::any(), "{idle}");
    }
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"share-permille": 5}"#, "canary: is missing"),
        (r#"{"canary": ""}"#, "canary: must be a text that is not empty"),
        (r#"{"canary": "new", "share": 5}"#, "there is no key `share`"),
        (
            r#"{"canary": "new", "share-permille": 1001}"#,
            "share-permille: must be a whole number from 0 to 1000",
        ),
        (r#"{"canary": "new", "by": "user"}"#, "by: must be \"tenant\", \"request\" or \"seed\""),
        (r#"{"canary": "new", "always": ["a"], "never": ["a"]}"#, "never: `a` is in `always` too"),
        (r#"{"canary": "new", "hold-s": 0}"#, "hold-s: must be a whole number from 1"),
        (r#"{"canary": "new", "cold": "no"}"#, "cold: must be true or false"),
    ] {
        match Canary::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
