//! Example-based tests of what operators do with lanes by hand.

use super::*;

impl DispatcherHarness {
    fn command(&mut self, lane: LaneId, command: LaneCommand) -> Result<(), LaneCommandError> {
        let mut effects = Vec::new();
        let result = self.dispatcher.command(lane, command, self.now, &mut effects);
        self.note(effects);
        result
    }

    fn mode(&self, lane: LaneId) -> Option<LaneMode> {
        self.dispatcher.lane_mode(lane)
    }
}

const HOLD: LaneCommand = LaneCommand::Unload { hold: true };
const UNLOAD: LaneCommand = LaneCommand::Unload { hold: false };

#[test]
fn each_command_leads_to_its_mode() {
    use LaneCommand::{Drain, Load, Restart, Resume};
    use LaneMode::{Draining, Held, Loading, Restarting, Unloading};
    for (commands, mode) in [
        (vec![Load], None),
        (vec![UNLOAD], Some(Unloading)),
        (vec![UNLOAD, Load], Some(Loading)),
        (vec![HOLD], Some(Held)),
        (vec![HOLD, UNLOAD], Some(Unloading)),
        (vec![HOLD, Load], Some(Loading)),
        (vec![HOLD, Restart], Some(Restarting)),
        (vec![Drain], Some(Draining)),
        (vec![Drain, Drain], Some(Draining)),
        (vec![Drain, Resume], None),
        (vec![Drain, Load], None),
        (vec![Drain, HOLD], Some(Held)),
        (vec![Drain, Restart], Some(Restarting)),
        (vec![Restart], Some(Restarting)),
        (vec![Restart, UNLOAD], Some(Unloading)),
    ] {
        let (mut harness, _) = DispatcherHarness::serving();
        for command in &commands {
            assert_eq!(harness.command(A, *command), Ok(()), "{command:?} of {commands:?}");
        }
        assert_eq!(harness.mode(A), mode, "{commands:?}");
        assert_eq!(harness.take_log(), Vec::<String>::new(), "a request runs: {commands:?}");
    }
}

#[test]
fn commands_that_a_lane_cannot_carry_out_are_rejected() {
    let (mut harness, _) = DispatcherHarness::serving();
    assert_eq!(harness.command(A, LaneCommand::Resume), Err(LaneCommandError::NotDraining));
    assert_eq!(harness.command(C, LaneCommand::Load), Err(LaneCommandError::UnknownLane));
    harness.command(A, HOLD).unwrap();
    assert_eq!(harness.command(A, LaneCommand::Drain), Err(LaneCommandError::Held));
    assert_eq!(harness.command(A, LaneCommand::Resume), Err(LaneCommandError::Held));
    harness.on(Event::Closed);
    assert_eq!(harness.command(A, LaneCommand::Load), Err(LaneCommandError::Closing));

    let external = LaneSetup { residency: Residency::External, ..setup(2, 99, 0) };
    let mut harness = DispatcherHarness::new(vec![external], 30, rules());
    for command in [UNLOAD, HOLD, LaneCommand::Restart] {
        assert_eq!(harness.command(A, command), Err(LaneCommandError::NotManaged));
    }
    harness.engine_event(A, EngineEvent::Ready);
    harness.command(A, LaneCommand::Drain).unwrap();
    let rejected = harness.arrive(A);
    assert_eq!(harness.take_log(), [format!("reject {rejected}: paused draining")]);
    harness.command(A, LaneCommand::Load).unwrap();
    let granted = harness.arrive(A);
    assert_eq!(harness.take_log(), [format!("grant {granted} A")]);
}

#[test]
fn unloaded_lane_is_loaded_again_by_its_next_request() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(A, UNLOAD).unwrap();
    harness.release(running);
    harness.finish_stop(A);
    assert_eq!((harness.take_log(), harness.mode(A)), (vec!["unload A fully".to_owned()], None));
    harness.advance_to(harness.now + s(1000));
    assert_eq!(harness.take_log(), Vec::<String>::new());
    harness.arrive(A);
    assert_eq!(harness.take_log(), ["load A"]);
}

