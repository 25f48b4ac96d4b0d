mod guards;
mod invariants;

use std::sync::Arc;

use super::*;
use crate::advice::{Advice, FallbackAdvice, FallbackStep, LaneAdvice, LaneScore, QueueAdvice};
use crate::context_need::ContextNeed;
use crate::endpoint::{Endpoint, EndpointSet};
use crate::fleet_view::{EngineKind, LaneInfo, LaneState, Topology};
use crate::merge::{Merge, OnConflict};

const LIMITS: PlanLimits = PlanLimits { max_wait: Duration::from_secs(60), max_steps: 3 };

fn fleet(states: &[LaneState]) -> FleetView {
    let info = |index: usize| LaneInfo {
        id: LaneId(0),
        name: format!("lane-{index}"),
        engine: EngineKind::Other,
        models: if index == 3 { vec!["reserve".into()] } else { vec!["m".into()] },
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: crate::EndpointSet::all(),
        slots: 4,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    };
    let topology = Arc::new(Topology::new(1, (0..states.len()).map(info).collect()));
    let mut fleet = FleetView::idle(topology, LaneState::Ready);
    for (stat, state) in fleet.stats_mut().iter_mut().zip(states) {
        stat.state = *state;
    }
    fleet
}

/// Returns a fleet of lanes that are ready and have contexts of these lengths.
fn fleet_with_contexts(contexts: &[u32]) -> FleetView {
    let ready = fleet(&vec![Ready; contexts.len()]);
    let lanes = ready.topology.lanes().iter().zip(contexts);
    let lanes = lanes.map(|(lane, context)| LaneInfo { max_context: *context, ..lane.clone() });
    FleetView::idle(Arc::new(Topology::new(1, lanes.collect())), Ready)
}

fn decide(fleet: &FleetView, advice: Advice) -> Decision {
    decide_with(fleet, advice, 0)
}

fn decide_with(fleet: &FleetView, advice: Advice, prompt: u32) -> Decision {
    let mut merge = Merge::new(fleet, "m", Endpoint::ChatCompletions);
    merge.set_need(ContextNeed { prompt, output: 0 });
    merge.add(&PolicyRef::new("p", "1"), 1000, advice);
    Plan::from_advice(&merge.finish(OnConflict::Refuse), fleet, &LIMITS)
}

fn steps(decision: Decision) -> Vec<u32> {
    match decision {
        Decision::Route(plan) => plan.steps.iter().map(|step| step.lane.0).collect(),
        other => panic!("expected a route, found {other:?}"),
    }
}

fn fall_back_to(lanes: &[u32], on: Triggers) -> Option<FallbackAdvice> {
    let steps =
        lanes.iter().map(|lane| FallbackStep { lane: LaneId(*lane), edits: Vec::new() }).collect();
    Some(FallbackAdvice { on, steps, first_token: None })
}

use LaneState::{Down, Draining, Ready, Starting, Unloaded};

#[test]
fn without_advice_lanes_are_ordered_by_time_to_start() {
    let mut fleet = fleet(&[Ready, Ready, Ready, Ready]);
    assert_eq!(steps(decide(&fleet, Advice::default())), [0, 1, 2]);
    fleet.stats_mut()[0].est_wait_ms = 10;
    fleet.stats_mut()[2].slots_free = 9;
    assert_eq!(steps(decide(&fleet, Advice::default())), [2, 1, 0]);
}

#[test]
fn score_outranks_time_to_start_but_not_a_down_lane() {
    let scores = |lane| LaneAdvice::Scores(vec![LaneScore { lane: LaneId(lane), score: 1000 }]);
    let advice = |lane| Advice { lanes: scores(lane), ..Advice::default() };
    assert_eq!(steps(decide(&fleet(&[Ready, Starting, Ready]), advice(1)))[0], 1);
    assert_eq!(steps(decide(&fleet(&[Ready, Unloaded, Ready]), advice(1)))[0], 1);
    assert_eq!(steps(decide(&fleet(&[Ready, Down, Ready]), advice(1))), [0, 2]);
    assert_eq!(
        steps(decide(&fleet(&[Ready, Draining, Ready]), advice(1)))[0],
        1,
        "a draining lane is loaded again"
    );
}

