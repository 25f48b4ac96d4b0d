//! Property test: any advice results in a plan that the host can execute.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::advice::{Metric, MetricWeight, Note, Rejection, Scalar};
use crate::permit::{Allow, enforce_allow};

fn any_lanes() -> impl Strategy<Value = LaneAdvice> {
    let some_ids = || prop::collection::vec(any_id(), 0..40);
    let scores = prop::collection::vec((any_id(), any::<u16>()), 0..40)
        .prop_map(|all| all.into_iter().map(|(lane, score)| LaneScore { lane, score }).collect());
    let metric = prop::sample::select(vec![
        Metric::SlotsFree,
        Metric::Queue,
        Metric::KvFree,
        Metric::EstWait,
        Metric::ReadyIn,
        Metric::Ttft,
        Metric::DecodeSpeed,
        Metric::CachedTokens,
        Metric::ErrorRate,
        Metric::Cost,
    ]);
    let weight =
        (metric, any::<i32>()).prop_map(|(metric, weight)| MetricWeight { metric, weight });
    prop_oneof![
        Just(LaneAdvice::Any),
        some_ids().prop_map(LaneAdvice::Only),
        some_ids().prop_map(LaneAdvice::Avoid),
        some_ids().prop_map(LaneAdvice::Ordered),
        scores.prop_map(LaneAdvice::Scores),
        prop::collection::vec(weight, 0..40).prop_map(LaneAdvice::Blend),
    ]
}

/// Mostly existing lanes, sometimes an unknown one.
pub(super) fn any_id() -> impl Strategy<Value = LaneId> {
    prop_oneof![4 => 0u32..4, 1 => any::<u32>()].prop_map(LaneId)
}

pub(super) fn any_edit() -> impl Strategy<Value = Edit> {
    let text = || "[a-z/~0-9\"{}: -]{0,12}";
    prop_oneof![
        text().prop_map(Edit::SetModel),
        any::<u32>().prop_map(Edit::CapOutputTokens),
        (text(), text()).prop_map(|(pointer, json)| Edit::SetField(pointer, json)),
        text().prop_map(Edit::RemoveField),
        text().prop_map(Edit::PrependSystem),
        any::<u32>().prop_map(Edit::KeepLastMessages),
        (text(), text()).prop_map(|(name, value)| Edit::SetHeader(name, value)),
        text().prop_map(Edit::RemoveHeader),
        text().prop_map(Edit::ReplaceBody),
    ]
}

fn any_fallback() -> impl Strategy<Value = FallbackAdvice> {
    let triggers = prop::sample::subsequence(Triggers::EVERY.to_vec(), 0..=6);
    let step = (any_id(), prop::collection::vec(any_edit(), 0..3))
        .prop_map(|(lane, edits)| FallbackStep { lane, edits });
    let first_token =
        prop::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())));
    (triggers, prop::collection::vec(step, 0..20), first_token).prop_map(
        |(on, steps, first_token)| FallbackAdvice {
            on: on.into_iter().collect(),
            steps,
            first_token,
        },
    )
}

fn any_queue() -> impl Strategy<Value = QueueAdvice> {
    let max_wait = prop::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())));
    let on_timeout = prop_oneof![Just(OnTimeout::Reject), Just(OnTimeout::FallBack)];
    (any::<i32>(), prop::option::of("[a-z]{0,9}"), max_wait, on_timeout).prop_map(
        |(priority, flow, max_wait, on_timeout)| QueueAdvice {
            priority,
            flow,
            max_wait,
            on_timeout,
        },
    )
}

