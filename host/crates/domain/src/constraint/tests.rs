use super::*;
use crate::advice::{FallbackAdvice, QueueAdvice, Triggers};
use crate::endpoint::{Endpoint, EndpointSet};
use crate::fleet_view::LaneState;

/// Returns a lane of one model with the label `region`.
pub(crate) fn lane(name: &str, model: &str, region: &str, engine: EngineKind) -> LaneInfo {
    LaneInfo {
        id: LaneId(0),
        name: name.to_owned(),
        engine,
        models: vec![model.to_owned()],
        names: Default::default(),
        labels: label(region),
        max_context: 0,
        endpoints: EndpointSet::all(),
        slots: 1,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    }
}

/// Returns the label `region` with this value.
pub(crate) fn label(value: &str) -> Vec<(String, String)> {
    vec![("region".to_owned(), value.to_owned())]
}

/// Lanes of a model `m`: `eu` and `us` with a region, `cloud` in the EU but external, and `other`
/// of another model.
fn view() -> FleetView {
    let lanes = vec![
        lane("eu", "m", "eu", EngineKind::Vllm),
        lane("us", "m", "us", EngineKind::Vllm),
        lane("cloud", "m", "eu", EngineKind::External),
        lane("other", "n", "eu", EngineKind::Vllm),
    ];
    FleetView::idle(Arc::new(Topology::new(1, lanes)), LaneState::Ready)
}

fn constraint(rules: &[GuardRules]) -> Constraint {
    let guards = (1..).zip(rules).map(|(number, rules)| {
        Arc::new(AppliedGuard { name: format!("g{number}").into(), rules: rules.clone() })
    });
    Constraint { model: "m".into(), guards: guards.collect() }
}

fn ids(ids: &[u32]) -> Vec<LaneId> {
    ids.iter().copied().map(LaneId).collect()
}

#[test]
fn lanes_need_to_obey_all_guards() {
    let only_eu = GuardRules { only_labels: label("eu"), ..GuardRules::default() };
    let never_eu = GuardRules { never_labels: label("eu"), ..GuardRules::default() };
    let local = GuardRules { never_external: true, ..GuardRules::default() };
    let pinned = GuardRules { keep_model: true, ..GuardRules::default() };
    let view = view();
    for (rules, allowed) in [
        (vec![GuardRules::default()], vec![0, 1, 2, 3]),
        (vec![only_eu.clone()], vec![0, 2, 3]),
        (vec![never_eu.clone()], vec![1]),
        (vec![local.clone()], vec![0, 1, 3]),
        (vec![pinned.clone()], vec![0, 1, 2]),
        (vec![only_eu.clone(), local, pinned], vec![0]),
        (vec![only_eu, never_eu], vec![]),
    ] {
        let constraint = constraint(&rules);
        let restricted = constraint.restrict(&view);
        let is_allowed = |lane: &u32| constraint.objection(&view.topology, LaneId(*lane)).is_none();
        assert_eq!((0..4).filter(is_allowed).collect::<Vec<_>>(), allowed, "{rules:?}");
        let serves =
            |lane: &u32| restricted.topology.can_serve(LaneId(*lane), Endpoint::ChatCompletions);
        assert_eq!((0..4).filter(serves).collect::<Vec<_>>(), allowed, "{rules:?}");
        assert!(constraint.objection(&view.topology, LaneId(9)).is_some());
    }
}

#[test]
fn restriction_keeps_what_was_barred_before() {
    let mut view = view();
    view.topology = Arc::new(view.topology.without(|lane| lane.name == "us"));
    let local = GuardRules { never_external: true, ..GuardRules::default() };
    let restricted = constraint(&[local]).restrict(&view);
    let candidates = restricted.topology.candidates_for("m", Endpoint::ChatCompletions);
    assert_eq!(candidates.collect::<Vec<_>>(), ids(&[0]));
}

