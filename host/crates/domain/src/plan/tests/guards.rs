//! Property test: no advice whatsoever sends a guarded request where it must not go.

use std::sync::Arc;

use proptest::prelude::*;

use super::invariants::{any_advice, any_edit, any_id, any_on_conflict, any_states};
use super::*;
use crate::attempts::{AttemptCursor, QueueShare};
use crate::constraint::{AppliedGuard, Constraint, GuardRules};
use crate::dispatch::FlowId;
use crate::outcome::Recovery;

/// Returns lanes with any labels, kinds of engines and models: with `m`, `n` or both.
fn any_fleet() -> impl Strategy<Value = FleetView> {
    let lane = (0u8..4, any::<bool>(), 0usize..3);
    (prop::collection::vec(lane, 4), any_states()).prop_map(|(lanes, states)| {
        let info = |(labels, is_external, models): (u8, bool, usize)| LaneInfo {
            engine: if is_external { EngineKind::External } else { EngineKind::Vllm },
            models: [vec!["m"], vec!["n"], vec!["m", "n"]][models]
                .iter()
                .map(|model| (*model).to_owned())
                .collect(),
            labels: (0..2)
                .filter(|bit| labels & (1 << bit) != 0)
                .map(|bit| (format!("l{bit}"), "x".to_owned()))
                .collect(),
            ..fleet(&[Ready]).topology.lanes()[0].clone()
        };
        let topology = Arc::new(Topology::new(1, lanes.into_iter().map(info).collect()));
        let mut fleet = FleetView::idle(topology, Ready);
        for (stat, state) in fleet.stats_mut().iter_mut().zip(states) {
            stat.state = state;
        }
        fleet
    })
}

fn any_constraint() -> impl Strategy<Value = Constraint> {
    let labels = || {
        prop::collection::vec((0u8..2).prop_map(|bit| (format!("l{bit}"), "x".to_owned())), 0..2)
    };
    let priority = prop::option::of((-9i32..9, 0i32..9).prop_map(|(low, more)| (low, low + more)));
    let rules = (labels(), labels(), any::<bool>(), any::<bool>(), priority).prop_map(
        |(only_labels, never_labels, never_external, keep_model, priority)| GuardRules {
            only_labels,
            never_labels,
            never_external,
            keep_model,
            max_output_tokens: None,
            priority,
        },
    );
    prop::collection::vec(rules, 1..3).prop_map(|rules| Constraint {
        model: "m".into(),
        guards: rules
            .into_iter()
            .map(|rules| Arc::new(AppliedGuard { name: "g".into(), rules }))
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_advice_sends_a_guarded_request_to_a_forbidden_lane(
        fleet in any_fleet(),
        constraint in any_constraint(),
        chain in prop::collection::vec(any_advice(), 0..4),
        // The lanes are barred whether or not the advice was cleaned before.
        is_cleaned in any::<bool>(),
        conflict in any_on_conflict(),
        (retry, edits) in (any_id(), prop::collection::vec(any_edit(), 0..3)),
    ) {
        let view = constraint.restrict(&fleet);
        let endpoint = Endpoint::ChatCompletions;
        let mut merge = Merge::new(&view, "m", endpoint);
        for mut advice in chain {
            if is_cleaned {
                constraint.enforce(&mut advice, &view);
                let again = constraint.enforce(&mut advice.clone(), &view);
                prop_assert!(again.is_empty(), "not idempotent: {:?}", again);
            }
            merge.add(&PolicyRef::new("p", "1"), 1000, advice);
        }
        let merged = merge.finish(conflict);
        let forbids = |lane| constraint.objection(&fleet.topology, lane).is_some();
        let pins_model = constraint.keeps_model().is_some();
        let renames = |edit: &Edit| matches!(edit, Edit::SetModel(model) if **model != *"m");
        if is_cleaned && pins_model {
            prop_assert!(!merged.edits.iter().any(renames), "{:?}", merged.edits);
        }
        let Decision::Route(plan) = Plan::from_advice(&merged, &view, &LIMITS) else {
            return Ok(());
        };
        for step in &plan.steps {
            prop_assert!(!forbids(step.lane), "{:?}", step);
            prop_assert!(!(is_cleaned && pins_model && step.edits.iter().any(renames)));
        }
        let steps = plan.steps.len();
        let cursor = AttemptCursor::new(plan, steps + 1).unwrap();
        let share = QueueShare::default();
        let share =
            QueueShare { priority: constraint.clamp_priority(share.priority), ..share };
        let slot = cursor.slot_request((FlowId::default(), share), Duration::from_secs(1));
        prop_assert!(!forbids(slot.lane));
        let clamped = constraint.clamp_priority((slot.priority, slot.priority));
        prop_assert_eq!(clamped, (slot.priority, slot.priority));
        // What `on-failure` advises.
        let step = FallbackStep { lane: retry, edits };
        if cursor.objection(&step, (&view, endpoint), true).is_none() {
            prop_assert!(!forbids(retry), "{:?}", retry);
        }
        let mut recovery = Recovery::Retry(step);
        constraint.enforce_recovery(&mut recovery, &view);
        if let Recovery::Retry(step) = recovery {
            let exists = fleet.topology.lane(step.lane).is_some();
            prop_assert!(!exists || !forbids(step.lane));
            prop_assert!(!(pins_model && step.edits.iter().any(renames)));
        }
    }
}
