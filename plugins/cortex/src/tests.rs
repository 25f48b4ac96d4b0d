use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};
use pointsman_sdk::{LaneAdvice, Scalar};

use super::*;

const LANES: [&str; 5] = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];

fn cortex(config: &str) -> Cortex {
    Cortex::configure(config).unwrap()
}

fn asking(model: &str, text: &str) -> FakeRequest {
    let body =
        format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "{text}"}}]}}"#);
    FakeRequest::chat(&body)
}

/// First lane, fallbacks and reason, by name.
fn decide(
    policy: &Cortex,
    request: &FakeRequest,
    fleet: &FakeFleet,
) -> (String, Vec<String>, String) {
    let advice = advise(policy, request, fleet).unwrap();
    let name = |id: &LaneId| LANES[*id as usize].to_owned();
    let lane = match &advice.lanes {
        LaneAdvice::Only(lanes) | LaneAdvice::Ordered(lanes) => name(&lanes[0]),
        other => panic!("no lane: {other:?}"),
    };
    let steps = advice.fallback.unwrap().steps.iter().map(|step| name(&step.lane)).collect();
    let Scalar::Text(why) = &advice.notes[0].value else { panic!("the reason is no text") };
    (lane, steps, why.clone())
}

#[test]
fn model_names_and_aliases_stand_for_lanes() {
    let policy = cortex(r#"{"aliases": {"qwen-coder": "coder"}}"#);
    let mut fleet = FakeFleet::new(&LANES);
    fleet.lanes[1].models.push("qwen-coder".into());
    for (model, lane, fallback) in [
        ("orchestrator", "orchestrator", vec!["super_reader"]),
        ("coder", "coder", vec!["super_reader"]),
        ("qwen-coder", "coder", vec!["super_reader"]),
        ("fast_rag", "fast_rag", vec!["super_reader"]),
        ("super_reader", "super_reader", vec![]),
        ("governance", "governance", vec![]),
    ] {
        let (got, steps, why) = decide(&policy, &asking(model, "```code```"), &fleet);
        assert_eq!(
            (got.as_str(), steps),
            (lane, fallback.iter().map(|step| (*step).to_owned()).collect()),
            "{model}"
        );
        assert_eq!(why, format!("the model name stands for {lane}"));
    }
}

#[test]
fn general_names_are_decided_by_content() {
    let policy = cortex("{}");
    let fleet = FakeFleet::new(&LANES);
    let long = "word ".repeat(25_000);
    for (request, lane) in [
        (asking("auto", "plan my week"), "orchestrator"),
        (asking("auto", "why does fn main() not compile"), "coder"),
        (asking("auto", "CONTEXT: the sky is blue"), "fast_rag"),
        (asking("auto", &long), "super_reader"),
        (asking("auto", &format!("fn main() {long}")), "super_reader"),
        (asking("auto", "plan my week").with_header("X-Cortex-Task", "code"), "coder"),
        (asking("auto", "fn main()").with_header("x-cortex-task", "planning"), "orchestrator"),
        (asking("auto", "fn main()").with_header("x-cortex-task", "dancing"), "coder"),
    ] {
        assert_eq!(decide(&policy, &request, &fleet).0, lane, "{request:?}");
    }
}

#[test]
fn lanes_that_could_not_start_soon_are_passed_over() {
    let policy = cortex(r#"{"patience-ms": 1000}"#);
    let request = asking("auto", "fn main()");
    let with = |change: fn(&mut FakeFleet)| {
        let mut fleet = FakeFleet::new(&LANES);
        change(&mut fleet);
        decide(&policy, &request, &fleet).0
    };
    assert_eq!(with(|fleet| fleet.stat_mut("coder").est_wait_ms = 1000), "coder");
    assert_eq!(with(|fleet| fleet.stat_mut("coder").est_wait_ms = 1001), "orchestrator");
    assert_eq!(with(|fleet| fleet.stat_mut("coder").state = LaneState::Down), "orchestrator");
    let all_busy = |fleet: &mut FakeFleet| {
        for (name, wait) in
            [("coder", 9000), ("orchestrator", 8000), ("super_reader", 7000), ("fast_rag", 9500)]
        {
            fleet.stat_mut(name).est_wait_ms = wait;
        }
    };
    assert_eq!(with(all_busy), "super_reader");
}

#[test]
fn nothing_falls_back_to_a_context_that_is_too_small() {
    let policy = cortex("{}");
    let mut fleet = FakeFleet::new(&LANES);
    fleet.lanes[3].max_context = 100;
    let mut request = asking("coder", "short");
    assert_eq!(decide(&policy, &request, &fleet).1, ["super_reader"]);
    request.context.max_output_tokens = 200;
    assert!(decide(&cortex("{}"), &request, &fleet).1.is_empty());
}

#[test]
fn a_fleet_without_cortex_lanes_gets_no_opinion() {
    let advice = advise(&cortex("{}"), &asking("auto", "hi"), &FakeFleet::new(&["other"])).unwrap();
    assert!(matches!(advice.lanes, LaneAdvice::Avoid(lanes) if lanes.is_empty()));
}

#[test]
fn a_general_name_reaches_whatever_lane_answers_to_it_but_never_governance() {
    let policy = cortex("{}");
    let mut fleet = FakeFleet::new(&LANES);
    for lane in &mut fleet.lanes {
        lane.models = vec![lane.name.clone()];
    }
    fleet.lanes[2].models.push("few".into());
    fleet.lanes[4].models.push("few".into());
    assert_eq!(decide(&policy, &asking("few", "fn main()"), &fleet).0, "fast_rag");
    fleet.lanes[2].models.clear();
    let advice = advise(&policy, &asking("few", "fn main()"), &fleet).unwrap();
    assert!(matches!(advice.lanes, LaneAdvice::Avoid(lanes) if lanes == [4]));
}

#[test]
fn a_prompt_that_does_not_fit_into_a_lane_goes_to_one_where_it_does() {
    let mut fleet = FakeFleet::new(&LANES);
    fleet.lanes[0].max_context = 50;
    let long = asking("auto", &"word ".repeat(100));
    assert_eq!(decide(&cortex("{}"), &long, &fleet).0, "super_reader");
    assert_eq!(decide(&cortex("{}"), &asking("auto", "short"), &fleet).0, "orchestrator");
}

#[test]
fn system_prompts_go_where_they_are_configured() {
    let fleet = FakeFleet::new(&LANES);
    let edits = |config: &str, model| {
        advise(&cortex(config), &asking(model, "hi"), &fleet).unwrap().edits.len()
    };
    assert_eq!(edits("{}", "coder"), 0);
    assert_eq!(edits(r#"{"system-prompt": {"text": "be brief"}}"#, "coder"), 1);
    assert_eq!(edits(r#"{"system-prompt": {"text": "be brief", "lanes": ["coder"]}}"#, "coder"), 1);
    assert_eq!(
        edits(r#"{"system-prompt": {"text": "be brief", "lanes": ["coder"]}}"#, "governance"),
        0
    );
}

#[test]
fn wrong_configurations_name_the_key() {
    for (config, part) in [
        (r#"{"patience": 5}"#, "patience"),
        (r#"{"patience-ms": "long"}"#, "expected Integer"),
        (r#"{"system-prompt": {"text": "a", "lanes": ["codr"]}}"#, "no lane `codr`"),
        (r#"{"system-prompt": {"lanes": []}}"#, "system-prompt.text"),
        (r#"{"system-prompt": {"text": "a", "lane": "b"}}"#, "system-prompt.lane"),
        (r#"{"aliases": {"a": "b"}}"#, "aliases.a"),
        ("", "unexpected EOS"),
    ] {
        match Cortex::configure(config) {
            Err(PolicyError::InvalidConfig(why)) => assert!(why.contains(part), "{config}: {why}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
