use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::advice::LaneScore;
use crate::fleet_view::{EngineKind, LaneInfo, LaneState, Topology};

fn fleet(lanes: usize) -> FleetView {
    let info = |index: usize| LaneInfo {
        id: LaneId(0),
        name: format!("lane-{index}"),
        engine: EngineKind::Other,
        models: if index == 9 { vec!["other".into()] } else { vec!["m".into()] },
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: crate::EndpointSet::all(),
        slots: 4,
        group: 0,
        cost_milli: u32::try_from(index).unwrap() * 10,
    };
    FleetView::idle(Arc::new(Topology::new(1, (0..lanes).map(info).collect())), LaneState::Ready)
}

fn ids(ids: &[u32]) -> Vec<LaneId> {
    ids.iter().copied().map(LaneId).collect()
}

fn lanes(advice: &[LaneAdvice], conflict: OnConflict) -> Vec<(u32, i64)> {
    let fleet = fleet(3);
    let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
    for lanes in advice {
        merge.add(
            &PolicyRef::new("p", "1"),
            1,
            Advice { lanes: lanes.clone(), ..Advice::default() },
        );
    }
    merge.finish(conflict).lanes.into_iter().map(|(lane, score)| (lane.0, score)).collect()
}

#[test]
fn filters_intersect_and_scores_add() {
    use LaneAdvice::{Avoid, Only, Ordered, Scores};
    let score = |lane, score| LaneScore { lane: LaneId(lane), score };
    for (advice, expected) in [
        (vec![], vec![(0, 0), (1, 0), (2, 0)]),
        (vec![Only(ids(&[1, 2])), Avoid(ids(&[2]))], vec![(1, 0)]),
        (vec![Only(ids(&[1, 77]))], vec![(1, 0)]),
        (vec![Scores(vec![score(0, 300), score(2, 2000)])], vec![(0, 300), (1, 0), (2, 1000)]),
        (
            vec![Scores(vec![score(0, 300)]), Scores(vec![score(0, 5)])],
            vec![(0, 305), (1, 0), (2, 0)],
        ),
        (vec![Ordered(ids(&[2, 0]))], vec![(0, 500), (2, 1000)]),
        (vec![Only(ids(&[0])), Only(ids(&[1]))], vec![]),
    ] {
        assert_eq!(lanes(&advice, OnConflict::Refuse), expected, "{advice:?}");
    }
}

#[test]
fn ignore_filters_drops_conflicting_filters_from_the_end() {
    use LaneAdvice::Only;
    let advice = [Only(ids(&[0, 1])), Only(ids(&[1])), Only(ids(&[2]))];
    assert_eq!(lanes(&advice, OnConflict::IgnoreFilters), [(1, 0)]);
    assert_eq!(lanes(&[Only(ids(&[9]))], OnConflict::IgnoreFilters), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn blending_scales_over_the_candidates() {
    let mut fleet = fleet(3);
    fleet.stats_mut()[0].est_wait_ms = 100;
    fleet.stats_mut()[1].est_wait_ms = 0;
    fleet.stats_mut()[2].est_wait_ms = 50;
    let weight = |metric, weight| MetricWeight { metric, weight };
    let all = ids(&[0, 1, 2]);
    assert_eq!(blend(&fleet, &all, &[weight(Metric::EstWait, 10)]), [0, 1000, 500]);
    assert_eq!(blend(&fleet, &all, &[weight(Metric::EstWait, -10)]), [0, -1000, -500]);
    assert_eq!(blend(&fleet, &all, &[weight(Metric::SlotsFree, 1)]), [1000, 1000, 1000]);
    assert_eq!(
        blend(&fleet, &all, &[weight(Metric::EstWait, 1), weight(Metric::Cost, 1)]),
        [500, 750, 250]
    );
    assert_eq!(blend(&fleet, &all, &[]), [0, 0, 0]);
}

#[test]
fn first_rejection_ends_the_chain() {
    let fleet = fleet(2);
    let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
    let rejection = |code: &str| Rejection {
        status: 429,
        code: code.into(),
        message: String::new(),
        retry_after_s: None,
    };
    for code in ["first", "second"] {
        let edits = vec![Edit::CapOutputTokens(1)];
        merge.add(
            &PolicyRef::new(code, "1"),
            1,
            Advice { reject: Some(rejection(code)), edits, ..Advice::default() },
        );
    }
    let merged = merge.finish(OnConflict::Refuse);
    assert_eq!(merged.reject, Some((PolicyRef::new("first", "1"), rejection("first"))));
    assert_eq!(merged.by, [PolicyRef::new("first", "1")]);
    assert!(merged.edits.is_empty());
}

#[test]
fn last_queue_advice_and_strictest_switching_win() {
    let fleet = fleet(2);
    let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
    for (priority, switching) in [(1, Switching::Never), (2, Switching::Allow)] {
        let queue = Some(QueueAdvice { priority, ..QueueAdvice::default() });
        let advice = Advice { queue, switching: Some(switching), ..Advice::default() };
        merge.add(&PolicyRef::new("p", "1"), 1, advice);
    }
    merge.add(&PolicyRef::new("p", "1"), 1, Advice::default());
    let merged = merge.finish(OnConflict::Refuse);
    assert_eq!(merged.queue.map(|queue| queue.priority), Some(2));
    assert_eq!(merged.switching, Switching::Never);
}

fn any_lane_advice() -> impl Strategy<Value = LaneAdvice> {
    let some_ids = || prop::collection::vec((0u32..6).prop_map(LaneId), 0..4);
    let scores = prop::collection::vec((0u32..6, 0u16..2000), 0..4).prop_map(|all| {
        all.into_iter().map(|(lane, score)| LaneScore { lane: LaneId(lane), score }).collect()
    });
    prop_oneof![
        Just(LaneAdvice::Any),
        some_ids().prop_map(LaneAdvice::Only),
        some_ids().prop_map(LaneAdvice::Avoid),
        some_ids().prop_map(LaneAdvice::Ordered),
        scores.prop_map(LaneAdvice::Scores),
    ]
}

proptest! {
    /// The WIT promises that filters and scores do not depend on the order of the chain.
    #[test]
    fn lanes_do_not_depend_on_policy_order(
        mut advice in prop::collection::vec(any_lane_advice(), 0..5),
    ) {
        let forward = lanes(&advice, OnConflict::Refuse);
        advice.reverse();
        prop_assert_eq!(forward, lanes(&advice, OnConflict::Refuse));
    }

    /// With `ignore-filters` at least one lane is left, and only candidates are left.
    #[test]
    fn ignoring_filters_always_leaves_a_candidate(
        advice in prop::collection::vec(any_lane_advice(), 0..5),
    ) {
        let left = lanes(&advice, OnConflict::IgnoreFilters);
        prop_assert!(!left.is_empty() && left.iter().all(|(lane, _)| *lane < 3));
    }
}