#[test]
fn lanes_with_a_short_context_come_last() {
    let scores = |lane| LaneAdvice::Scores(vec![LaneScore { lane: LaneId(lane), score: 1000 }]);
    for (contexts, prompt, advice, expected) in [
        ([1000, 1000, 9000], 1000, LaneAdvice::Any, [0, 1, 2]),
        ([1000, 1000, 9000], 1100, LaneAdvice::Any, [2, 0, 1]),
        ([1000, 0, 9000], 3000, LaneAdvice::Any, [1, 2, 0]),
        // A score decides if the estimate is only doubtful.
        ([1000, 1000, 9000], 1100, scores(1), [1, 2, 0]),
        ([1000, 1000, 9000], 3000, scores(1), [2, 1, 0]),
        // All are too short: the engines' errors are the responses.
        ([1000, 1000, 1000], 3000, scores(1), [1, 0, 2]),
    ] {
        let advice = Advice { lanes: advice, ..Advice::default() };
        let got = steps(decide_with(&fleet_with_contexts(&contexts), advice, prompt));
        assert_eq!(got, expected, "{contexts:?} {prompt}");
    }
}

#[test]
fn planned_fallback_skips_short_contexts() {
    let decide = |contexts: [u32; 4], step: FallbackStep| {
        let fallback = vec![step, FallbackStep { lane: LaneId(3), edits: Vec::new() }];
        let advice = Advice {
            lanes: LaneAdvice::Only(vec![LaneId(0)]),
            fallback: Some(FallbackAdvice {
                on: Triggers::ALL,
                steps: fallback,
                first_token: None,
            }),
            ..Advice::default()
        };
        steps(decide_with(&fleet_with_contexts(&contexts), advice, 3000))
    };
    let plain = FallbackStep { lane: LaneId(1), edits: Vec::new() };
    let edited = FallbackStep { edits: vec![Edit::KeepLastMessages(1)], ..plain.clone() };
    assert_eq!(decide([9000, 1000, 0, 9000], plain.clone()), [0, 3]);
    assert_eq!(decide([9000, 1000, 0, 9000], edited), [0, 1, 3]);
    assert_eq!(decide([9000, 1000, 0, 1000], plain.clone()), [0]);
    assert_eq!(decide([1000, 1000, 0, 1000], plain.clone()), [0, 1, 3]);
    // Another model is not an answer to a prompt that is too long.
    assert_eq!(decide([1000, 1000, 0, 9000], plain), [0, 3]);
}

#[test]
fn steps_know_the_contexts_of_candidates_only() {
    let advice = Advice { fallback: fall_back_to(&[1, 3], Triggers::ALL), ..Advice::default() };
    let fleet = fleet_with_contexts(&[9000, 8000, 7000, 6000]);
    let Decision::Route(plan) = decide(&fleet, advice) else { panic!("expected a route") };
    let contexts: Vec<u32> = plan.steps.iter().map(|step| step.context).collect();
    assert_eq!(contexts, [9000, 8000, 0]);
}

#[test]
fn planned_fallback_replaces_the_built_in_one_and_may_use_other_lanes() {
    let fleet = fleet(&[Ready, Ready, Ready, Ready]);
    let only = LaneAdvice::Only(vec![LaneId(1)]);
    let advice = Advice {
        lanes: only,
        fallback: fall_back_to(&[3, 1, 42], Triggers::ALL),
        ..Advice::default()
    };
    assert_eq!(steps(decide(&fleet, advice)), [1, 3]);
}