#[test]
fn held_lane_rejects_requests_until_it_is_loaded() {
    let (mut harness, running) = DispatcherHarness::serving();
    let second = harness.arrive(A);
    let waiting = harness.arrive(A);
    harness.take_log();
    harness.command(A, HOLD).unwrap();
    let late = harness.arrive(A);
    assert_eq!(
        harness.take_log(),
        [format!("reject {waiting}: paused held"), format!("reject {late}: paused held")]
    );
    harness.release(running);
    harness.release(second);
    harness.finish_stop(A);
    assert_eq!(
        (harness.take_log(), harness.state(A)),
        (vec!["unload A fully".into()], LaneState::Down)
    );
    let code = harness.dispatcher.problem(A).and_then(|problem| problem.code());
    assert_eq!(code, Some("lane_held"));
    harness.on(Event::Hinted { lane: A, hint: Some(LaneHint::Load), until: s(10_000) });
    assert_eq!(harness.take_log(), Vec::<String>::new(), "a policy does not end a hold");
    harness.command(A, LaneCommand::Load).unwrap();
    assert_eq!(
        (harness.take_log(), harness.mode(A)),
        (vec!["load A".into()], Some(LaneMode::Loading))
    );
    harness.finish_load(A);
    assert_eq!(harness.mode(A), None);
}

#[test]
fn drained_lane_keeps_its_engine_and_its_running_requests() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(A, LaneCommand::Drain).unwrap();
    let rejected = harness.arrive(A);
    harness.release(running);
    harness.advance_to(harness.now + s(1000));
    assert_eq!(harness.take_log(), [format!("reject {rejected}: paused draining")]);
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Ready));
    harness.command(A, LaneCommand::Resume).unwrap();
    let granted = harness.arrive(A);
    assert_eq!(harness.take_log(), [format!("grant {granted} A")]);
}

#[test]
fn restart_lets_requests_wait_and_cuts_no_stream() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(A, LaneCommand::Restart).unwrap();
    let waiting = harness.arrive_with(A, |enqueue| enqueue.switching = Switching::Never);
    harness.advance_to(harness.now + s(100));
    assert_eq!(harness.take_log(), Vec::<String>::new());
    harness.release(running);
    harness.finish_stop(A);
    assert_eq!(harness.take_log(), ["unload A fully", "load A"]);
    harness.finish_load(A);
    assert_eq!(harness.take_log()[1..], [format!("grant {waiting} A")]);
    assert_eq!(harness.mode(A), None);
}

/// Whatever the restart has done by then. Requests that may not load a lane waited only because the
/// restart was about to load it.
#[test]
fn unload_during_a_restart_is_not_followed_by_its_load() {
    type Reach = fn(&mut DispatcherHarness, u64);
    let phases: [(&str, Reach); 4] = [
        ("serves its last request", |_, _| ()),
        ("stops", |harness, running| harness.release(running)),
        ("loads", |harness, running| {
            harness.release(running);
            harness.finish_stop(A);
        }),
        ("crashed while it stopped", |harness, running| {
            harness.release(running);
            harness.engine_event(A, EngineEvent::Lost("crashed".into()));
        }),
    ];
    for (phase, advance) in phases {
        for (command, code) in [(UNLOAD, "not-loaded"), (HOLD, "paused held")] {
            let (mut harness, running) = DispatcherHarness::serving();
            harness.command(A, LaneCommand::Restart).unwrap();
            let waiting = harness.arrive_with(A, |enqueue| enqueue.switching = Switching::Never);
            advance(&mut harness, running);
            harness.command(A, command).unwrap();
            if harness.leases.contains_key(&running) {
                harness.release(running);
            }
            let before = harness.take_log();
            if harness.dispatcher.engine_state(A) == Some(EngineState::Stopping) {
                harness.finish_stop(A);
            }
            harness.advance_to(harness.now + s(2000));
            let rejected = format!("reject {waiting}: {code}");
            assert!(before.contains(&rejected), "{phase}, {command:?}: {before:?}");
            let after = harness.take_log();
            assert_eq!(after, Vec::<String>::new(), "{phase}, {command:?}");
            assert_ne!(harness.mode(A), Some(LaneMode::Restarting), "{phase}, {command:?}");
        }
    }
}

