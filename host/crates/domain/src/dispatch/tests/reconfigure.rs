//! Example-based tests of changes of the configuration.

use super::*;

const RESTART: fn(LaneSetup) -> LaneUpdate = LaneUpdate::Restarted;
const KEEP: fn(LaneSetup) -> LaneUpdate = LaneUpdate::Kept;

impl DispatcherHarness {
    /// Changes the lanes, and the budget of their group.
    fn reconfigure(&mut self, lanes: Vec<LaneUpdate>, budget_gib: u64) {
        let groups = vec![(GroupSetup { budget: budget_gib * GIB }, Some(0))];
        let mut effects = Vec::new();
        let new = Reconfiguration { lanes, groups, rules: rules() };
        self.dispatcher.reconfigure(new, self.now, &mut effects);
        self.note(effects);
    }
}

#[test]
fn restart_waits_for_streams_and_loads_the_lane_again() {
    let (mut harness, running) = DispatcherHarness::serving();
    let larger = setup(3, 0, 25);
    harness.reconfigure(vec![RESTART(larger), KEEP(setup(2, 0, 20))], 30);
    let waiting = harness.arrive(A);
    let held = harness.dispatcher.memory_by_group().next();
    assert_eq!((harness.take_log(), held), (Vec::new(), Some(20 * GIB)));
    assert!(harness.dispatcher.is_restart_pending(A));
    harness.advance_to(harness.now + s(100));
    harness.release(running);
    assert_eq!(harness.take_log(), ["unload A fully"]);
    harness.finish_stop(A);
    assert_eq!(harness.take_log(), ["load A"]);
    assert!(!harness.dispatcher.is_restart_pending(A));
    assert_eq!(harness.dispatcher.memory_by_group().next(), Some(25 * GIB));
    harness.finish_load(A);
    assert_eq!(harness.take_log()[1], format!("grant {waiting} A"));
}

#[test]
fn idle_lane_is_loaded_again_and_cold_lane_is_not() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.release(running);
    harness.reconfigure(vec![RESTART(setup(2, 0, 20)), RESTART(setup(2, 0, 20))], 30);
    harness.finish_stop(A);
    assert_eq!(harness.take_log(), ["unload A fully", "load A"]);
}

#[test]
fn load_with_outdated_settings_is_abandoned() {
    let mut harness = DispatcherHarness::exclusive_lanes(1);
    let waiting = harness.arrive(A);
    harness.reconfigure(vec![RESTART(setup(2, 0, 20))], 30);
    // It became ready before it was stopped.
    harness.engine_event(A, EngineEvent::Ready);
    harness.finish_stop(A);
    harness.finish_load(A);
    let log = harness.take_log();
    assert_eq!(log[..3], ["load A", "unload A fully", "load A"]);
    assert_eq!(log.last(), Some(&format!("grant {waiting} A")));
}

/// The answer to the first command does not say that the engine which was loaded later has ended.
#[test]
fn late_answer_does_not_end_a_later_engine() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.release(running);
    harness.reconfigure(vec![KEEP(setup(2, 0, 20))], 10);
    harness.engine_event(A, EngineEvent::Lost("crashed".into()));
    harness.reconfigure(vec![KEEP(setup(2, 0, 20))], 30);
    harness.arrive(A);
    harness.reconfigure(vec![KEEP(setup(2, 0, 20))], 10);
    assert_eq!(
        harness.take_log(),
        ["unload A fully", "load A", "unload A fully"],
        "over its budget, whatever waits"
    );
    harness.finish_stop(A);
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Stopping));
    harness.finish_stop(A);
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Cold));
}

#[test]
fn restart_forgets_earlier_failures() {
    let mut harness = DispatcherHarness::exclusive_lanes(1);
    for _ in 0..3 {
        harness.arrive(A);
        harness.engine_event(A, EngineEvent::LoadFailed("typo".into()));
        harness.advance_to(harness.now + s(10));
    }
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Failed));
    harness.take_log();
    harness.reconfigure(vec![RESTART(setup(2, 0, 20))], 30);
    assert_eq!((harness.dispatcher.problem(A), harness.take_log()), (None, Vec::new()));
    harness.arrive(A);
    assert_eq!(harness.take_log(), ["load A"]);
}

