use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};

use super::*;

const CONFIG: &str = r#"{"utc-offset-min": 60, "schedules": [
    {"name": "office", "days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00",
     "prefer": ["small", "big"], "load": ["small"], "release": ["big"], "preload-min": 15},
    {"name": "night", "from": "22:00", "to": "06:00", "prefer": ["big"], "only": true,
         "load": ["big"], "keep": ["small"]}
]}"#;

/// Creates a host whose clock is this time after Monday, 2026-11-16, 00:00 at UTC+1.
fn monday(hours: u64, minutes: u64) -> FakeHost {
    const MIDNIGHT_MS: u64 = 1_794_787_200_000 - 3_600_000;
    let mut fleet = FakeFleet::new(&["big", "small", "other"]);
    fleet.stat_mut("big").state = LaneState::Unloaded;
    FakeHost::new(fleet).at(MIDNIGHT_MS + (hours * 60 + minutes) * MINUTE_MS)
}

fn hours(config: &str) -> Hours {
    Hours::configure(config).unwrap()
}

fn request_for(model: &str) -> FakeRequest {
    FakeRequest::chat(&format!(r#"{{"model": "{model}", "messages": []}}"#))
}

fn hint(lane: LaneId, wish: Wish, for_ms: u32) -> LaneWish {
    LaneWish { lane, wish, for_ms }
}

#[test]
fn requests_prefer_the_lanes_of_the_active_schedule() {
    let policy = hours(CONFIG);
    let lanes = |host: &FakeHost, model| host.advise(&policy, &request_for(model)).unwrap().lanes;
    let office = Advice::scores([(1, 1000), (0, 500)]).lanes;
    assert_eq!(lanes(&monday(8, 0), "auto"), office);
    assert_eq!(lanes(&monday(17, 59), "auto"), office);
    assert_eq!(lanes(&monday(18, 0), "auto"), LaneAdvice::Any);
    assert_eq!(lanes(&monday(22, 0), "auto"), LaneAdvice::Ordered(vec![0]));
    assert_eq!(lanes(&monday(24 + 5, 59), "auto"), LaneAdvice::Ordered(vec![0]), "Tuesday");
    assert_eq!(lanes(&monday(5 * 24 + 12, 0), "auto"), LaneAdvice::Any, "Saturday");
    assert_eq!(lanes(&monday(8, 0), "other"), LaneAdvice::Any, "another model");
}

#[test]
fn unavailable_preferred_lanes_do_not_block_requests() {
    let (mut host, policy) = (monday(23, 0), hours(CONFIG));
    host.fleet.stat_mut("big").state = LaneState::Down;
    let advice = host.advise(&policy, &request_for("auto")).unwrap();
    assert_eq!(advice.lanes, LaneAdvice::Any);
    assert_eq!(
        advice.notes[0].value,
        Scalar::Text("night: no preferred lane is available for this model".into())
    );
}

#[test]
fn ticks_preload_keep_and_release_lanes() {
    let policy = hours(CONFIG);
    let hints = |host: &FakeHost| host.tick(&policy, 0);
    assert_eq!(hints(&monday(7, 44)), []);
    assert_eq!(hints(&monday(7, 45)), [hint(1, Wish::Keep, 120_000)], "loaded already");
    let mut cold = monday(7, 45);
    cold.fleet.stat_mut("small").state = LaneState::Unloaded;
    assert_eq!(hints(&cold), [hint(1, Wish::Load, 120_000)]);
    assert_eq!(
        hints(&monday(8, 0)),
        [hint(1, Wish::Keep, 120_000), hint(0, Wish::Release, 120_000)]
    );
    assert_eq!(
        hints(&monday(17, 59)),
        [hint(1, Wish::Keep, 60_000), hint(0, Wish::Release, 60_000)]
    );
    assert_eq!(hints(&monday(22, 0)), [hint(0, Wish::Load, 120_000), hint(1, Wish::Keep, 120_000)]);
}

#[test]
fn first_schedule_takes_precedence_per_lane() {
    let policy = hours(
        r#"{"schedules": [{"from": "00:00", "to": "24:00", "keep": ["big"]},
                          {"from": "00:00", "to": "24:00", "release": ["big", "other"],
             "prefer": ["small"]}]}"#,
    );
    let advice = monday(12, 0).advise(&policy, &request_for("auto")).unwrap();
    assert_eq!(
        advice.lanes,
        Advice::scores([(1, 1000)]).lanes,
        "the first schedule prefers no lanes"
    );
    assert_eq!(
        monday(12, 0).tick(&policy, 0),
        [hint(0, Wish::Keep, 120_000), hint(2, Wish::Release, 120_000)]
    );
}

#[test]
fn unknown_lanes_are_logged_and_skipped() {
    let policy = hours(
        r#"{"schedules": [{"from": "00:00", "to": "24:00", "load": ["gone", "other"],
            "prefer": ["gone"]}]}"#,
    );
    let host = monday(12, 0);
    assert_eq!(host.tick(&policy, 0), [hint(2, Wish::Keep, 120_000)]);
    assert_eq!(
        host.log_lines(),
        [(Level::Warn, "schedule names unknown lane \"gone\"".to_owned())]
    );
    assert_eq!(host.advise(&policy, &request_for("auto")).unwrap().lanes, LaneAdvice::Any);
}

#[test]
fn policy_without_schedules_gives_no_advice() {
    let policy = hours("{}");
    assert_eq!(monday(12, 0).advise(&policy, &request_for("auto")).unwrap(), Advice::any());
    assert_eq!(monday(12, 0).tick(&policy, 0), []);
}

#[test]
fn invalid_configuration_names_the_key() {
    for (schedule, part) in [
        (
            r#"{"from": "8:00", "to": "18:00"}"#,
            "schedules[0].from: expected a time of day from \"00:00\" to \"23:59\"",
        ),
        (r#"{"from": "24:00", "to": "18:00"}"#, "schedules[0].from: expected a time of day"),
        (
            r#"{"from": "08:00", "to": "24:01"}"#,
            "schedules[0].to: expected a time of day from \"00:00\" to \"24:00\"",
        ),
        (r#"{"from": "08:00", "to": "08:00"}"#, "schedules[0]: `from` and `to` must differ"),
        (r#"{"prefer": ["a"]}"#, "schedules[0]: `from` and `to` must differ"),
        (
            r#"{"from": "08:00", "to": "09:00", "days": ["monday"]}"#,
            "schedules[0].days[0]: expected \"mon\", \"tue\"",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "days": []}"#,
            "schedules[0].days: expected at least one day",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "only": true}"#,
            "schedules[0]: `only` requires lanes in `prefer`",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "load": ["a"], "release": ["a"]}"#,
            "schedules[0]: lane \"a\" is in both `load` and `release`",
        ),
        (
            r#"{"from": "08:00", "to": "09:00", "preload-min": 721}"#,
            "schedules[0].preload-min: expected an integer",
        ),
        (r#"{"until": "09:00"}"#, "schedules[0].until: unknown key"),
    ] {
        let config = format!(r#"{{"schedules": [{schedule}]}}"#);
        match Hours::configure(&config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
    assert!(Hours::configure(r#"{"utc-offset-min": 900}"#).is_err());
}
