use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest, advise, finished, outcome};
use pointsman_sdk::{Advice, LaneAdvice, Policy as _, PolicyError, Scalar, TryResult};

use super::TeamLanes;

const CONFIG: &str = r#"{"teams": {"acme": "beta"}, "code-lane": "gamma"}"#;

fn ask(config: &str, request: &FakeRequest) -> Advice {
    let fleet = FakeFleet::new(&["alpha", "beta", "gamma"]);
    advise(&TeamLanes::configure(config).unwrap(), request, &fleet).unwrap()
}

fn chat(text: &str) -> FakeRequest {
    FakeRequest::chat(&format!(
        r#"{{"model": "auto", "messages": [{{"role": "user", "content": "{text}"}}]}}"#
    ))
}

fn reason(advice: &Advice) -> &str {
    match &advice.notes.iter().find(|note| note.key == "why").unwrap().value {
        Scalar::Text(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn home_lane_takes_precedence_over_code() {
    let advice = ask(CONFIG, &chat("```").with_tenant("acme"));
    assert_eq!(advice.lanes, LaneAdvice::Only(vec![1]));
    assert_eq!(reason(&advice), "beta: home lane of acme");
    let fallback: Vec<u32> = advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect();
    assert_eq!(fallback, [0, 2]);
}

#[test]
fn requests_without_a_home_lane_are_routed_by_content() {
    assert_eq!(reason(&ask(CONFIG, &chat("```"))), "gamma: the prompt contains code");
    assert!(
        matches!(ask(CONFIG, &chat("hi")).lanes, LaneAdvice::Blend(weights) if weights.len() == 2)
    );
}

#[test]
fn priority_is_clamped_and_ignored_if_invalid() {
    let priority = |text: &str| {
        ask("{}", &chat("hi").with_header("X-Priority", text)).queue.map(|queue| queue.priority)
    };
    for (text, expected) in [
        ("7", Some(7)),
        ("+250", Some(10)),
        ("-99", Some(-10)),
        ("-0", Some(0)),
        ("5.5", None),
        ("", None),
        ("+", None),
        ("1234567890", None),
    ] {
        assert_eq!(priority(text), expected, "{text}");
    }
}

#[test]
fn invalid_configuration_names_the_key() {
    for (config, message) in [
        ("{", "invalid JSON: "),
        ("[]", "expected an object, found a list"),
        (r#"{"team": {}}"#, "team: unknown key"),
        (r#"{"teams": []}"#, "teams: expected an object, found a list"),
        (r#"{"teams": {"acme": 5}}"#, "teams.acme: expected a string, found 5"),
        (r#"{"long-tokens": 0}"#, "long-tokens: expected an integer from 1 to 4294967295, found 0"),
    ] {
        let error = TeamLanes::configure(config).unwrap_err();
        assert!(
            matches!(&error, PolicyError::InvalidConfig(text) if text.starts_with(message)),
            "{config}: {error:?}"
        );
    }
}

#[test]
fn requests_whose_lane_by_rule_failed_are_counted() {
    let policy = TeamLanes::configure(CONFIG).unwrap();
    let host = FakeHost::new(FakeFleet::new(&["alpha", "beta", "gamma"]));
    for (text, ended, count) in [
        ("hello", TryResult::ServerError, 0),
        ("```x```", TryResult::Ok, 0),
        ("```x```", TryResult::ServerError, 1),
    ] {
        let advice = host.advise(&policy, &chat(text)).unwrap();
        let mut outcome = outcome(0);
        outcome.ended = ended;
        host.learn(&policy, &[finished(outcome, &advice)]);
        assert_eq!(host.counter("rule-failed"), count, "{text}: {ended:?}");
    }
}