pub(super) fn any_advice() -> impl Strategy<Value = Advice> {
    let reject = (any::<u16>(), "[a-z_]{0,9}", ".{0,9}", any::<Option<u32>>()).prop_map(
        |(status, code, message, retry_after_s)| Rejection { status, code, message, retry_after_s },
    );
    let switching =
        prop_oneof![Just(Switching::Never), Just(Switching::WhenIdle), Just(Switching::Allow)];
    let note =
        ("[a-z]{0,5}", ".{0,9}").prop_map(|(key, text)| Note { key, value: Scalar::Text(text) });
    (
        prop::option::weighted(0.1, reject),
        any_lanes(),
        prop::option::of(switching),
        prop::option::of(any_queue()),
        prop::option::of(any_fallback()),
        prop::collection::vec(any_edit(), 0..40),
        prop::collection::vec(note, 0..40),
    )
        .prop_map(|(reject, lanes, switching, queue, fallback, edits, notes)| Advice {
            reject,
            lanes,
            switching,
            queue,
            fallback,
            edits,
            notes,
            hints: Vec::new(),
        })
}

pub(super) fn any_states() -> impl Strategy<Value = Vec<LaneState>> {
    let every = vec![Ready, Starting, Unloaded, Draining, Down, LaneState::Degraded];
    prop::collection::vec(prop::sample::select(every), 4)
}

pub(super) fn any_on_conflict() -> impl Strategy<Value = OnConflict> {
    prop_oneof![Just(OnConflict::Refuse), Just(OnConflict::IgnoreFilters)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_advice_results_in_an_executable_plan(
        states in any_states(),
        chain in prop::collection::vec((any_advice(), 0u32..5000), 0..4),
        conflict in any_on_conflict(),
        contexts in prop::collection::vec(prop_oneof![Just(0), any::<u32>()], 4),
        prompt in any::<u32>(),
    ) {
        let mut fleet = fleet_with_contexts(&contexts);
        for (stat, state) in fleet.stats_mut().iter_mut().zip(&states) {
            stat.state = *state;
        }
        let fleet = Arc::new(fleet);
        let allow = Allow { fields: vec!["/a".into()], priority: (-5, 5), ..Allow::default() };
        let mut merge = Merge::new(&fleet, "m", Endpoint::ChatCompletions);
        for (mut advice, weight) in chain {
            enforce_allow(&mut advice, &allow);
            let dropped_again = enforce_allow(&mut advice.clone(), &allow);
            prop_assert!(dropped_again.is_empty(), "permit is not idempotent");
            merge.add(&PolicyRef::new("p", "1"), weight, advice);
        }
        merge.set_need(ContextNeed { prompt, output: 0 });
        let merged = merge.finish(conflict);
        // However wrong the estimate is, it never excludes the only lane.
        let is_routed =
            |decision: &Decision| matches!(decision, Decision::Route(_));
        let any_length = Merged { need: ContextNeed::default(), ..merged.clone() };
        prop_assert_eq!(
            is_routed(&Plan::from_advice(&merged, &fleet, &LIMITS)),
            is_routed(&Plan::from_advice(&any_length, &fleet, &LIMITS))
        );
        match Plan::from_advice(&merged, &fleet, &LIMITS) {
            Decision::Route(plan) => {
                prop_assert!((1..=LIMITS.max_steps).contains(&plan.steps.len()));
                prop_assert!(plan.max_wait <= LIMITS.max_wait && (-5..=5).contains(&plan.priority));
                for (index, step) in plan.steps.iter().enumerate() {
                    let stat = fleet.stat(step.lane);
                    prop_assert!(stat.is_some_and(|stat| stat.state.can_serve()), "{:?}", step);
                    prop_assert!(plan.steps[..index].iter().all(|before| before.lane != step.lane));
                    let allowed =
                        |edit: &Edit| !matches!(edit, Edit::ReplaceBody(_) | Edit::SetModel(_));
                    prop_assert!(step.edits.iter().all(allowed), "not allowed: {:?}", step.edits);
                }
            }
            Decision::Reject(_, rejection) => {
                let status = rejection.allowed_status();
                prop_assert!((400..500).contains(&status) || status == 503);
            }
            Decision::NoLane(reason) => {
                let able = states[..3].iter().any(|state| state.can_serve());
                prop_assert!(reason != NoLaneReason::AllDown || !able || !merged.lanes.is_empty());
            }
        }
    }
}
