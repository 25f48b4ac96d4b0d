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

fn asking(id: &str, text: &str) -> FakeRequest {
    let body =
        format!(r#"{{"model": "auto", "messages": [{{"role": "user", "content": "{text}"}}]}}"#);
    FakeRequest::chat(&body).with_id(id)
}

/// The preferred lane and the reason.
fn prefer(host: &FakeHost, policy: &Spread, request: &FakeRequest) -> (LaneId, String) {
    let advice = host.advise(policy, request).unwrap();
    let LaneAdvice::Scores(scores) = &advice.lanes else { panic!("no scores: {advice:?}") };
    let best = scores.iter().max_by_key(|score| score.score).unwrap();
    let Scalar::Text(why) = &advice.notes[0].value else { panic!("the reason is no text") };
    (best.lane, why.clone())
}

fn served(host: &FakeHost, policy: &Spread, id: &str, lane: LaneId) {
    host.learn(policy, &[Outcome { request_id: id.into(), ..outcome(lane) }]);
}

#[test]
fn unseen_beginnings_have_a_home_that_depends_on_nothing_else() {
    let (host, policy) = (host(), spread("{}"));
    let text = "x".repeat(2000);
    let (home, why) = prefer(&host, &policy, &asking("1", &text));
    assert!(why.ends_with("is the home of this beginning"), "{why}");
    let (again, _) =
        prefer(&host, &policy, &asking("2", &format!("{text} and more")).with_seed(99));
    assert_eq!(again, home);
    let homes = |lanes: &[&str]| -> Vec<String> {
        let host = FakeHost::new(FakeFleet::new(lanes));
        let home = |n| prefer(&host, &spread("{}"), &asking("1", &format!("{n:04}").repeat(300))).0;
        (0..100).map(|n| lanes[home(n) as usize].to_owned()).collect()
    };
    let (four, three) = (homes(&["a", "b", "c", "d"]), homes(&["a", "b", "d"]));
    for lane in ["a", "b", "c", "d"] {
        let count = four.iter().filter(|home| *home == lane).count();
        assert!((10..45).contains(&count), "{lane} is the home of {count}");
    }
    let moved =
        four.iter().zip(&three).filter(|(four, three)| four != three && *four != "c").count();
    assert_eq!(moved, 0, "when a lane goes, only what was at home there moves");
}

#[test]
fn a_beginning_follows_the_lane_that_served_it_and_the_longest_one_counts() {
    let (host, policy) = (host(), spread("{}"));
    let system = "s".repeat(1024);
    let conversation = format!("{system}{}", "c".repeat(1024));
    let (home, _) = prefer(&host, &policy, &asking("1", &system));
    let other = (home + 1) % 4;
    served(&host, &policy, "1", other);
    let (lane, why) = prefer(&host, &policy, &asking("2", &conversation));
    assert!(lane == other && why.ends_with("has served this beginning before"), "{lane} {why}");
    let third = (home + 2) % 4;
    served(&host, &policy, "2", third);
    assert_eq!(prefer(&host, &policy, &asking("3", &conversation)).0, third);
    host.advance(600_001);
    assert_eq!(prefer(&host, &policy, &asking("4", &conversation)).0, home, "forgotten");
    assert_eq!((host.counted("remembered"), host.counted("hashed")), (2, 2));
}

#[test]
fn failed_and_unknown_requests_teach_nothing() {
    let (host, policy) = (host(), spread("{}"));
    let text = "x".repeat(1024);
    let (home, _) = prefer(&host, &policy, &asking("1", &text));
    let failed = Outcome {
        request_id: "1".into(),
        ended: TryResult::ServerError,
        ..outcome((home + 1) % 4)
    };
    host.learn(&policy, &[failed, Outcome { request_id: "never asked".into(), ..outcome(0) }]);
    served(&host, &policy, "1", (home + 1) % 4);
    assert_eq!(prefer(&host, &policy, &asking("2", &text)).0, home);
}

#[test]
fn the_cache_is_not_followed_onto_a_busy_lane() {
    let (mut host, policy) = (host(), spread(r#"{"slack-permille": 500}"#));
    let text = "x".repeat(1024);
    prefer(&host, &policy, &asking("1", &text));
    served(&host, &policy, "1", 2);
    host.fleet.stat_mut("c").running = 2;
    assert_eq!(
        prefer(&host, &policy, &asking("2", &text)).0,
        2,
        "two of four slots are within the slack"
    );
    host.fleet.stat_mut("c").queued = 1;
    assert_ne!(prefer(&host, &policy, &asking("3", &text)).0, 2);
    assert_eq!(host.counted("overloaded"), 1);
    for lane in ["a", "b", "d"] {
        host.fleet.stat_mut(lane).running = 1;
    }
    assert_eq!(prefer(&host, &policy, &asking("4", &text)).0, 2, "what counts is the difference");
}

#[test]
fn the_hosts_own_estimate_of_the_cache_counts_where_nothing_is_remembered() {
    let (mut host, policy) = (host(), spread("{}"));
    host.fleet.stat_mut("b").cached_tokens = 63;
    let text = "x".repeat(100);
    assert!(prefer(&host, &policy, &asking("1", &text)).1.ends_with("is the idlest"));
    host.fleet.stat_mut("b").cached_tokens = 64;
    assert_eq!(
        prefer(&host, &policy, &asking("1", &text)),
        (1, "b has 64 tokens cached".to_owned())
    );
}

#[test]
fn without_affinity_or_text_the_idlest_lane_is_preferred_and_equals_share() {
    let (mut host, policy) = (host(), spread(r#"{"affinity": false}"#));
    let text = "x".repeat(1024);
    let mut counts = [0; 4];
    for seed in 0..400 {
        counts[prefer(&host, &policy, &asking("1", &text).with_seed(seed)).0 as usize] += 1;
    }
    assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    for lane in ["a", "b", "d"] {
        host.fleet.stat_mut(lane).waiting = 1;
    }
    assert_eq!(prefer(&host, &policy, &asking("1", &text)), (2, "c is the idlest".to_owned()));
    let advice = host.advise(&policy, &asking("1", "short")).unwrap();
    assert_eq!(advice.lanes, Advice::scores([(0, 0), (1, 0), (2, 1000), (3, 0)]).lanes);
}

#[test]
fn lanes_that_are_not_loaded_are_taken_only_where_no_other_is() {
    let (mut host, policy) = (host(), spread("{}"));
    for (lane, state) in
        [("a", LaneState::Unloaded), ("b", LaneState::Down), ("c", LaneState::Draining)]
    {
        host.fleet.stat_mut(lane).state = state;
    }
    assert_eq!(prefer(&host, &policy, &asking("1", "hi")).0, 3);
    host.fleet.stat_mut("d").state = LaneState::Down;
    assert_eq!(prefer(&host, &policy, &asking("1", "hi")).0, 0);
    host.fleet.stat_mut("a").state = LaneState::Down;
    assert_eq!(host.advise(&policy, &asking("1", "hi")).unwrap(), Advice::any());
}

#[test]
fn without_room_in_the_state_beginnings_still_stay_together() {
    let (host, policy) = (host(), spread("{}"));
    host.fill_state();
    let text = "x".repeat(1024);
    let (home, _) = prefer(&host, &policy, &asking("1", &text));
    served(&host, &policy, "1", (home + 1) % 4);
    assert_eq!(prefer(&host, &policy, &asking("2", &text)).0, home);
}

proptest! {
    #[test]
    fn the_preferred_lane_is_never_busier_than_the_slack_allows(
        loads in proptest::collection::vec(0u32..20, 4),
        slack in 0u32..2000,
        length in 0usize..3000,
    ) {
        let mut host = host();
        for (stat, load) in host.fleet.stats.iter_mut().zip(&loads) {
            stat.running = *load;
        }
        let policy = spread(&format!(r#"{{"slack-permille": {slack}}}"#));
        let (lane, _) = prefer(&host, &policy, &asking("1", &"x".repeat(length)));
        let load = |lane: u32| lane * 1000 / 4;
        prop_assert!(load(loads[lane as usize]) <= load(*loads.iter().min().unwrap()) + slack);
    }
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"block": 5}"#, "there is no key `block`"),
        (r#"{"block-bytes": 8}"#, "block-bytes: must be a whole number from 16 to 65536, and is 8"),
        (r#"{"blocks": 2000}"#, "blocks: must be a whole number from 1 to 1024"),
        (r#"{"blocks": 2, "home-blocks": 3}"#, "home-blocks: 3 are more than the 2 blocks"),
        (r#"{"slack-permille": 0.5}"#, "slack-permille: must be a whole number"),
        (r#"{"remember-s": 0}"#, "remember-s: must be a whole number from 1"),
        (r#"{"affinity": 1}"#, "affinity: must be true or false"),
        (r#"{"cached-tokens": 0}"#, "cached-tokens: must be a whole number from 1"),
    ] {
        match Spread::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
