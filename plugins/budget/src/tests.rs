use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, outcome};
use pointsman_sdk::{LaneAdvice, LaneState};

use super::*;

const CONFIG: &str = r#"{"tiers": ["best", "good", "cheap"], "thresholds": [500, 900],
                         "tenants": {"acme": 10000}, "period-h": 1}"#;

fn budget(config: &str) -> Budget {
    Budget::configure(config).unwrap()
}

/// Three lanes that cost 4000, 2000 and 500 thousandths for a thousand tokens, and one without a tier.
fn host() -> FakeHost {
    let mut fleet = FakeFleet::new(&["best", "good", "cheap", "free"]);
    for (name, cost) in [("best", 4000), ("good", 2000), ("cheap", 500)] {
        let lane = fleet.lane_mut(name);
        lane.labels.push(("tier".into(), name.into()));
        lane.cost_milli = cost;
    }
    FakeHost::new(fleet).at(3_600_000 * 1000 + 1_000)
}

fn of(tenant: &str) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#).of_tenant(tenant)
}

/// Let a tenant's request on a lane use so many tokens.
fn spend(host: &FakeHost, policy: &Budget, tenant: &str, lane: LaneId, tokens: u32) {
    let tenant = Some(tenant.to_owned());
    host.learn(
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
    match host.advise(policy, &of(tenant)).unwrap().lanes {
        LaneAdvice::Any => Vec::new(),
        LaneAdvice::Avoid(lanes) => lanes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tiers_close_as_money_is_spent_and_open_with_the_next_period() {
    let (host, policy) = (host(), budget(CONFIG));
    assert!(avoided(&host, &policy, "acme").is_empty());
    spend(&host, &policy, "acme", 0, 1249);
    assert!(avoided(&host, &policy, "acme").is_empty(), "4996 of 10000");
    spend(&host, &policy, "acme", 0, 1);
    assert_eq!(avoided(&host, &policy, "acme"), [0], "5000 of 10000");
    spend(&host, &policy, "acme", 1, 2000);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1], "9000 of 10000");
    spend(&host, &policy, "acme", 2, 1_000_000);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1], "the cheapest never closes");
    assert!(avoided(&host, &policy, "other").is_empty(), "no limit, nothing to close");
    assert_eq!(host.recorded("spent-milli"), [4996, 4, 4000, 500_000]);
    host.advance(3_599_000);
    assert!(avoided(&host, &policy, "acme").is_empty(), "a new period");
}

#[test]
fn a_hard_stop_refuses_until_the_next_period() {
    let config = CONFIG.replace("\"period-h\"", "\"hard-stop\": true, \"period-h\"");
    let (host, policy) = (host(), budget(&config));
    spend(&host, &policy, "acme", 0, 2499);
    assert_eq!(avoided(&host, &policy, "acme"), [0, 1]);
    spend(&host, &policy, "acme", 0, 1);
    let rejection = host.advise(&policy, &of("acme")).unwrap().reject.unwrap();
    assert_eq!((rejection.status, rejection.retry_after_s), (429, Some(3599)));
    assert_eq!(host.counted("stopped"), 1);
    assert!(host.advise(&policy, &of("other")).unwrap().reject.is_none());
}

#[test]
fn where_nothing_cheaper_works_the_next_dearer_tier_serves() {
    let (mut host, policy) = (host(), budget(CONFIG));
    host.fleet.lane_mut("free").models.clear();
    spend(&host, &policy, "acme", 0, 2500);
    host.fleet.stat_mut("cheap").state = LaneState::Down;
    assert_eq!(avoided(&host, &policy, "acme"), [0]);
    host.fleet.stat_mut("good").state = LaneState::Draining;
    let advice = host.advise(&policy, &of("acme")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Avoid(Vec::new()));
    assert_eq!(
        advice.notes[0].value,
        Scalar::Text("100 % of the budget is spent, and nothing cheaper is able to serve".into())
    );
}

#[test]
fn everybody_else_has_the_default_each_and_so_have_requests_without_a_tenant() {
    let (host, policy) = (host(), budget(r#"{"tiers": ["best", "cheap"], "default-milli": 4}"#));
    spend(&host, &policy, "a", 0, 1);
    assert_eq!((avoided(&host, &policy, "a"), avoided(&host, &policy, "b")), (vec![0], vec![]));
    host.learn(&policy, &[Outcome { output_tokens: 1, ..outcome(0) }]);
    let anonymous = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    assert_eq!(host.advise(&policy, &anonymous).unwrap().lanes, LaneAdvice::Avoid(vec![0]));
}

#[test]
fn no_limit_means_nothing_is_kept_and_a_limit_of_nothing_is_always_spent() {
    let (host, policy) =
        (host(), budget(r#"{"tiers": ["best", "cheap"], "tenants": {"none": 0}}"#));
    spend(&host, &policy, "acme", 0, 1000);
    assert!(host.recorded("spent-milli").is_empty());
    assert_eq!(host.advise(&budget("{}"), &of("acme")).unwrap(), Advice::any());
    assert_eq!(avoided(&host, &policy, "none"), [0]);
}

#[test]
fn money_that_cannot_be_kept_is_told() {
    let (host, policy) = (host(), budget(CONFIG));
    host.fill_state();
    spend(&host, &policy, "acme", 0, 1000);
    assert!(
        host.lines()[0].1.contains("4000000 millionths of Some(\"acme\") are lost"),
        "{:?}",
        host.lines()
    );
    assert!(avoided(&host, &policy, "acme").is_empty(), "the service goes on");
}

#[test]
fn thresholds_part_the_limit_evenly_unless_given() {
    let thresholds = |config| budget(config).config.thresholds;
    assert!(thresholds(r#"{"tiers": ["a"]}"#).is_empty());
    assert_eq!(thresholds(r#"{"tiers": ["a", "b"]}"#), [500]);
    assert_eq!(thresholds(r#"{"tiers": ["a", "b", "c"]}"#), [333, 666]);
    assert_eq!(thresholds(r#"{"thresholds": [800], "tiers": ["a", "b", "c"]}"#), [800]);
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"default-milli": 5}"#, "tiers: is missing"),
        (r#"{"thresholds": [500]}"#, "tiers: is missing"),
        (r#"{"tiers": []}"#, "tiers: must name at least one tier"),
        (r#"{"tiers": ["a", "a"]}"#, "tiers[1]: \"a\" is in the list twice"),
        (
            r#"{"tiers": ["a", "b"], "thresholds": [500, 600]}"#,
            "thresholds: must be fewer than there are tiers",
        ),
        (r#"{"tiers": ["a", "b", "c"], "thresholds": [600, 600]}"#, "thresholds: must rise"),
        (
            r#"{"tiers": ["a", "b"], "thresholds": [1001]}"#,
            "thresholds[0]: must be a whole number from 1 to 1000",
        ),
        (
            r#"{"tiers": ["a"], "tenants": {"acme": -5}}"#,
            "tenants.acme: must be a whole number from 0",
        ),
        (r#"{"tiers": ["a"], "period-h": 673}"#, "period-h: must be a whole number from 1 to 672"),
        (r#"{"tiers": ["a"], "hard-stop": "yes"}"#, "hard-stop: must be true or false"),
        (r#"{"tiers": ["a"], "limit": 5}"#, "there is no key `limit`"),
    ] {
        match Budget::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
