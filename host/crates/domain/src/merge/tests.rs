use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::advice::{LaneScore, Scalar};
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
        is_peer: false,
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
fn filter_of_a_required_policy_is_never_ignored() {
    let fleet = fleet(3);
    let only = |lane| Advice { lanes: LaneAdvice::Only(ids(&[lane])), ..Advice::default() };
    let (quota, sticky) = (PolicyRef::new("quota", "1"), PolicyRef::new("sticky", "1"));
    let merged = |sticky_is_required| {
        let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
        merge.add_required(&quota, 1, only(0));
        match sticky_is_required {
            true => merge.add_required(&sticky, 1, only(1)),
            false => merge.add(&sticky, 1, only(1)),
        }
        merge.finish(OnConflict::IgnoreFilters)
    };
    let ignored = merged(false);
    assert_eq!(ignored.lanes, [(LaneId(0), 0)]);
    assert_eq!(ignored.opinions[1].kind, OpinionKind::IgnoredFilter);
    assert_eq!(ignored.filtering().collect::<Vec<_>>(), [&quota]);
    let refused = merged(true);
    assert_eq!(refused.lanes, []);
    assert_eq!(refused.filtering().collect::<Vec<_>>(), [&quota, &sticky]);
}

/// The reason and the policy that are shown have to be those that the decision follows.
#[test]
fn decision_is_attributed_to_the_policy_that_prevailed() {
    let fleet = fleet(3);
    let policy = |name: &str| PolicyRef::new(name, "1");
    let why = |text: &str| Note { key: "why".into(), value: Scalar::Text(text.into()) };
    let merged = |advice: &[(&str, LaneAdvice)]| {
        let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
        for (name, lanes) in advice {
            let notes = vec![why(name)];
            merge.add(
                &policy(name),
                1,
                Advice { lanes: lanes.clone(), notes, ..Advice::default() },
            );
        }
        merge.finish(OnConflict::Refuse)
    };
    let only = |lane| LaneAdvice::Only(ids(&[lane]));
    let prefer = |lane| LaneAdvice::Scores(vec![LaneScore { lane: LaneId(lane), score: 9 }]);
    let any = || LaneAdvice::Any;
    for (advice, lane, expected, reason) in [
        // The scores for lane 1 do not prevail over the filter.
        (vec![("gate", only(0)), ("sticky", prefer(1))], 0, Some("gate"), "gate"),
        (vec![("gate", only(0)), ("sticky", prefer(0))], 0, Some("sticky"), "sticky"),
        (vec![("gate", only(0)), ("audit", any())], 0, Some("gate"), "gate"),
        (vec![("audit", any())], 0, None, "audit"),
        // A filter that excludes no candidate decides nothing.
        (vec![("wide", LaneAdvice::Only(ids(&[0, 1, 2])))], 0, None, "wide"),
    ] {
        let merged = merged(&advice);
        let expected = expected.map(policy);
        assert_eq!(merged.prevailing(Some(LaneId(lane))), expected.as_ref(), "{advice:?}");
        assert_eq!(merged.reason(Some(LaneId(lane))).as_deref(), Some(reason), "{advice:?}");
    }
    let none = merged(&[("gate", only(0)), ("other", only(1))]);
    assert_eq!(none.prevailing(None), Some(&policy("other")));
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

/// Lane 9 serves another model: it is not a candidate.
#[test]
fn fallback_leaves_the_own_filter_but_not_those_of_other_policies() {
    use LaneAdvice::{Any, Avoid, Only, Ordered};
    let fleet = fleet(10);
    for (other, expected) in [
        (Any, [1, 2, 9].as_slice()),
        (Only(ids(&[0, 2, 77])), &[2]),
        (Only(ids(&[0, 9])), &[9]),
        (Ordered(ids(&[2, 0])), &[2]),
        (Avoid(ids(&[2])), &[1, 9]),
        (Avoid(ids(&[9])), &[1, 2]),
        (Only(ids(&[0])), &[]),
        // These filters leave no lane, and the last one is ignored.
        (Only(ids(&[1])), &[1]),
    ] {
        for is_first in [true, false] {
            let steps = [1, 2, 9].map(|lane| FallbackStep { lane: LaneId(lane), edits: vec![] });
            let own = Advice {
                lanes: Only(ids(&[0])),
                fallback: Some(FallbackAdvice {
                    on: crate::Triggers::ALL,
                    steps: steps.to_vec(),
                    first_token: None,
                }),
                ..Advice::default()
            };
            let others = Advice { lanes: other.clone(), ..Advice::default() };
            let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
            let (own_ref, others_ref) = (PolicyRef::new("own", "1"), PolicyRef::new("other", "1"));
            if is_first {
                merge.add(&own_ref, 1, own);
                merge.add_required(&others_ref, 1, others);
            } else {
                merge.add_required(&others_ref, 1, others);
                merge.add(&own_ref, 1, own);
            }
            let merged = merge.finish(OnConflict::IgnoreFilters);
            let steps = merged.fallback.unwrap().steps;
            let lanes: Vec<u32> = steps.iter().map(|step| step.lane.0).collect();
            assert_eq!(lanes, expected, "{other:?}, own policy first: {is_first}");
        }
    }
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
