//! Example-based tests of switching between lanes.

use super::*;

#[test]
fn lanes_that_fit_together_stay_loaded_together() {
    let mut harness = DispatcherHarness::new(
        vec![setup(1, 0, 10), setup(1, 0, 15), setup(1, 0, 20)],
        30,
        rules(),
    );
    harness.arrive(A);
    harness.arrive(B);
    assert_eq!(harness.take_log(), ["load A", "load B"]);
    harness.finish_load(A);
    harness.finish_load(B);
    assert_eq!(
        harness.take_log(),
        ["switched to A 0+0+40", "grant 1 A", "switched to B 0+0+80", "grant 2 B"]
    );
    assert_eq!(harness.dispatcher.memory_by_group().next(), Some(25 * GIB));
}

#[test]
fn idle_lane_is_evicted_at_once_and_busy_lane_after_min_residency() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    let first = harness.arrive(A);
    harness.finish_load(A);
    harness.release(first);
    harness.advance_to(s(50));
    harness.take_log();
    let second = harness.arrive(B);
    assert_eq!(harness.take_log(), ["unload A"], "A was idle for longer than it lingers");
    harness.finish_stop(A);
    harness.finish_load(B);
    assert_eq!(harness.take_log(), ["load B", "switched to B 0+0+40", "grant 2 B"]);
    // B is busy; A has to wait for B's minimum residency: what loading A and stopping B costs.
    let third = harness.arrive(A);
    harness.advance_to(harness.now + s(39));
    assert_eq!(harness.take_log(), Vec::<String>::new());
    harness.advance_to(harness.now + s(7));
    let late = harness.arrive(B);
    assert_eq!(
        harness.take_log(),
        Vec::<String>::new(),
        "B takes no new requests and still has a lease"
    );
    harness.release(second);
    assert_eq!(harness.take_log(), ["unload B"]);
    harness.finish_stop(B);
    harness.finish_load(A);
    assert_eq!(harness.take_log()[..2], ["load A", "switched to A 1+0+40"]);
    assert!(harness.leases.contains_key(&third) && !harness.leases.contains_key(&late));
}

#[test]
fn requests_are_batched_by_lane() {
    let mut harness = DispatcherHarness::exclusive_lanes(3);
    let tickets: Vec<u64> = (0..12).map(|n| harness.arrive([A, B, C][n % 3])).collect();
    let mut loads = Vec::new();
    let mut served = Vec::new();
    while served.len() < tickets.len() {
        for line in harness.take_log() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["load", lane] => {
                    loads.push(lane.to_owned());
                    let lane = LaneId(u32::from(lane.as_bytes()[0] - b'A'));
                    harness.finish_load(lane);
                }
                ["unload", lane] => {
                    harness.finish_stop(LaneId(u32::from(lane.as_bytes()[0] - b'A')))
                }
                ["grant", ticket, _] => served.push(ticket.parse::<u64>().unwrap()),
                _ => {}
            }
        }
        let running: Vec<u64> = harness.leases.keys().copied().collect();
        harness.advance_to(harness.now + s(1));
        running.into_iter().for_each(|ticket| harness.release(ticket));
    }
    assert_eq!(loads, ["A", "B", "C"], "each lane is loaded once, not once per request");
}

#[test]
fn overdue_request_overrides_min_residency_and_hints() {
    let mut harness = DispatcherHarness::new(
        vec![setup(1, 0, 20); 2],
        30,
        Rules { min_residency: 100_000, ..rules() },
    );
    harness.arrive(A);
    harness.finish_load(A);
    harness.on(Event::Hinted { lane: A, hint: Some(LaneHint::Keep), until: s(100_000) });
    harness.advance_to(s(60));
    harness.arrive(B);
    let arrived_at = harness.now;
    // A always has more urgent requests.
    while harness.dispatcher.engine_state(A) == Some(EngineState::Ready) {
        assert!(harness.now < arrived_at + s(130), "B starves");
        harness.arrive_with(A, |enqueue| enqueue.priority = 50);
        harness.advance_to(harness.now + s(1));
        let running: Vec<u64> = harness.leases.keys().copied().collect();
        running.into_iter().for_each(|ticket| harness.release(ticket));
    }
    assert!(harness.now >= arrived_at + s(120));
    harness.finish_stop(A);
    harness.finish_load(B);
    assert!(harness.take_log().iter().any(|line| line.ends_with("overdue")));
}

#[test]
fn switching_advice_limits_which_lanes_are_evicted() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    let busy = harness.arrive(A);
    harness.finish_load(A);
    harness.take_log();
    harness.arrive_with(B, |enqueue| enqueue.switching = Switching::Never);
    assert_eq!(harness.take_log(), ["reject 2: not-loaded"]);
    harness.arrive_with(B, |enqueue| enqueue.switching = Switching::WhenIdle);
    harness.advance_to(s(600));
    assert_eq!(harness.take_log(), Vec::<String>::new(), "A is busy, although with nothing new");
    harness.release(busy);
    harness.advance_to(s(603));
    assert_eq!(harness.take_log(), ["unload A"]);
}

