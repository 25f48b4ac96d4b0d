use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};
use pointsman_sdk::{LaneAdvice, LaneState, Scalar};

use super::*;

const LANES: [&str; 5] = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];

fn cortex(config: &str) -> Cortex {
    Cortex::configure(config).unwrap()
}

fn request_for(model: &str, text: &str) -> FakeRequest {
    let body =
        format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "{text}"}}]}}"#);
    FakeRequest::chat(&body)
}

/// Returns the preferred lane, the fallback lanes and the reason.
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
    let Scalar::Text(reason) = &advice.notes[0].value else { panic!("the reason is not a text") };
    (lane, steps, reason.clone())
}

#[test]
fn model_names_and_aliases_select_lanes() {
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
        let (got, steps, reason) = decide(&policy, &request_for(model, "```code```"), &fleet);
        assert_eq!(
            (got.as_str(), steps),
            (lane, fallback.iter().map(|step| (*step).to_owned()).collect()),
            "{model}"
        );
        assert_eq!(reason, format!("{lane}: requested by model name"));
    }
}

#[test]
fn content_selects_the_lane_for_other_model_names() {
    let policy = cortex("{}");
    let fleet = FakeFleet::new(&LANES);
    let long = "word ".repeat(25_000);
    for (request, lane) in [
        (request_for("auto", "plan my week"), "orchestrator"),
        (request_for("auto", "why does fn main() not compile"), "coder"),
        (request_for("auto", "CONTEXT: the sky is blue"), "fast_rag"),
        (request_for("auto", &long), "super_reader"),
        (request_for("auto", &format!("fn main() {long}")), "super_reader"),
        (request_for("auto", "plan my week").with_header("X-Cortex-Task", "code"), "coder"),
        (request_for("auto", "fn main()").with_header("x-cortex-task", "planning"), "orchestrator"),
        (request_for("auto", "fn main()").with_header("x-cortex-task", "dancing"), "coder"),
    ] {
        assert_eq!(decide(&policy, &request, &fleet).0, lane, "{request:?}");
    }
}

/// Returns a fleet in which these lanes have a label.
fn labelled(key: &str, lanes: &[usize]) -> FakeFleet {
    let mut fleet = FakeFleet::new(&LANES);
    for lane in lanes {
        fleet.lanes[*lane].labels.push((key.into(), "true".into()));
    }
    fleet
}

fn with_image(model: &str) -> FakeRequest {
    let image = r#"{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}"#;
    let mut request = FakeRequest::chat(&format!(
        r#"{{"model": "{model}", "messages": [{{"role": "user", "content": [{image}]}}]}}"#
    ));
    request.context.has_media = true;
    request
}

#[test]
fn images_go_to_a_lane_that_reads_them() {
    let policy = cortex("{}");
    let mut fleet = labelled("vision", &[2]);
    let none: Vec<String> = Vec::new();
    let decision = decide(&policy, &with_image("auto"), &fleet);
    assert_eq!((decision.0.as_str(), decision.1), ("fast_rag", none));
    // Its load time does not matter: no other lane can answer.
    fleet.stat_mut("fast_rag").ready_in_ms = 90_000;
    assert_eq!(decide(&policy, &with_image("auto"), &fleet).0, "fast_rag");
    assert_eq!(decide(&policy, &request_for("auto", "hi"), &fleet).0, "orchestrator");
    let fallback = decide(&cortex("{}"), &with_image("fast_rag"), &labelled("vision", &[2, 3])).1;
    assert_eq!(fallback, ["super_reader"]);
    // Without labels, the task decides.
    let fleet = FakeFleet::new(&LANES);
    assert_eq!(decide(&cortex("{}"), &with_image("auto"), &fleet).0, "orchestrator");
}

#[test]
fn tools_go_to_a_lane_that_parses_their_calls() {
    let request = FakeRequest::chat(
        r#"{"model": "auto", "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "function": {"name": "f"}}]}"#,
    );
    let mut fleet = labelled("tools", &[1]);
    assert_eq!(decide(&cortex("{}"), &request, &fleet).0, "coder");
    fleet.stat_mut("coder").state = LaneState::Down;
    assert_eq!(decide(&cortex("{}"), &request, &fleet).0, "orchestrator");
}

