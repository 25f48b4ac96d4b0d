use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};

use super::*;

const CONFIG: &str = r#"{"utc-offset-min": 60, "schedules": [
    {"name": "office", "days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00",
     "prefer": ["small", "big"], "load": ["small"], "release": ["big"], "ahead-min": 15},
    {"name": "night", "from": "22:00", "to": "06:00", "prefer": ["big"], "only": true, "load": ["big"], "keep": ["small"]}
]}"#;

/// Minutes after Monday, 2026-11-16, 00:00 in a zone an hour ahead of UTC.
fn monday(hours: u64, minutes: u64) -> FakeHost {
    const MIDNIGHT_MS: u64 = 1_794_787_200_000 - 3_600_000;
    let mut fleet = FakeFleet::new(&["big", "small", "other"]);
    fleet.stat_mut("big").state = LaneState::Unloaded;
    FakeHost::new(fleet).at(MIDNIGHT_MS + (hours * 60 + minutes) * MINUTE_MS)
}

fn hours(config: &str) -> Hours {
    Hours::configure(config).unwrap()
}

fn asking(model: &str) -> FakeRequest {
    FakeRequest::chat(&format!(r#"{{"model": "{model}", "messages": []}}"#))
}

fn wish(lane: LaneId, wish: Wish, for_ms: u32) -> LaneWish {
    LaneWish { lane, wish, for_ms }
}

#[test]
fn requests_prefer_the_lanes_of_the_hour() {
    let policy = hours(CONFIG);
    let lanes = |host: &FakeHost, model| host.advise(&policy, &asking(model)).unwrap().lanes;
    let office = Advice::scores([(1, 1000), (0, 500)]).lanes;
    assert_eq!(lanes(&monday(8, 0), "auto"), office);
    assert_eq!(lanes(&monday(17, 59), "auto"), office);
    assert_eq!(lanes(&monday(18, 0), "auto"), LaneAdvice::Any);
    assert_eq!(lanes(&monday(22, 0), "auto"), LaneAdvice::Ordered(vec![0]));
    assert_eq!(lanes(&monday(24 + 5, 59), "auto"), LaneAdvice::Ordered(vec![0]), "Tuesday");
    assert_eq!(lanes(&monday(5 * 24 + 12, 0), "auto"), LaneAdvice::Any, "Saturday");
    assert_eq!(lanes(&monday(8, 0), "other"), LaneAdvice::Any, "of another model");
}

#[test]
fn lanes_that_cannot_serve_are_no_reason_to_refuse() {
    let (mut host, policy) = (monday(23, 0), hours(CONFIG));
    host.fleet.stat_mut("big").state = LaneState::Down;
    let advice = host.advise(&policy, &asking("auto")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Any);
    assert_eq!(
        advice.notes[0].value,
        Scalar::Text("night: none of its lanes is able to serve this model".into())
    );
}

#[test]
fn ticks_load_ahead_keep_during_and_release() {
    let policy = hours(CONFIG);
    let wishes = |host: &FakeHost| host.tick(&policy, 0);
    assert_eq!(wishes(&monday(7, 44)), []);
    assert_eq!(wishes(&monday(7, 45)), [wish(1, Wish::Keep, 120_000)], "it is loaded already");
    let mut cold = monday(7, 45);
    cold.fleet.stat_mut("small").state = LaneState::Unloaded;
    assert_eq!(wishes(&cold), [wish(1, Wish::Load, 120_000)]);
    assert_eq!(
        wishes(&monday(8, 0)),
        [wish(1, Wish::Keep, 120_000), wish(0, Wish::Release, 120_000)]
    );
    assert_eq!(
        wishes(&monday(17, 59)),
        [wish(1, Wish::Keep, 60_000), wish(0, Wish::Release, 60_000)]
    );
    assert_eq!(
        wishes(&monday(22, 0)),
        [wish(0, Wish::Load, 120_000), wish(1, Wish::Keep, 120_000)]
    );
}

#[test]
fn of_two_schedules_the_first_one_has_its_way_with_a_lane() {
    let policy = hours(
        r#"{"schedules": [{"from": "00:00", "to": "24:00", "keep": ["big"]},
                          {"from": "00:00", "to": "24:00", "release": ["big", "other"], "prefer": ["small"]}]}"#,
    );
    let advice = monday(12, 0).advise(&policy, &asking("auto")).unwrap();
    assert_eq!(
        advice.lanes,
        Advice::scores([(1, 1000)]).lanes,
        "the first has nothing to say to requests"
    );
    assert_eq!(
        monday(12, 0).tick(&policy, 0),
        [wish(0, Wish::Keep, 120_000), wish(2, Wish::Release, 120_000)]
    );
}

#[test]
fn lanes_that_are_not_there_are_told_and_passed_over() {
    let policy = hours(
        r#"{"schedules": [{"from": "00:00", "to": "24:00", "load": ["gone", "other"], "prefer": ["gone"]}]}"#,
    );
    let host = monday(12, 0);
    assert_eq!(host.tick(&policy, 0), [wish(2, Wish::Keep, 120_000)]);
    assert_eq!(host.lines(), [(Level::Warn, "there is no lane `gone` to wish for".to_owned())]);
    assert_eq!(host.advise(&policy, &asking("auto")).unwrap().lanes, LaneAdvice::Any);
}

#[test]
fn without_schedules_there_is_nothing_to_say() {
    let policy = hours("{}");
    assert_eq!(monday(12, 0).advise(&policy, &asking("auto")).unwrap(), Advice::any());
    assert_eq!(monday(12, 0).tick(&policy, 0), []);
}

#[test]
fn wrong_configurations_name_the_key() {
    for (schedule, part) in [
        (
            r#"{"from": "8:00", "to": "18:00"}"#,
            "schedules[0].from: must be a time of day from \"00:00\" to \"23:59\"",
        ),
        (r#"{"from": "24:00", "to": "18:00"}"#, "schedules[0].from: must be a time of day"),
        (
            r#"{"from": "08:00", "to": "24:01"}"#,
            "schedules[0].to: must be a time of day from \"00:00\" to \"24:00\"",
        ),
        (r#"{"from": "08:00", "to": "08:00"}"#, "schedules[0]: `from` and `to` must differ"),
        (r#"{"prefer": ["a"]}"#, "schedules[0]: `from` and `to` must differ"),
        (
            r#"{"from": "08:00", "to": "09:00", "days": ["monday"]}"#,
            "schedules[0].days[0]: must be \"mon\", \"tue\"",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "days": []}"#,
            "schedules[0].days: must name at least one day",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "only": true}"#,
            "schedules[0]: `only` needs lanes in `prefer`",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "load": ["a"], "release": ["a"]}"#,
            "schedules[0]: `a` is in `load` and in `release`",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "ahead-min": 721}"#,
            "schedules[0].ahead-min: must be a whole number",
        ),
        (r#"{"until": "09:00"}"#, "there is no key `schedules[0].until`"),
    ] {
        let config = format!(r#"{{"schedules": [{schedule}]}}"#);
        match Hours::configure(&config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
    assert!(Hours::configure(r#"{"utc-offset-min": 900}"#).is_err());
}