#[test]
fn removed_lane_finishes_its_streams_and_leaves_its_id() {
    let (mut harness, running) = DispatcherHarness::serving();
    let waiting: Vec<u64> = (0..2).map(|_| harness.arrive(A)).collect();
    harness.take_log();
    harness.reconfigure(vec![LaneUpdate::Retired, KEEP(setup(2, 0, 20))], 30);
    let other = harness.arrive(A);
    assert_eq!(
        harness.take_log(),
        [format!("reject {}: lane-removed", waiting[1]), format!("reject {other}: lane-removed")],
        "the first one has a slot"
    );
    assert!(harness.dispatcher.is_retired(A));
    let shown: Vec<LaneId> =
        harness.dispatcher.stats(harness.now).iter().map(|stat| stat.id).collect();
    assert_eq!(shown, [B]);
    let in_b = harness.arrive(B);
    harness.release(running);
    harness.release(waiting[0]);
    assert_eq!(harness.take_log(), ["unload A fully"]);
    assert!(!harness.dispatcher.is_vacant(A));
    harness.finish_stop(A);
    assert!(harness.dispatcher.is_vacant(A));
    assert_eq!(harness.take_log(), ["load B"], "its memory is free now");
    let added = LaneUpdate::Added(setup(1, 0, 5));
    harness.reconfigure(vec![added, KEEP(setup(2, 0, 20))], 30);
    let in_new = harness.arrive(A);
    harness.finish_load(A);
    harness.finish_load(B);
    let log = harness.take_log();
    assert!(log.contains(&format!("grant {in_new} A")) && log.contains(&format!("grant {in_b} B")));
    let generation = harness.leases[&in_new].1;
    assert_eq!(generation, Generation(2), "that of the earlier lane was 1");
}

#[test]
fn lease_of_an_earlier_generation_keeps_the_id_of_a_removed_lane() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.engine_event(A, EngineEvent::Lost("crashed".into()));
    harness.reconfigure(vec![LaneUpdate::Retired, KEEP(setup(2, 0, 20))], 30);
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Cold));
    assert!(!harness.dispatcher.is_vacant(A));
    harness.release(running);
    assert!(harness.dispatcher.is_vacant(A));
}

#[test]
fn group_over_its_budget_unloads_idle_lanes_first() {
    let mut harness = DispatcherHarness::new(vec![setup(2, 0, 10); 3], 30, rules());
    let tickets: Vec<u64> = [A, B, C].map(|lane| harness.arrive(lane)).to_vec();
    for lane in [A, B, C] {
        harness.finish_load(lane);
    }
    harness.release(tickets[1]);
    harness.take_log();
    let lanes = || vec![KEEP(setup(2, 0, 10)); 3];
    harness.reconfigure(lanes(), 20);
    assert_eq!(harness.take_log(), ["unload B fully"]);
    harness.reconfigure(lanes(), 30);
    harness.finish_stop(B);
    harness.arrive(B);
    assert_eq!(harness.take_log(), ["load B"]);
}

#[test]
fn fewer_slots_let_running_requests_finish() {
    let (mut harness, first) = DispatcherHarness::serving();
    let (second, third) = (harness.arrive(A), harness.arrive(A));
    harness.take_log();
    let with_slots = |slots| vec![KEEP(setup(slots, 0, 20)), KEEP(setup(2, 0, 20))];
    harness.reconfigure(with_slots(1), 30);
    harness.release(first);
    assert_eq!((harness.take_log(), harness.dispatcher.running(A)), (Vec::new(), 1));
    harness.reconfigure(with_slots(3), 30);
    assert_eq!(harness.take_log(), [format!("grant {third} A")]);
    harness.release(second);
}

#[test]
fn switch_goes_on_in_spite_of_a_change() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.arrive(B);
    harness.advance_to(harness.now + s(200));
    assert_eq!(harness.state(A), LaneState::Draining);
    harness.reconfigure(vec![KEEP(setup(2, 0, 20)); 2], 30);
    assert_eq!(harness.state(A), LaneState::Draining);
    harness.release(running);
    harness.finish_stop(A);
    harness.take_log();
    let report = {
        harness.finish_load(B);
        harness.take_log()
    };
    assert!(report[0].starts_with("switched to B 155+0+40"), "{report:?}");
}

/// The victim of a switch is kept if the target of the switch is removed.
#[test]
fn removal_of_its_target_ends_a_switch() {
    let (mut harness, _running) = DispatcherHarness::serving();
    let waiting = harness.arrive(B);
    harness.advance_to(harness.now + s(200));
    harness.take_log();
    harness.reconfigure(vec![KEEP(setup(2, 0, 20)), LaneUpdate::Retired], 30);
    assert_eq!(harness.take_log(), [format!("reject {waiting}: lane-removed")]);
    assert_eq!(harness.state(A), LaneState::Ready);
}