#[test]
fn advice_that_breaks_a_rule_is_dropped_and_names_the_guard() {
    use LaneAdvice::{Any, Avoid, Only, Ordered};
    let rules = GuardRules {
        never_external: true,
        keep_model: true,
        priority: Some((-1, 1)),
        ..GuardRules::default()
    };
    let (constraint, view) = (constraint(&[rules]), view());
    for (lanes, kept, dropped) in [
        (Only(ids(&[0, 2])), Only(ids(&[0])), 1),
        (Only(ids(&[2, 3])), Any, 2),
        (Only(ids(&[2, 77])), Any, 1),
        (Only(ids(&[77])), Only(ids(&[77])), 0),
        (Only(ids(&[])), Only(ids(&[])), 0),
        (Ordered(ids(&[2, 1, 0])), Ordered(ids(&[1, 0])), 1),
        (Avoid(ids(&[0, 2])), Avoid(ids(&[0, 2])), 0),
    ] {
        let mut advice = Advice { lanes, ..Advice::default() };
        let found = constraint.enforce(&mut advice, &view);
        assert_eq!((&advice.lanes, found.len()), (&kept, dropped));
        assert!(found.iter().all(|part| part.what == "guard" && part.reason.contains("g1")));
    }
    let step = |lane, edits| FallbackStep { lane: LaneId(lane), edits };
    let set = |model: &str| Edit::SetModel(model.into());
    let mut advice = Advice {
        fallback: Some(FallbackAdvice {
            on: Triggers::ALL,
            steps: vec![step(2, vec![]), step(1, vec![set("n")]), step(3, vec![])],
            first_token: None,
        }),
        edits: vec![set("n"), set("m"), Edit::CapOutputTokens(1)],
        queue: Some(QueueAdvice { priority: 9, ..QueueAdvice::default() }),
        ..Advice::default()
    };
    assert_eq!(constraint.enforce(&mut advice, &view).len(), 5);
    assert_eq!(advice.fallback.map(|fallback| fallback.steps), Some(vec![step(1, vec![])]));
    assert_eq!(advice.edits, [set("m"), Edit::CapOutputTokens(1)]);
    assert_eq!(advice.queue.map(|queue| queue.priority), Some(1));
}

#[test]
fn recovery_on_a_forbidden_lane_becomes_the_planned_one() {
    let rules = GuardRules { never_external: true, keep_model: true, ..GuardRules::default() };
    let (constraint, view) = (constraint(&[rules]), view());
    let retry = |lane, edits| Recovery::Retry(FallbackStep { lane: LaneId(lane), edits });
    for (mut recovery, expected, dropped) in [
        (retry(2, vec![]), Recovery::Planned, 1),
        (retry(1, vec![Edit::SetModel("n".into())]), retry(1, vec![]), 1),
        (retry(1, vec![]), retry(1, vec![]), 0),
        (Recovery::Planned, Recovery::Planned, 0),
    ] {
        let found = constraint.enforce_recovery(&mut recovery, &view);
        assert_eq!((recovery, found.len()), (expected, dropped));
    }
}

#[test]
fn strictest_limits_count() {
    let rules = |max, priority| GuardRules {
        max_output_tokens: Some(max),
        priority: Some(priority),
        ..GuardRules::default()
    };
    let both = constraint(&[rules(100, (-5, 3)), rules(50, (1, 9))]);
    assert_eq!(both.max_output_tokens(), Some((50, "g2")));
    for (range, expected) in [((0, 0), (1, 1)), ((-9, 9), (1, 3)), ((5, 7), (3, 3))] {
        assert_eq!(both.clamp_priority(range), expected);
    }
    let contradictory = constraint(&[rules(1, (5, 9)), rules(1, (0, 2))]);
    assert_eq!(contradictory.clamp_priority((0, 0)), (2, 2));
    assert_eq!(constraint(&[GuardRules::default()]).max_output_tokens(), None);
    assert_ne!(both.digest(), contradictory.digest());
}
