use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, outcome};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};

use super::*;

const CONFIG: &str = r#"{"tiers": ["best", "good", "cheap"], "thresholds": [500, 900],
                         "tenants": {"acme": 10000}, "period-h": 1}"#;

fn budget(config: &str) -> Budget {
    Budget::configure(config).unwrap()
}

/// Creates a host with three lanes that cost 4000, 2000 and 500 thousandths per thousand tokens,
/// and one lane without a tier.
fn host() -> FakeHost {
    let mut fleet = FakeFleet::new(&["best", "good", "cheap", "free"]);
    for (name, cost) in [("best", 4000), ("good", 2000), ("cheap", 500)] {
        let lane = fleet.lane_mut(name);
        lane.labels.push(("tier".into(), name.into()));
        lane.cost_milli = cost;
    }
    FakeHost::new(fleet).at(3_600_000 * 1000 + 1_000)
}

fn request_from(tenant: &str) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#).with_tenant(tenant)
}

/// Reports a finished request that used `tokens` tokens on `lane`.
fn spend(host: &FakeHost, policy: &Budget, tenant: &str, lane: LaneId, tokens: u32) {
    let tenant = Some(tenant.to_owned());
    host.observe(
        policy,
        &[Outcome {
            tenant,
            prompt_tokens: tokens / 4,
            output_tokens: tokens - tokens / 4,
            ..outcome(lane)
        }],
    );
}

fn avoided(host: &FakeHost, policy: &Budget, tenant: &str) -> Vec<LaneId> {
    match host.advise(policy, &request_from(tenant)).unwrap().lanes {
        LaneAdvice::Any => Vec::new(),
        LaneAdvice::Avoid(lanes) => lanes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tiers_close_at_thresholds_and_reopen_in_the_next_period() {
    let (host, policy) = (host(), budget(CONFIG));
    assert!(avoided(&host, &policy, "acme").is_empty());
    spend(&host, &policy, "acme", 0, 1249);
    assert!(avoided(&host, &policy, "acme").is_empty(), "4996 of 10000");
    spend(&host, &policy, "acme", 0, 1);
    assert_eq!(avoided(&host, &policy, "acme"), [0], "5000 of 10000");
    spend(&host, &policy, "acme", 1, 2000);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1], "9000 of 10000");
    spend(&host, &policy, "acme", 2, 1_000_000);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1], "the cheapest tier never closes");
    assert!(avoided(&host, &policy, "other").is_empty(), "no limit");
    assert_eq!(host.recorded_values("spent-milli"), [4996, 4, 4000, 500_000]);
    host.advance(3_599_000);
    assert!(avoided(&host, &policy, "acme").is_empty(), "a new period");
}

#[test]
fn hard_stop_rejects_until_the_next_period() {
    let config = CONFIG.replace("\"period-h\"", "\"hard-stop\": true, \"period-h\"");
    let (host, policy) = (host(), budget(&config));
    spend(&host, &policy, "acme", 0, 2499);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1]);
    spend(&host, &policy, "acme", 0, 1);
    let rejection = host.advise(&policy, &request_from("acme")).unwrap().reject.unwrap();
    assert_eq!((rejection.status, rejection.code.as_str()), (429, "budget_spent"));
    assert_eq!(rejection.retry_after_s, Some(3599));
    assert_eq!(host.counter("rejected"), 1);
    assert!(host.advise(&policy, &request_from("other")).unwrap().reject.is_none());
}

#[test]
fn next_more_expensive_tier_reopens_if_no_cheaper_lane_is_available() {
    let (mut host, policy) = (host(), budget(CONFIG));
    host.fleet.lane_mut("free").models.clear();
    spend(&host, &policy, "acme", 0, 2500);
    host.fleet.stat_mut("cheap").state = LaneState::Down;
    assert_eq!(avoided(&host, &policy, "acme"), [0]);
    host.fleet.stat_mut("good").state = LaneState::Draining;
    let advice = host.advise(&policy, &request_from("acme")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Avoid(Vec::new()));
    assert_eq!(
        advice.notes[0].value,
        Scalar::Text("100 % of the budget used; no cheaper lane is available".into())
    );
}

#[test]
fn default_limit_applies_per_unlisted_tenant_and_to_requests_without_one() {
    let (host, policy) = (host(), budget(r#"{"tiers": ["best", "cheap"], "default-milli": 4}"#));
    spend(&host, &policy, "a", 0, 1);
    assert_eq!((avoided(&host, &policy, "a"), avoided(&host, &policy, "b")), (vec![0], vec![]));
    host.observe(&policy, &[Outcome { output_tokens: 1, ..outcome(0) }]);
    let anonymous = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    assert_eq!(host.advise(&policy, &anonymous).unwrap().lanes, LaneAdvice::Avoid(vec![0]));
}

#[test]
fn tenants_without_limit_are_not_recorded_and_limit_zero_is_always_reached() {
    let (host, policy) =
        (host(), budget(r#"{"tiers": ["best", "cheap"], "tenants": {"none": 0}}"#));
    spend(&host, &policy, "acme", 0, 1000);
    assert!(host.recorded_values("spent-milli").is_empty());
    assert_eq!(host.advise(&budget("{}"), &request_from("acme")).unwrap(), Advice::any());
    assert_eq!(avoided(&host, &policy, "none"), [0]);
}

#[test]
fn spending_that_cannot_be_recorded_is_logged() {
    let (host, policy) = (host(), budget(CONFIG));
    host.fill_state();
    spend(&host, &policy, "acme", 0, 1000);
    assert!(host.log_lines()[0].1.contains("tenant=acme micros=4000000"), "{:?}", host.log_lines());
    assert!(avoided(&host, &policy, "acme").is_empty(), "requests are still served");
}

#[test]
fn default_thresholds_divide_the_limit_evenly() {
    let thresholds = |config| budget(config).config.thresholds;
    assert!(thresholds(r#"{"tiers": ["a"]}"#).is_empty());
    assert_eq!(thresholds(r#"{"tiers": ["a", "b"]}"#), [500]);
    assert_eq!(thresholds(r#"{"tiers": ["a", "b", "c"]}"#), [333, 666]);
    assert_eq!(thresholds(r#"{"thresholds": [800], "tiers": ["a", "b", "c"]}"#), [800]);
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"default-milli": 5}"#, "tiers: required"),
        (r#"{"thresholds": [500]}"#, "tiers: required"),
        (r#"{"tiers": []}"#, "tiers: expected at least one tier"),
        (r#"{"tiers": ["a", "a"]}"#, "tiers[1]: duplicate value \"a\""),
        (
            r#"{"tiers": ["a", "b"], "thresholds": [500, 600]}"#,
            "thresholds: expected fewer thresholds than tiers",
        ),
        (
            r#"{"tiers": ["a", "b", "c"], "thresholds": [600, 600]}"#,
            "thresholds: thresholds must be in ascending order",
        ),
        (
            r#"{"tiers": ["a", "b"], "thresholds": [1001]}"#,
            "thresholds[0]: expected an integer from 1 to 1000",
        ),
        (
            r#"{"tiers": ["a"], "tenants": {"acme": -5}}"#,
            "tenants.acme: expected an integer from 0",
        ),
        (r#"{"tiers": ["a"], "period-h": 673}"#, "period-h: expected an integer from 1 to 672"),
        (r#"{"tiers": ["a"], "hard-stop": "yes"}"#, "hard-stop: expected a boolean"),
        (r#"{"tiers": ["a"], "limit": 5}"#, "limit: unknown key"),
    ] {
        match Budget::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
