use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};

use super::*;

fn canary(config: &str) -> Canary {
    Canary::configure(config).unwrap()
}

/// Creates a host with two stable lanes and the canary, all serving the model `auto`.
fn host() -> FakeHost {
    FakeHost::new(FakeFleet::new(&["old-1", "old-2", "new"]))
}

fn request_with_id(id: &str) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#).with_id(id)
}

fn request_from(tenant: &str) -> FakeRequest {
    request_with_id("1").with_tenant(tenant)
}

/// Returns true if the request is sent to the canary. Panics on any advice other than selecting or
/// avoiding the canary.
fn is_selected(host: &FakeHost, policy: &Canary, request: &FakeRequest) -> bool {
    match host.advise(policy, request).unwrap().lanes {
        LaneAdvice::Only(lanes) if lanes == [2] => true,
        LaneAdvice::Avoid(lanes) if lanes == [2] => false,
        other => panic!("{other:?}"),
    }
}

fn reason(host: &FakeHost, policy: &Canary, request: &FakeRequest) -> String {
    match host.advise(policy, request).unwrap().notes.swap_remove(0).value {
        Scalar::Text(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn share_is_approximate_and_a_larger_share_only_adds_tenants() {
    let host = host();
    let selected_at = |share| -> Vec<bool> {
        let policy = canary(&format!(r#"{{"canary": "new", "share-permille": {share}}}"#));
        (0..1000)
            .map(|n| is_selected(&host, &policy, &request_from(&format!("tenant-{n}"))))
            .collect()
    };
    let count = |selected: &[bool]| selected.iter().filter(|selected| **selected).count();
    let (none, few, many, all) =
        (selected_at(0), selected_at(100), selected_at(300), selected_at(1000));
    assert_eq!((count(&none), count(&all)), (0, 1000));
    assert!((75..125).contains(&count(&few)) && (260..340).contains(&count(&many)));
    assert!(few.iter().zip(&many).all(|(few, many)| many >= few), "selected tenants stay selected");
}

#[test]
fn selection_is_stable_per_tenant_and_changes_with_the_salt() {
    let host = host();
    let half = canary(r#"{"canary": "new", "share-permille": 500}"#);
    let salted = canary(r#"{"canary": "new", "share-permille": 500, "salt": "second"}"#);
    let mut moved = 0;
    for n in 0..100 {
        let tenant = format!("tenant-{n}");
        let first = is_selected(&host, &half, &request_from(&tenant));
        for id in ["2", "3"] {
            assert_eq!(
                is_selected(&host, &half, &request_with_id(id).with_tenant(&tenant).with_seed(n)),
                first
            );
        }
        moved += usize::from(is_selected(&host, &salted, &request_from(&tenant)) != first);
    }
    assert!((30..70).contains(&moved), "{moved}");
}

#[test]
fn requests_are_selected_by_the_configured_key() {
    let host = host();
    let count = |config: &str, request: fn(u64) -> FakeRequest| {
        let policy = canary(config);
        (0..1000).filter(|n| is_selected(&host, &policy, &request(*n))).count()
    };
    let by_id = r#"{"canary": "new", "share-permille": 200, "by": "request"}"#;
    assert!(
        (160..240).contains(&count(by_id, |n| request_with_id(&n.to_string()).with_tenant("acme")))
    );
    assert!([0, 1000].contains(&count(by_id, |n| request_with_id("same").with_seed(n))));
    let by_seed = r#"{"canary": "new", "share-permille": 200, "by": "seed"}"#;
    assert!((160..240).contains(&count(by_seed, |n| request_from("acme").with_seed(n))));
    let by_tenant = r#"{"canary": "new", "share-permille": 200}"#;
    assert!(
        (160..240).contains(&count(by_tenant, |n| request_with_id(&n.to_string()))),
        "no tenant"
    );
}

#[test]
fn always_and_never_override_the_share() {
    let host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 0, "always": ["us"]}"#);
    assert!(
        is_selected(&host, &policy, &request_from("us"))
            && !is_selected(&host, &policy, &request_from("them"))
    );
    let policy = canary(r#"{"canary": "new", "share-permille": 1000, "never": ["careful"]}"#);
    assert!(
        !is_selected(&host, &policy, &request_from("careful"))
            && is_selected(&host, &policy, &request_from("them"))
    );
}

#[test]
fn canary_falls_back_to_stable_lanes_by_start_time() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.fleet.stat_mut("old-1").est_wait_ms = 100;
    let steps = |host: &FakeHost| -> Vec<LaneId> {
        let advice = host.advise(&policy, &request_from("a")).unwrap();
        advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect()
    };
    assert_eq!(steps(&host), [1, 0]);
    host.fleet.stat_mut("old-2").state = LaneState::Down;
    assert_eq!(steps(&host), [0]);
}

#[test]
fn too_many_errors_pause_the_canary() {
    let mut host = host();
    let policy = canary(
        r#"{"canary": "new", "share-permille": 1000, "max-errors-permille": 200, "pause-s": 60}"#,
    );
    host.fleet.stat_mut("new").errors = 200;
    assert!(is_selected(&host, &policy, &request_from("a")));
    host.fleet.stat_mut("new").errors = 201;
    assert_eq!(
        reason(&host, &policy, &request_from("a")),
        "selected for canary new, but 201 of 1000 requests failed"
    );
    host.fleet.stat_mut("new").errors = 0;
    assert_eq!(
        reason(&host, &policy, &request_from("a")),
        "selected for canary new, but it is paused"
    );
    host.advance(60_000);
    assert!(is_selected(&host, &policy, &request_from("a")));
    assert_eq!(
        (host.counter("tripped"), host.counter("canary"), host.log_lines().len()),
        (1, 2, 1)
    );
    host.fill_state();
    host.fleet.stat_mut("new").errors = 500;
    assert!(
        !is_selected(&host, &policy, &request_from("a")),
        "with full state the current metrics decide"
    );
}

#[test]
fn slow_cold_or_unavailable_canary_gets_no_traffic() {
    let mut host = host();
    let slow = canary(r#"{"canary": "new", "share-permille": 1000, "max-first-token-ms": 500}"#);
    host.fleet.stat_mut("new").ttft_p50_ms = 501;
    assert_eq!(
        reason(&host, &slow, &request_from("a")),
        "selected for canary new, but its median time to first token is 501 ms"
    );
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.advance(300_000);
    host.fleet.stat_mut("new").state = LaneState::Unloaded;
    assert_eq!(
        reason(&host, &policy, &request_from("a")),
        "selected for canary new, but it is not loaded"
    );
    assert!(is_selected(
        &host,
        &canary(r#"{"canary": "new", "share-permille": 1000, "allow-cold-start": true}"#),
        &request_from("a")
    ));
    host.fleet.stat_mut("new").state = LaneState::Down;
    assert_eq!(
        reason(&host, &policy, &request_from("a")),
        "selected for canary new, but it is unavailable"
    );
}

#[test]
fn canary_serves_all_requests_if_no_other_lane_is_available() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 0}"#);
    host.fleet.stat_mut("old-1").state = LaneState::Down;
    host.fleet.stat_mut("old-2").state = LaneState::Draining;
    let advice = host.advise(&policy, &request_from("a")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Any);
}

#[test]
fn models_without_the_canary_get_no_advice() {
    let mut host = host();
    let policy = canary(r#"{"canary": "new", "share-permille": 1000}"#);
    host.fleet.lane_mut("new").models = vec!["new".into()];
    assert_eq!(host.advise(&policy, &request_from("a")).unwrap(), Advice::any());
    for idle in [r#"{"canary": "gone"}"#, "{}"] {
        assert_eq!(
            host.advise(&canary(idle), &request_from("a")).unwrap(),
            Advice::any(),
            "{idle}"
        );
    }
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"share-permille": 5}"#, "canary: required"),
        (r#"{"canary": ""}"#, "canary: expected a non-empty string"),
        (r#"{"canary": "new", "share": 5}"#, "share: unknown key"),
        (
            r#"{"canary": "new", "share-permille": 1001}"#,
            "share-permille: expected an integer from 0 to 1000",
        ),
        (r#"{"canary": "new", "by": "user"}"#, "by: expected \"tenant\", \"request\" or \"seed\""),
        (
            r#"{"canary": "new", "always": ["a"], "never": ["a"]}"#,
            "never: tenant \"a\" is also in `always`",
        ),
        (r#"{"canary": "new", "pause-s": 0}"#, "pause-s: expected an integer from 1"),
        (r#"{"canary": "new", "allow-cold-start": "no"}"#, "allow-cold-start: expected a boolean"),
    ] {
        match Canary::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
