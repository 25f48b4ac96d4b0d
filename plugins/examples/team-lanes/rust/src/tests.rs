use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};
use pointsman_sdk::{Advice, LaneAdvice, Policy as _, PolicyError, Scalar};

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

fn why(advice: &Advice) -> &str {
    match &advice.notes.iter().find(|note| note.key == "why").unwrap().value {
        Scalar::Text(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_team_goes_home_and_its_code_too() {
    let advice = ask(CONFIG, &chat("```").of_tenant("acme"));
    assert_eq!(advice.lanes, LaneAdvice::Only(vec![1]));
    assert_eq!(why(&advice), "beta: the home of acme");
    let fallback: Vec<u32> = advice.fallback.unwrap().steps.iter().map(|step| step.lane).collect();
    assert_eq!(fallback, [0, 2]);
}

#[test]
fn others_are_sent_by_what_they_ask() {
    assert_eq!(why(&ask(CONFIG, &chat("```"))), "gamma: the prompt has code in it");
    assert!(
        matches!(ask(CONFIG, &chat("hi")).lanes, LaneAdvice::Blend(weights) if weights.len() == 2)
    );
}

#[test]
fn priority_is_clamped_and_nonsense_is_none() {
    let priority = |text: &str| {
        ask("{}", &chat("hi").with_header("X-Priority", text)).queue.map(|q| q.priority)
    };
    for (text, wanted) in [
        ("7", Some(7)),
        ("+250", Some(10)),
        ("-99", Some(-10)),
        ("-0", Some(0)),
        ("5.5", None),
        ("", None),
        ("+", None),
        ("1234567890", None),
    ] {
        assert_eq!(priority(text), wanted, "{text}");
    }
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    for (config, sentence) in [
        ("{", "the configuration is no JSON"),
        ("[]", "the configuration must be an object"),
        (r#"{"team": {}}"#, "there is no key `team`"),
        (r#"{"teams": []}"#, "`teams` must be an object"),
        (r#"{"teams": {"acme": 5}}"#, "`teams.acme` must be a text"),
        (r#"{"long-tokens": 0}"#, "`long-tokens` must be a whole number from 1 to 4294967295"),
    ] {
        let error = TeamLanes::configure(config).unwrap_err();
        assert!(
            matches!(&error, PolicyError::InvalidConfig(text) if text == sentence),
            "{config}: {error:?}"
        );
    }
}
