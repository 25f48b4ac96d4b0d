use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, advise};
use pointsman_sdk::{LaneAdvice, LaneState, TryResult};

use super::*;

const LANES: [&str; 3] = ["fast", "slow", "spare"];

fn deadline(config: &str) -> Deadline {
    Deadline::configure(config).unwrap()
}

/// Creates a fleet with two lanes of the model `auto`, with waits of 200 and 3000 ms, and a spare
/// lane of another model.
fn fleet() -> FakeFleet {
    let mut fleet = FakeFleet::new(&LANES);
    fleet.stat_mut("fast").est_wait_ms = 200;
    fleet.stat_mut("slow").est_wait_ms = 3000;
    fleet.lane_mut("spare").models = vec!["spare".into()];
    fleet
}

fn request_within(ms: u64) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#)
        .with_header("x-deadline-ms", &ms.to_string())
}

fn steps(advice: &Advice) -> Vec<LaneId> {
    advice
        .fallback
        .as_ref()
        .map_or_else(Vec::new, |fallback| fallback.steps.iter().map(|step| step.lane).collect())
}

fn max_wait(advice: &Advice) -> Option<u32> {
    advice.queue.as_ref()?.max_wait_ms
}

#[test]
fn requests_without_a_deadline_get_no_advice() {
    let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    assert_eq!(advise(&deadline("{}"), &request, &fleet()).unwrap(), Advice::any());
    let invalid = request.with_header("x-deadline-ms", "soon");
    assert_eq!(advise(&deadline("{}"), &invalid, &fleet()).unwrap(), Advice::any());
}