#[test]
fn fallback_serves_if_all_candidates_are_down_and_restart_triggers_it() {
    let fleet = fleet(&[Down, Down, Down, Ready]);
    let advice = |on| Advice { fallback: fall_back_to(&[3], on), ..Advice::default() };
    assert_eq!(steps(decide(&fleet, advice(Triggers::NONE.with(Trigger::EngineRestart)))), [3]);
    let overloaded = Triggers::NONE.with(Trigger::Overloaded);
    assert_eq!(decide(&fleet, advice(overloaded)), Decision::NoLane(NoLaneReason::AllDown));
}

#[test]
fn no_lane_reports_the_reason() {
    let up = fleet(&[Ready]);
    let down = fleet(&[Down]);
    let nothing = Advice { lanes: LaneAdvice::Only(Vec::new()), ..Advice::default() };
    assert_eq!(decide(&up, nothing), Decision::NoLane(NoLaneReason::FilteredOut));
    assert_eq!(decide(&down, Advice::default()), Decision::NoLane(NoLaneReason::AllDown));
    let unknown = Merge::new(&up, "nope", Endpoint::ChatCompletions).finish(OnConflict::Refuse);
    assert_eq!(
        Plan::from_advice(&unknown, &up, &LIMITS),
        Decision::NoLane(NoLaneReason::UnknownModel)
    );
}

#[test]
fn max_wait_is_capped_and_timeout_falls_back_only_if_allowed() {
    let fleet = fleet(&[Ready]);
    let queue = |seconds, on_timeout| {
        Some(QueueAdvice {
            max_wait: Some(Duration::from_secs(seconds)),
            on_timeout,
            ..QueueAdvice::default()
        })
    };
    for (seconds, on_timeout, wait, moves) in
        [(5, OnTimeout::Reject, 5, false), (500, OnTimeout::FallBack, 60, true)]
    {
        let advice = Advice { queue: queue(seconds, on_timeout), ..Advice::default() };
        let Decision::Route(plan) = decide(&fleet, advice) else { panic!("expected a route") };
        assert_eq!(plan.max_wait, Duration::from_secs(wait));
        assert_eq!(plan.triggers_fallback(Trigger::QueueTimeout), moves);
        assert!(plan.triggers_fallback(Trigger::ConnectError));
    }
}

#[test]
fn lanes_that_cannot_serve_the_endpoint_do_not_exist_for_it() {
    let ready = fleet(&[Ready, Unloaded, Ready, Ready]);
    let sets = [
        EndpointSet::new([Endpoint::Embeddings]),
        EndpointSet::new([Endpoint::ChatCompletions]),
        EndpointSet::new([Endpoint::Messages]),
        EndpointSet::new([Endpoint::Rerank]),
    ];
    let lanes = ready.topology.lanes().iter().zip(sets);
    let lanes = lanes.map(|(lane, endpoints)| LaneInfo { endpoints, ..lane.clone() }).collect();
    let fleet = FleetView::idle(Arc::new(Topology::new(1, lanes)), Ready);
    for (endpoint, fallback, expected) in [
        (Endpoint::Embeddings, &[][..], Some(vec![0])),
        // Lane 1 would translate it, and lane 2 has it.
        (Endpoint::Messages, &[], Some(vec![1, 2])),
        (Endpoint::ChatCompletions, &[2, 0, 3, 9], Some(vec![1])),
        (Endpoint::Embeddings, &[1, 2, 3], Some(vec![0])),
        // Only a lane of another model has it.
        (Endpoint::Rerank, &[3], None),
    ] {
        let mut merge = Merge::new(&fleet, "m", endpoint);
        let fallback =
            if fallback.is_empty() { None } else { fall_back_to(fallback, Triggers::ALL) };
        merge.add(&PolicyRef::new("p", "1"), 1000, Advice { fallback, ..Advice::default() });
        let decision = Plan::from_advice(&merge.finish(OnConflict::Refuse), &fleet, &LIMITS);
        match expected {
            Some(expected) => assert_eq!(steps(decision), expected, "{endpoint:?}"),
            None => assert_eq!(decision, Decision::NoLane(NoLaneReason::UnknownModel)),
        }
    }
}