#[test]
fn switch_without_demand_is_cancelled() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    harness.arrive(A);
    harness.finish_load(A);
    let cancelled = harness.arrive(B);
    harness.advance_to(s(200));
    assert_eq!(harness.state(A), LaneState::Draining);
    let waiting = harness.arrive(A);
    harness.take_log();
    harness.on(Event::Cancelled(Ticket(cancelled)));
    assert_eq!(harness.take_log(), [format!("grant {waiting} A")], "A is kept and serves at once");
    assert_eq!(harness.state(B), LaneState::Unloaded);
}

#[test]
fn leases_are_aborted_after_the_drain_timeout() {
    let mut harness = DispatcherHarness::new(
        vec![setup(1, 0, 20); 2],
        30,
        Rules { drain_timeout: Some(s(30)), ..rules() },
    );
    let endless = harness.arrive(A);
    harness.finish_load(A);
    harness.arrive(B);
    harness.advance_to(s(86));
    harness.take_log();
    harness.advance_to(s(140));
    assert_eq!(harness.take_log(), ["abort A"], "once; A is only unloaded without leases");
    harness.release(endless);
    assert_eq!(harness.take_log(), ["unload A"]);
}

#[test]
fn sleeping_engine_holds_memory_until_it_is_needed() {
    let asleep = |mut setup: LaneSetup| {
        setup.asleep = 12 * GIB;
        setup
    };
    let mut harness = DispatcherHarness::new(
        vec![asleep(setup(1, 0, 20)), setup(1, 0, 18), setup(1, 0, 30)],
        32,
        rules(),
    );
    let first = harness.arrive(A);
    harness.finish_load(A);
    harness.release(first);
    harness.advance_to(s(100));
    harness.arrive(B);
    harness.engine_event(A, EngineEvent::Stopped { asleep: true });
    assert_eq!(harness.dispatcher.memory_by_group().next(), Some(30 * GIB));
    harness.finish_load(B);
    harness.release(2);
    harness.advance_to(s(200));
    harness.take_log();
    harness.arrive(C);
    assert_eq!(harness.take_log(), ["unload A fully", "unload B"]);
}

#[test]
fn always_on_lane_is_never_evicted_and_keeps_its_memory_reserved() {
    let always = LaneSetup { residency: Residency::Always, ..setup(1, 0, 20) };
    let mut harness = DispatcherHarness::new(vec![always, setup(1, 0, 20)], 30, rules());
    assert_eq!(harness.take_log(), ["load A"]);
    harness.finish_load(A);
    harness.arrive(B);
    harness.advance_to(s(900));
    harness.engine_event(A, EngineEvent::Lost("killed".into()));
    harness.advance_to(s(999));
    assert_eq!(
        harness.take_log(),
        ["switched to A 0+0+40", "load A"],
        "B does not take the memory of A meanwhile"
    );
}

#[test]
fn hint_loads_a_lane_but_evicts_only_released_lanes() {
    let mut harness = DispatcherHarness::new(
        vec![setup(1, 0, 10), setup(1, 0, 20), setup(1, 0, 20)],
        30,
        rules(),
    );
    let hint = |lane, hint| Event::Hinted { lane, hint: Some(hint), until: s(10_000) };
    harness.on(hint(B, LaneHint::Load));
    assert_eq!(harness.take_log(), ["load B"]);
    harness.finish_load(B);
    harness.on(hint(C, LaneHint::Load));
    harness.advance_to(s(1000));
    harness.take_log();
    assert_eq!(
        harness.state(C),
        LaneState::Unloaded,
        "memory is full, and a hint does not evict a lane"
    );
    harness.on(hint(B, LaneHint::Release));
    harness.on(Event::Hinted { lane: A, hint: None, until: s(0) });
    assert_eq!(harness.take_log(), ["unload B"]);
}

#[test]
fn unused_lane_is_unloaded_after_its_idle_time() {
    let mut lane = setup(1, 0, 10);
    lane.residency = Residency::OnDemand { preload: true, unload_after: Some(s(300)) };
    let mut harness = DispatcherHarness::new(vec![lane], 30, rules());
    harness.finish_load(A);
    let ticket = harness.arrive(A);
    harness.advance_to(s(900));
    harness.release(ticket);
    harness.take_log();
    harness.advance_to(s(1199));
    assert_eq!(harness.take_log(), Vec::<String>::new());
    harness.advance_to(s(1201));
    assert_eq!(harness.take_log(), ["unload A"]);
}

/// An engine that an earlier host has left counts as loading from the beginning: it holds its
/// memory, is not loaded again, and serves once its supervisor says so.
#[test]
fn engine_of_an_earlier_host_is_adopted() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    harness.dispatcher.adopt(A);
    harness.on(Event::Tick);
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Starting));
    assert_eq!(harness.dispatcher.memory_by_group().next(), Some(20 * GIB));
    let ticket = harness.arrive(A);
    assert!(harness.take_log().is_empty());
    harness.engine_event(A, EngineEvent::Ready);
    assert_eq!(harness.take_log(), ["grant 1 A"]);
    harness.release(ticket);
    // How long a real load takes is still not known.
    assert_eq!(harness.dispatcher.lanes[A.index()].load.estimate(), s(40));
}
