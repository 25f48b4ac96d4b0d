use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, advise};
use pointsman_sdk::{LaneAdvice, LaneState, TryResult};

use super::*;

const LANES: [&str; 3] = ["fast", "slow", "spare"];

fn deadline(config: &str) -> Deadline {
    Deadline::configure(config).unwrap()
}

/// Two lanes of the model, waiting for 200 and 3000 ms, and a spare one of another model.
fn fleet() -> FakeFleet {
    let mut fleet = FakeFleet::new(&LANES);
    fleet.stat_mut("fast").est_wait_ms = 200;
    fleet.stat_mut("slow").est_wait_ms = 3000;
    fleet.lane_mut("spare").models = vec!["spare".into()];
    fleet
}

fn within(ms: u64) -> FakeRequest {
    FakeRequest::chat(r#"{"model": "auto", "messages": []}"#)
        .with_header("x-deadline-ms", &ms.to_string())
}

fn steps(advice: &Advice) -> Vec<LaneId> {
    advice
        .fallback
        .as_ref()
        .map_or_else(Vec::new, |it| it.steps.iter().map(|step| step.lane).collect())
}

fn wait(advice: &Advice) -> Option<u32> {
    advice.queue.as_ref()?.max_wait_ms
}

#[test]
fn without_a_deadline_there_is_no_opinion() {
    let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    assert_eq!(advise(&deadline("{}"), &request, &fleet()).unwrap(), Advice::any());
    let odd = request.with_header("x-deadline-ms", "soon");
    assert_eq!(advise(&deadline("{}"), &odd, &fleet()).unwrap(), Advice::any());
}

#[test]
fn budgets_come_from_header_tenant_model_and_default_in_this_order() {
    let policy = deadline(
        r#"{"header": "x-ms", "tenants": {"acme": 4000}, "models": {"auto": 1000}, "default-ms": 100}"#,
    );
    let asking =
        |model: &str| FakeRequest::chat(&format!(r#"{{"model": "{model}", "messages": []}}"#));
    for (request, slow_will_do) in [
        (asking("auto"), false),
        (asking("auto").of_tenant("acme"), true),
        (asking("auto").of_tenant("other"), false),
        (asking("auto").of_tenant("acme").with_header("X-MS", " 500 "), false),
        (asking("slow").of_tenant("acme"), true),
    ] {
        let advice = advise(&policy, &request, &fleet()).unwrap();
        assert_eq!(advice.lanes == LaneAdvice::Any, slow_will_do, "{request:?}");
    }
    let late = advise(&policy, &asking("slow"), &fleet()).unwrap();
    assert_eq!(late.lanes, LaneAdvice::Ordered(vec![1]), "the default");
}

#[test]
fn lanes_that_would_be_late_are_left_out_and_the_wait_leaves_time_to_fall_back() {
    let policy = deadline("{}");
    let some = advise(&policy, &within(1000), &fleet()).unwrap();
    assert_eq!((&some.lanes, wait(&some)), (&LaneAdvice::Only(vec![0]), Some(1000)));
    assert_eq!(steps(&some), [0, 1], "late is better than never");
    let all = advise(&policy, &within(5000), &fleet()).unwrap();
    assert_eq!((&all.lanes, wait(&all), steps(&all)), (&LaneAdvice::Any, Some(3000), vec![0, 1]));
    let strict = advise(&deadline(r#"{"late": "reject"}"#), &within(1000), &fleet()).unwrap();
    assert_eq!(steps(&strict), [0], "whoever wants refusals wants no late answers");
    let helper = advise(&deadline(r#"{"fallback": ["spare"]}"#), &within(1000), &fleet()).unwrap();
    assert_eq!((wait(&helper), steps(&helper)), (Some(800), vec![0, 2, 1]));
}

#[test]
fn age_loading_and_first_token_count() {
    let mut request = within(1000);
    request.context.age_us = 850_000;
    assert_eq!(
        advise(&deadline("{}"), &request, &fleet()).unwrap().lanes,
        LaneAdvice::Ordered(vec![0, 1])
    );
    let only_fast = |change: fn(&mut FakeFleet), config: &str| {
        let mut fleet = fleet();
        change(&mut fleet);
        let advice = advise(&deadline(config), &within(1000), &fleet).unwrap();
        (advice.lanes == LaneAdvice::Only(vec![0]), wait(&advice))
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
fn a_helper_takes_over_where_no_candidate_makes_it() {
    let policy = deadline(r#"{"fallback": ["spare", "gone"]}"#);
    let advice = advise(&policy, &within(100), &fleet()).unwrap();
    assert_eq!((&advice.lanes, wait(&advice)), (&LaneAdvice::Only(vec![0]), Some(0)));
    assert_eq!(steps(&advice), [2, 0, 1]);
    let mut down = fleet();
    down.stat_mut("fast").state = LaneState::Down;
    down.stat_mut("slow").state = LaneState::Draining;
    let advice = advise(&policy, &within(100), &down).unwrap();
    assert_eq!((&advice.lanes, steps(&advice)), (&LaneAdvice::Any, vec![2]));
    down.lane_mut("spare").max_context = 10;
    let mut long = within(100);
    long.context.prompt_tokens = 11;
    assert_eq!(
        advise(&policy, &long, &down).unwrap().fallback,
        None,
        "it does not fit into the spare lane"
    );
}

#[test]
fn what_nothing_can_serve_in_time_is_refused_or_served_late() {
    let late = advise(&deadline("{}"), &within(100), &fleet()).unwrap();
    assert_eq!((&late.lanes, wait(&late)), (&LaneAdvice::Ordered(vec![0, 1]), None));
    let refused = advise(&deadline(r#"{"late": "reject"}"#), &within(100), &fleet()).unwrap();
    let rejection = refused.reject.unwrap();
    assert_eq!((rejection.status, rejection.retry_after_s), (503, Some(1)));
    assert!(rejection.message.contains("100 ms left") && rejection.message.contains("take 200 ms"));
    let mut down = fleet();
    LANES.iter().for_each(|lane| down.stat_mut(lane).state = LaneState::Down);
    let nothing = advise(&deadline(r#"{"late": "reject"}"#), &within(100), &down).unwrap();
    assert!(
        nothing.reject.is_none() && nothing.lanes == LaneAdvice::Any,
        "that is the host's to say"
    );
}

#[test]
fn the_hint_when_to_come_again_is_bounded() {
    let hint = |soonest| refusal(Budget { whole_ms: 1000, left_ms: 900 }, soonest).retry_after_s;
    assert_eq!(
        [hint(Some(950)), hint(Some(3001)), hint(Some(10_000_000)), hint(None)],
        [Some(1), Some(3), Some(60), Some(60)]
    );
}

#[test]
fn after_a_failure_the_figures_of_now_decide() {
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
        host.recover(policy, &within(ms), failed).unwrap()
    };
    assert_eq!(after(&strict, 5000, &failed(0, 1)), Recovery::Retry(FallbackStep::plain(1)));
    assert!(
        matches!(after(&strict, 1000, &failed(0, 1)), Recovery::GiveUp(why) if why.status == 503)
    );
    assert_eq!(after(&deadline("{}"), 1000, &failed(0, 1)), Recovery::Planned);
    assert_eq!(
        after(&strict, 5000, &failed(1, 1)),
        Recovery::Planned,
        "output has reached the client"
    );
    assert_eq!(after(&strict, 5000, &failed(0, 0)), Recovery::Planned, "there is no try left");
    let spare = deadline(r#"{"fallback": ["spare"]}"#);
    assert_eq!(after(&spare, 1000, &failed(0, 1)), Recovery::Retry(FallbackStep::plain(2)));
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"defualt-ms": 5}"#, "there is no key `defualt-ms`"),
        (r#"{"default-ms": 0}"#, "default-ms: must be a whole number from 1 to 86400000, and is 0"),
        (r#"{"tenants": {"acme": "fast"}}"#, "tenants.acme: must be a whole number"),
        (r#"{"models": []}"#, "models: must be an object"),
        (r#"{"late": "refuse"}"#, "late: must be \"reject\" or \"best-effort\", and is \"refuse\""),
        (r#"{"fallback": "spare"}"#, "fallback: must be a list"),
        (r#"{"first-token": 1}"#, "first-token: must be true or false"),
    ] {
        match Deadline::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