#[test]
fn budget_precedence_is_header_tenant_model_default() {
    let policy = deadline(
        r#"{"header": "x-ms", "tenants": {"acme": 4000}, "models": {"auto": 1000},
            "default-ms": 100}"#,
    );
    let request_for =
        |model: &str| FakeRequest::chat(&format!(r#"{{"model": "{model}", "messages": []}}"#));
    for (request, all_are_timely) in [
        (request_for("auto"), false),
        (request_for("auto").with_tenant("acme"), true),
        (request_for("auto").with_tenant("other"), false),
        (request_for("auto").with_tenant("acme").with_header("X-MS", " 500 "), false),
        (request_for("slow").with_tenant("acme"), true),
    ] {
        let advice = advise(&policy, &request, &fleet()).unwrap();
        assert_eq!(advice.lanes == LaneAdvice::Any, all_are_timely, "{request:?}");
    }
    let late = advise(&policy, &request_for("slow"), &fleet()).unwrap();
    assert_eq!(late.lanes, LaneAdvice::Ordered(vec![1]), "the default");
}

#[test]
fn late_lanes_are_excluded_and_the_max_wait_leaves_time_to_fall_back() {
    let policy = deadline("{}");
    let some = advise(&policy, &request_within(1000), &fleet()).unwrap();
    assert_eq!((&some.lanes, max_wait(&some)), (&LaneAdvice::Only(vec![0]), Some(1000)));
    assert_eq!(steps(&some), [0, 1], "late lanes come last in the fallback");
    let all = advise(&policy, &request_within(5000), &fleet()).unwrap();
    assert_eq!(
        (&all.lanes, max_wait(&all), steps(&all)),
        (&LaneAdvice::Any, Some(3000), vec![0, 1])
    );
    let strict =
        advise(&deadline(r#"{"late": "reject"}"#), &request_within(1000), &fleet()).unwrap();
    assert_eq!(steps(&strict), [0], "no late fallback with `late = reject`");
    let fallback =
        advise(&deadline(r#"{"fallback": ["spare"]}"#), &request_within(1000), &fleet()).unwrap();
    assert_eq!((max_wait(&fallback), steps(&fallback)), (Some(800), vec![0, 2, 1]));
}

#[test]
fn age_load_time_and_first_token_count() {
    let mut request = request_within(1000);
    request.context.age_us = 850_000;
    assert_eq!(
        advise(&deadline("{}"), &request, &fleet()).unwrap().lanes,
        LaneAdvice::Ordered(vec![0, 1])
    );
    let only_fast = |change: fn(&mut FakeFleet), config: &str| {
        let mut fleet = fleet();
        change(&mut fleet);
        let advice = advise(&deadline(config), &request_within(1000), &fleet).unwrap();
        (advice.lanes == LaneAdvice::Only(vec![0]), max_wait(&advice))
    };
    assert_eq!(only_fast(|fleet| fleet.stat_mut("fast").ready_in_ms = 801, "{}"), (false, None));
    assert_eq!(
        only_fast(|fleet| fleet.stat_mut("fast").ttft_p50_ms = 800, "{}"),
        (true, Some(200))
    );
    assert_eq!(only_fast(|fleet| fleet.stat_mut("fast").ttft_p50_ms = 801, "{}"), (false, None));
    let ignored = r#"{"first-token": false}"#;
    assert_eq!(
        only_fast(|fleet| fleet.stat_mut("fast").ttft_p50_ms = 801, ignored),
        (true, Some(1000))
    );
}

#[test]
fn fallback_lane_is_used_if_no_candidate_is_timely() {
    let policy = deadline(r#"{"fallback": ["spare", "gone"]}"#);
    let advice = advise(&policy, &request_within(100), &fleet()).unwrap();
    assert_eq!((&advice.lanes, max_wait(&advice)), (&LaneAdvice::Only(vec![0]), Some(0)));
    assert_eq!(steps(&advice), [2, 0, 1]);
    let mut down = fleet();
    down.stat_mut("fast").state = LaneState::Down;
    down.stat_mut("slow").state = LaneState::Draining;
    let advice = advise(&policy, &request_within(100), &down).unwrap();
    assert_eq!((&advice.lanes, steps(&advice)), (&LaneAdvice::Any, vec![2]));
    down.lane_mut("spare").max_context = 10;
    let mut long = request_within(100);
    long.context.prompt_tokens = 11;
    assert_eq!(
        advise(&policy, &long, &down).unwrap().fallback,
        None,
        "the request does not fit into the spare lane"
    );
}

#[test]
fn requests_no_lane_can_serve_in_time_are_rejected_or_served_late() {
    let late = advise(&deadline("{}"), &request_within(100), &fleet()).unwrap();
    assert_eq!((&late.lanes, max_wait(&late)), (&LaneAdvice::Ordered(vec![0, 1]), None));
    let rejected =
        advise(&deadline(r#"{"late": "reject"}"#), &request_within(100), &fleet()).unwrap();
    let rejection = rejected.reject.unwrap();
    assert_eq!((rejection.status, rejection.retry_after_s), (503, Some(1)));
    assert_eq!(rejection.code, "deadline_unreachable");
    assert!(rejection.message.contains("100 ms left") && rejection.message.contains("take 200 ms"));
    let mut down = fleet();
    LANES.iter().for_each(|lane| down.stat_mut(lane).state = LaneState::Down);
    let nothing = advise(&deadline(r#"{"late": "reject"}"#), &request_within(100), &down).unwrap();
    assert!(
        nothing.reject.is_none() && nothing.lanes == LaneAdvice::Any,
        "unavailable lanes are left to the host"
    );
}

#[test]
fn retry_after_is_bounded() {
    let hint = |fastest| rejection(Budget { total_ms: 1000, left_ms: 900 }, fastest).retry_after_s;
    assert_eq!(
        [hint(Some(950)), hint(Some(3001)), hint(Some(10_000_000)), hint(None)],
        [Some(1), Some(3), Some(60), Some(60)]
    );
}

#[test]
fn recovery_uses_current_metrics() {
    let failed = |sent_bytes, tries_left| Failure {
        lane: 0,
        what: TryResult::ServerError,
        status: 500,
        sent_bytes,
        elapsed_ms: 100,
        tries_left,
    };
    let host = FakeHost::new(fleet());
    let strict = deadline(r#"{"late": "reject"}"#);
    let after = |policy: &Deadline, ms, failed: &Failure| {
        host.recover(policy, &request_within(ms), failed).unwrap()
    };
    assert_eq!(after(&strict, 5000, &failed(0, 1)), Recovery::Retry(FallbackStep::new(1)));
    assert!(matches!(
        after(&strict, 1000, &failed(0, 1)),
        Recovery::GiveUp(rejection) if rejection.status == 503
    ));
    assert_eq!(after(&deadline("{}"), 1000, &failed(0, 1)), Recovery::Planned);
    assert_eq!(
        after(&strict, 5000, &failed(1, 1)),
        Recovery::Planned,
        "output has reached the client"
    );
    assert_eq!(after(&strict, 5000, &failed(0, 0)), Recovery::Planned, "no attempt left");
    let spare = deadline(r#"{"fallback": ["spare"]}"#);
    assert_eq!(after(&spare, 1000, &failed(0, 1)), Recovery::Retry(FallbackStep::new(2)));
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"defualt-ms": 5}"#, "defualt-ms: unknown key"),
        (r#"{"default-ms": 0}"#, "default-ms: expected an integer from 1 to 86400000, found 0"),
        (r#"{"tenants": {"acme": "fast"}}"#, "tenants.acme: expected an integer"),
        (r#"{"models": []}"#, "models: expected an object"),
        (r#"{"late": "refuse"}"#, "late: expected \"reject\" or \"best-effort\", found \"refuse\""),
        (r#"{"fallback": "spare"}"#, "fallback: expected a list"),
        (r#"{"first-token": 1}"#, "first-token: expected a boolean"),
    ] {
        match Deadline::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
