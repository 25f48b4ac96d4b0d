use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, outcome};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};
use proptest::prelude::*;

use super::*;

fn spread(config: &str) -> Spread {
    Spread::configure(config).unwrap()
}

fn host() -> FakeHost {
    FakeHost::new(FakeFleet::new(&["a", "b", "c", "d"]))
}

fn request_with(id: &str, text: &str) -> FakeRequest {
    let body =
        format!(r#"{{"model": "auto", "messages": [{{"role": "user", "content": "{text}"}}]}}"#);
    FakeRequest::chat(&body).with_id(id)
}

/// Returns the preferred lane and the reason.
fn preferred(host: &FakeHost, policy: &Spread, request: &FakeRequest) -> (LaneId, String) {
    let advice = host.advise(policy, request).unwrap();
    let LaneAdvice::Scores(scores) = &advice.lanes else { panic!("no scores: {advice:?}") };
    let best = scores.iter().max_by_key(|score| score.score).unwrap();
    let Scalar::Text(reason) = &advice.notes[0].value else { panic!("the reason is not a text") };
    (best.lane, reason.clone())
}

fn report_served(host: &FakeHost, policy: &Spread, id: &str, lane: LaneId) {
    host.observe(policy, &[Outcome { request_id: id.into(), ..outcome(lane) }]);
}

#[test]
fn unknown_prefixes_are_hashed_consistently() {
    let (host, policy) = (host(), spread("{}"));
    let text = "x".repeat(2000);
    let (home, reason) = preferred(&host, &policy, &request_with("1", &text));
    assert!(reason.ends_with("by prefix hash"), "{reason}");
    let (again, _) =
        preferred(&host, &policy, &request_with("2", &format!("{text} and more")).with_seed(99));
    assert_eq!(again, home);
    let homes = |lanes: &[&str]| -> Vec<String> {
        let host = FakeHost::new(FakeFleet::new(lanes));
        let home = |n| {
            preferred(&host, &spread("{}"), &request_with("1", &format!("{n:04}").repeat(300))).0
        };
        (0..100).map(|n| lanes[home(n) as usize].to_owned()).collect()
    };
    let (four, three) = (homes(&["a", "b", "c", "d"]), homes(&["a", "b", "d"]));
    for lane in ["a", "b", "c", "d"] {
        let count = four.iter().filter(|home| *home == lane).count();
        assert!((10..45).contains(&count), "{lane} has {count} prefixes");
    }
    let moved =
        four.iter().zip(&three).filter(|(four, three)| four != three && *four != "c").count();
    assert_eq!(moved, 0, "only the prefixes of the removed lane move");
}

#[test]
fn longest_remembered_prefix_decides() {
    let (host, policy) = (host(), spread("{}"));
    let system = "s".repeat(1024);
    let conversation = format!("{system}{}", "c".repeat(1024));
    let (home, _) = preferred(&host, &policy, &request_with("1", &system));
    let other = (home + 1) % 4;
    report_served(&host, &policy, "1", other);
    let (lane, reason) = preferred(&host, &policy, &request_with("2", &conversation));
    assert!(lane == other && reason.ends_with("served this prefix before"), "{lane} {reason}");
    let third = (home + 2) % 4;
    report_served(&host, &policy, "2", third);
    assert_eq!(preferred(&host, &policy, &request_with("3", &conversation)).0, third);
    host.advance(600_001);
    assert_eq!(preferred(&host, &policy, &request_with("4", &conversation)).0, home, "expired");
    assert_eq!((host.counter("remembered"), host.counter("hashed")), (2, 2));
}

#[test]
fn failed_and_unknown_requests_are_not_remembered() {
    let (host, policy) = (host(), spread("{}"));
    let text = "x".repeat(1024);
    let (home, _) = preferred(&host, &policy, &request_with("1", &text));
    let failed = Outcome {
        request_id: "1".into(),
        ended: TryResult::ServerError,
        ..outcome((home + 1) % 4)
    };
    host.observe(&policy, &[failed, Outcome { request_id: "unknown".into(), ..outcome(0) }]);
    report_served(&host, &policy, "1", (home + 1) % 4);
    assert_eq!(preferred(&host, &policy, &request_with("2", &text)).0, home);
}

#[test]
fn affinity_is_ignored_for_a_busy_lane() {
    let (mut host, policy) = (host(), spread(r#"{"slack-permille": 500}"#));
    let text = "x".repeat(1024);
    preferred(&host, &policy, &request_with("1", &text));
    report_served(&host, &policy, "1", 2);
    host.fleet.stat_mut("c").running = 2;
    assert_eq!(
        preferred(&host, &policy, &request_with("2", &text)).0,
        2,
        "two of four slots are within the slack"
    );
    host.fleet.stat_mut("c").queued = 1;
    assert_ne!(preferred(&host, &policy, &request_with("3", &text)).0, 2);
    assert_eq!(host.counter("overloaded"), 1);
    for lane in ["a", "b", "d"] {
        host.fleet.stat_mut(lane).running = 1;
    }
    assert_eq!(
        preferred(&host, &policy, &request_with("4", &text)).0,
        2,
        "only the difference counts"
    );
}

#[test]
fn host_cache_estimate_is_used_if_nothing_is_remembered() {
    let (mut host, policy) = (host(), spread("{}"));
    host.fleet.stat_mut("b").cached_tokens = 63;
    let text = "x".repeat(100);
    assert!(
        preferred(&host, &policy, &request_with("1", &text)).1.ends_with("is the least loaded")
    );
    host.fleet.stat_mut("b").cached_tokens = 64;
    assert_eq!(
        preferred(&host, &policy, &request_with("1", &text)),
        (1, "b has 64 tokens cached".to_owned())
    );
}

#[test]
fn least_loaded_lane_is_preferred_without_affinity_and_ties_are_random() {
    let (mut host, policy) = (host(), spread(r#"{"affinity": false}"#));
    let text = "x".repeat(1024);
    let mut counts = [0; 4];
    for seed in 0..400 {
        counts[preferred(&host, &policy, &request_with("1", &text).with_seed(seed)).0 as usize] +=
            1;
    }
    assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    for lane in ["a", "b", "d"] {
        host.fleet.stat_mut(lane).waiting = 1;
    }
    assert_eq!(
        preferred(&host, &policy, &request_with("1", &text)),
        (2, "c is the least loaded".to_owned())
    );
    let advice = host.advise(&policy, &request_with("1", "short")).unwrap();
    assert_eq!(advice.lanes, Advice::scores([(0, 0), (1, 0), (2, 1000), (3, 0)]).lanes);
}

#[test]
fn unloaded_lanes_are_scored_only_if_no_lane_is_serving() {
    let (mut host, policy) = (host(), spread("{}"));
    for (lane, state) in
        [("a", LaneState::Unloaded), ("b", LaneState::Down), ("c", LaneState::Draining)]
    {
        host.fleet.stat_mut(lane).state = state;
    }
    assert_eq!(preferred(&host, &policy, &request_with("1", "hi")).0, 3);
    host.fleet.stat_mut("d").state = LaneState::Down;
    assert_eq!(preferred(&host, &policy, &request_with("1", "hi")).0, 0);
    host.fleet.stat_mut("a").state = LaneState::Down;
    assert_eq!(host.advise(&policy, &request_with("1", "hi")).unwrap(), Advice::any());
}

#[test]
fn prefixes_stay_together_by_hash_if_the_state_is_full() {
    let (host, policy) = (host(), spread("{}"));
    host.fill_state();
    let text = "x".repeat(1024);
    let (home, _) = preferred(&host, &policy, &request_with("1", &text));
    report_served(&host, &policy, "1", (home + 1) % 4);
    assert_eq!(preferred(&host, &policy, &request_with("2", &text)).0, home);
}

proptest! {
    #[test]
    fn preferred_lane_is_within_the_slack(
        loads in proptest::collection::vec(0u32..20, 4),
        slack in 0u32..2000,
        length in 0usize..3000,
    ) {
        let mut host = host();
        for (stat, load) in host.fleet.stats.iter_mut().zip(&loads) {
            stat.running = *load;
        }
        let policy = spread(&format!(r#"{{"slack-permille": {slack}}}"#));
        let (lane, _) = preferred(&host, &policy, &request_with("1", &"x".repeat(length)));
        let load = |running: u32| running * 1000 / 4;
        prop_assert!(load(loads[lane as usize]) <= load(*loads.iter().min().unwrap()) + slack);
    }
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"block": 5}"#, "block: unknown key"),
        (r#"{"block-bytes": 8}"#, "block-bytes: expected an integer from 16 to 65536, found 8"),
        (r#"{"max-blocks": 2000}"#, "max-blocks: expected an integer from 1 to 1024"),
        (r#"{"max-blocks": 2, "hash-blocks": 3}"#, "hash-blocks: 3 exceeds `max-blocks` (2)"),
        (r#"{"slack-permille": 0.5}"#, "slack-permille: expected an integer"),
        (r#"{"prefix-ttl-s": 0}"#, "prefix-ttl-s: expected an integer from 1"),
        (r#"{"affinity": 1}"#, "affinity: expected a boolean"),
        (r#"{"min-cached-tokens": 0}"#, "min-cached-tokens: expected an integer from 1"),
    ] {
        match Spread::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