/// They load it, as after any unload.
#[test]
fn requests_that_may_load_a_lane_do_so_after_an_unload() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(A, LaneCommand::Restart).unwrap();
    harness.arrive(A);
    harness.command(A, UNLOAD).unwrap();
    harness.release(running);
    harness.finish_stop(A);
    assert_eq!(harness.take_log(), ["unload A fully", "load A"]);
    assert_eq!(harness.mode(A), None);
}

#[test]
fn always_on_lane_stays_unloaded_only_while_it_is_held() {
    for (command, reloads) in [(UNLOAD, true), (HOLD, false)] {
        let always = LaneSetup { residency: Residency::Always, ..setup(2, 0, 20) };
        let mut harness = DispatcherHarness::new(vec![always], 30, rules());
        harness.finish_load(A);
        harness.command(A, command).unwrap();
        harness.finish_stop(A);
        assert_eq!(harness.take_log().last().unwrap() == "load A", reloads, "{command:?}");
    }
}

#[test]
fn load_by_hand_evicts_by_the_usual_rules() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(B, LaneCommand::Load).unwrap();
    harness.release(running);
    assert_eq!(harness.take_log(), Vec::<String>::new(), "lane A lingers");
    harness.advance_to(harness.now + s(120));
    harness.finish_stop(A);
    assert_eq!(harness.take_log(), ["unload A", "load B"]);
    assert_eq!(harness.mode(B), Some(LaneMode::Loading));
}

#[test]
fn load_of_a_victim_ends_when_it_is_kept() {
    let (mut harness, _) = DispatcherHarness::serving();
    let other = harness.arrive(B);
    harness.advance_to(harness.now + s(200));
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Draining));
    harness.command(A, LaneCommand::Load).unwrap();
    assert_eq!(harness.mode(A), Some(LaneMode::Loading));
    harness.on(Event::Cancelled(Ticket(other)));
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Ready));
    assert_eq!(harness.mode(A), None);
}

#[test]
fn failed_load_ends_with_its_reason() {
    for command in [LaneCommand::Load, LaneCommand::Restart] {
        let mut harness = DispatcherHarness::exclusive_lanes(1);
        harness.command(A, command).unwrap();
        harness.engine_event(A, EngineEvent::LoadFailed("typo".into()));
        assert_eq!(harness.mode(A), None);
        assert_eq!(harness.dispatcher.problem(A), Some("typo".into()));
        // By hand it is tried again at once.
        harness.take_log();
        harness.command(A, LaneCommand::Load).unwrap();
        assert_eq!(harness.take_log(), ["load A"]);
    }
}

#[test]
fn crash_while_unloading_moves_waiting_requests_to_their_fallbacks() {
    let (mut harness, _) = DispatcherHarness::serving();
    harness.arrive(A);
    harness.command(A, UNLOAD).unwrap();
    let with_fallback = harness.arrive_with(A, |enqueue| enqueue.has_fallback = true);
    let without = harness.arrive(A);
    harness.take_log();
    harness.engine_event(A, EngineEvent::Lost("crashed".into()));
    let log = harness.take_log();
    assert_eq!(log, [format!("reject {with_fallback}: not-serving starting crashed")]);
    harness.advance_to(harness.now + s(1));
    harness.finish_load(A);
    assert_eq!(harness.take_log().last(), Some(&format!("grant {without} A")));
}

#[test]
fn hold_outlives_a_change_of_the_configuration() {
    let (mut harness, running) = DispatcherHarness::serving();
    harness.command(A, HOLD).unwrap();
    harness.release(running);
    harness.finish_stop(A);
    harness.take_log();
    let lanes = vec![LaneUpdate::Restarted(setup(3, 0, 25)), LaneUpdate::Kept(setup(2, 0, 20))];
    let groups = vec![(GroupSetup { budget: 30 * GIB }, Some(0))];
    let mut effects = Vec::new();
    let new = Reconfiguration { lanes, groups, rules: rules() };
    harness.dispatcher.reconfigure(new, harness.now, &mut effects);
    harness.note(effects);
    assert_eq!((harness.take_log(), harness.mode(A)), (Vec::new(), Some(LaneMode::Held)));
}