#[test]
fn full_queue_is_not_answered_by_another_model() {
    let on = |config: &str, model| {
        let fleet = FakeFleet::new(&LANES);
        advise(&cortex(config), &request_for(model, "hi"), &fleet).unwrap().fallback.unwrap().on
    };
    assert_eq!(on("{}", "coder"), Triggers::all() - Triggers::OVERLOADED);
    assert_eq!(on("{}", "auto"), Triggers::all(), "any model will do");
    let all = r#"{"fallback-on": ["queue-timeout", "overloaded"]}"#;
    assert_eq!(on(all, "coder"), Triggers::QUEUE_TIMEOUT | Triggers::OVERLOADED);
    assert_eq!(on(r#"{"fallback-on": []}"#, "auto"), Triggers::empty());
}

#[test]
fn lanes_that_start_too_late_are_skipped() {
    let policy = cortex(r#"{"patience-ms": 1000}"#);
    let request = request_for("auto", "fn main()");
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
fn requests_do_not_fall_back_to_a_lane_with_a_short_context() {
    let policy = cortex("{}");
    let mut fleet = FakeFleet::new(&LANES);
    fleet.lanes[3].max_context = 100;
    let mut request = request_for("coder", "short");
    assert_eq!(decide(&policy, &request, &fleet).1, ["super_reader"]);
    request.context.max_output_tokens = 200;
    assert!(decide(&cortex("{}"), &request, &fleet).1.is_empty());
}

#[test]
fn fleet_without_cortex_lanes_gets_no_preference() {
    let advice =
        advise(&cortex("{}"), &request_for("auto", "hi"), &FakeFleet::new(&["other"])).unwrap();
    assert!(matches!(advice.lanes, LaneAdvice::Avoid(lanes) if lanes.is_empty()));
}

#[test]
fn other_model_names_reach_any_serving_lane_except_governance() {
    let policy = cortex("{}");
    let mut fleet = FakeFleet::new(&LANES);
    for lane in &mut fleet.lanes {
        lane.models = vec![lane.name.clone()];
    }
    fleet.lanes[2].models.push("few".into());
    fleet.lanes[4].models.push("few".into());
    assert_eq!(decide(&policy, &request_for("few", "fn main()"), &fleet).0, "fast_rag");
    fleet.lanes[2].models.clear();
    let advice = advise(&policy, &request_for("few", "fn main()"), &fleet).unwrap();
    assert!(matches!(advice.lanes, LaneAdvice::Avoid(lanes) if lanes == [4]));
}

#[test]
fn prompt_goes_to_a_lane_whose_context_it_fits() {
    let mut fleet = FakeFleet::new(&LANES);
    fleet.lanes[0].max_context = 50;
    let long = request_for("auto", &"word ".repeat(100));
    assert_eq!(decide(&cortex("{}"), &long, &fleet).0, "super_reader");
    assert_eq!(decide(&cortex("{}"), &request_for("auto", "short"), &fleet).0, "orchestrator");
}

#[test]
fn system_prompt_applies_to_the_configured_lanes() {
    let fleet = FakeFleet::new(&LANES);
    let edits = |config: &str, model| {
        advise(&cortex(config), &request_for(model, "hi"), &fleet).unwrap().edits.len()
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
fn invalid_configuration_names_the_key() {
    for (config, part) in [
        (r#"{"patience": 5}"#, "patience: unknown key"),
        (r#"{"patience-ms": "long"}"#, "patience-ms: expected an integer"),
        (
            r#"{"system-prompt": {"text": "a", "lanes": ["codr"]}}"#,
            "system-prompt.lanes[0]: expected \"orchestrator\"",
        ),
        (r#"{"system-prompt": {"lanes": []}}"#, "system-prompt: `text` is required"),
        (r#"{"system-prompt": {"text": "a", "lane": "b"}}"#, "system-prompt.lane: unknown key"),
        (r#"{"fallback-on": ["full"]}"#, "fallback-on[0]: expected \"queue-timeout\""),
        (r#"{"aliases": {"a": "b"}}"#, "aliases.a: expected \"orchestrator\""),
        ("", "invalid JSON"),
    ] {
        match Cortex::configure(config) {
            Err(PolicyError::InvalidConfig(error)) => {
                assert!(error.contains(part), "{config}: {error}")
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}
