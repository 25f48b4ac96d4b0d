//! Lanes that take turns, by example.

use super::*;

#[test]
fn lanes_that_fit_together_stay_loaded_together() {
    let mut desk = Desk::new(vec![setup(1, 0, 10), setup(1, 0, 15), setup(1, 0, 20)], 30, rules());
    desk.arrive(A);
    desk.arrive(B);
    assert_eq!(desk.wants(), ["load A", "load B"]);
    desk.up(A);
    desk.up(B);
    assert_eq!(
        desk.wants(),
        ["switched to A 0+0+40", "grant 1 A", "switched to B 0+0+80", "grant 2 B"]
    );
    assert_eq!(desk.dispatcher.group_memory(C), Some((25 * GIB, 30 * GIB)));
}

#[test]
fn an_idle_lane_goes_at_once_and_a_busy_one_after_its_residence() {
    let mut desk = Desk::turns(2);
    let first = desk.arrive(A);
    desk.up(A);
    desk.release(first);
    desk.at(s(50));
    desk.wants();
    let second = desk.arrive(B);
    assert_eq!(desk.wants(), ["unload A"], "A was idle for longer than it lingers");
    desk.stopped(A);
    desk.up(B);
    assert_eq!(desk.wants(), ["load B", "switched to B 0+0+40", "grant 2 B"]);
    // B has work; A has to wait for the residence of B: what loading A and stopping B costs.
    let third = desk.arrive(A);
    desk.at(desk.now + s(39));
    assert_eq!(desk.wants(), Vec::<String>::new());
    desk.at(desk.now + s(7));
    let late = desk.arrive(B);
    assert_eq!(desk.wants(), Vec::<String>::new(), "B takes nothing new, and still has a lease");
    desk.release(second);
    assert_eq!(desk.wants(), ["unload B"]);
    desk.stopped(B);
    desk.up(A);
    assert_eq!(desk.wants()[..2], ["load A", "switched to A 1+0+40"]);
    assert!(desk.leases.contains_key(&third) && !desk.leases.contains_key(&late));
}

#[test]
fn requests_are_collated_by_lane() {
    let mut desk = Desk::turns(3);
    let tickets: Vec<u64> = (0..12).map(|n| desk.arrive([A, B, C][n % 3])).collect();
    let mut loads = Vec::new();
    let mut served = Vec::new();
    while served.len() < tickets.len() {
        for line in desk.wants() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["load", lane] => {
                    loads.push(lane.to_owned());
                    let lane = LaneId(u32::from(lane.as_bytes()[0] - b'A'));
                    desk.up(lane);
                }
                ["unload", lane] => desk.stopped(LaneId(u32::from(lane.as_bytes()[0] - b'A'))),
                ["grant", ticket, _] => served.push(ticket.parse::<u64>().unwrap()),
                _ => {}
            }
        }
        let running: Vec<u64> = desk.leases.keys().copied().collect();
        desk.at(desk.now + s(1));
        running.into_iter().for_each(|ticket| desk.release(ticket));
    }
    assert_eq!(loads, ["A", "B", "C"], "not one switch for each request");
}

#[test]
fn whoever_waited_too_long_overrides_residence_and_wishes() {
    let mut desk =
        Desk::new(vec![setup(1, 0, 20); 2], 30, Rules { min_residency: 100_000, ..rules() });
    desk.arrive(A);
    desk.up(A);
    desk.on(Event::Hinted { lane: A, hint: Some(LaneHint::Keep), until: s(100_000) });
    desk.at(s(60));
    desk.arrive(B);
    let asked = desk.now;
    // A always has work that is more urgent.
    while desk.dispatcher.engine_state(A) == Some(EngineState::Ready) {
        assert!(desk.now < asked + s(130), "B starves");
        desk.arrive_as(A, |arrival| arrival.priority = 50);
        desk.at(desk.now + s(1));
        let running: Vec<u64> = desk.leases.keys().copied().collect();
        running.into_iter().for_each(|ticket| desk.release(ticket));
    }
    assert!(desk.now >= asked + s(120));
    desk.stopped(A);
    desk.up(B);
    assert!(desk.wants().iter().any(|line| line.ends_with("overdue")));
}

#[test]
fn what_a_request_allows_decides_whom_it_displaces() {
    let mut desk = Desk::turns(2);
    let busy = desk.arrive(A);
    desk.up(A);
    desk.wants();
    desk.arrive_as(B, |arrival| arrival.switching = Switching::Never);
    assert_eq!(
        desk.wants(),
        ["refuse 2: the lane is not loaded, and nothing may be loaded for this request"]
    );
    desk.arrive_as(B, |arrival| arrival.switching = Switching::WhenIdle);
    desk.at(s(600));
    assert_eq!(desk.wants(), Vec::<String>::new(), "A has work, if nothing new");
    desk.release(busy);
    desk.at(s(603));
    assert_eq!(desk.wants(), ["unload A"]);
}

#[test]
fn a_switch_that_nobody_wants_any_more_is_given_up() {
    let mut desk = Desk::turns(2);
    desk.arrive(A);
    desk.up(A);
    let gone = desk.arrive(B);
    desk.at(s(200));
    assert_eq!(desk.state(A), LaneState::Draining);
    let waits = desk.arrive(A);
    desk.wants();
    desk.on(Event::Cancelled(Ticket(gone)));
    assert_eq!(desk.wants(), [format!("grant {waits} A")], "A is kept, and serves at once");
    assert_eq!(desk.state(B), LaneState::Unloaded);
}

#[test]
fn a_lane_that_drains_for_too_long_is_cut_if_the_rules_say_so() {
    let mut desk =
        Desk::new(vec![setup(1, 0, 20); 2], 30, Rules { drain_timeout: Some(s(30)), ..rules() });
    let endless = desk.arrive(A);
    desk.up(A);
    desk.arrive(B);
    desk.at(s(86));
    desk.wants();
    desk.at(s(140));
    assert_eq!(desk.wants(), ["cut A"], "once, and unloaded only without leases");
    desk.release(endless);
    assert_eq!(desk.wants(), ["unload A"]);
}

#[test]
fn sleepers_hold_memory_until_it_is_needed() {
    let asleep = |mut setup: LaneSetup| {
        setup.asleep = 12 * GIB;
        setup
    };
    let mut desk =
        Desk::new(vec![asleep(setup(1, 0, 20)), setup(1, 0, 18), setup(1, 0, 30)], 32, rules());
    let first = desk.arrive(A);
    desk.up(A);
    desk.release(first);
    desk.at(s(100));
    desk.arrive(B);
    desk.engine(A, EngineEvent::Stopped { asleep: true });
    assert_eq!(desk.dispatcher.group_memory(A), Some((30 * GIB, 32 * GIB)));
    desk.up(B);
    desk.release(2);
    desk.at(s(200));
    desk.wants();
    desk.arrive(C);
    assert_eq!(desk.wants(), ["unload A fully", "unload B"]);
}

#[test]
fn a_lane_that_is_always_loaded_is_no_victim_and_has_its_place_kept() {
    let always = LaneSetup { residency: Residency::Always, ..setup(1, 0, 20) };
    let mut desk = Desk::new(vec![always, setup(1, 0, 20)], 30, rules());
    assert_eq!(desk.wants(), ["load A"]);
    desk.up(A);
    desk.arrive(B);
    desk.at(s(900));
    desk.engine(A, EngineEvent::Lost("killed".into()));
    desk.at(s(999));
    assert_eq!(
        desk.wants(),
        ["switched to A 0+0+40", "load A"],
        "B does not take the room of A meanwhile"
    );
}

#[test]
fn policies_wish_for_lanes() {
    let mut desk = Desk::new(vec![setup(1, 0, 10), setup(1, 0, 20), setup(1, 0, 20)], 30, rules());
    let hint = |lane, hint| Event::Hinted { lane, hint: Some(hint), until: s(10_000) };
    desk.on(hint(B, LaneHint::Load));
    assert_eq!(desk.wants(), ["load B"]);
    desk.up(B);
    desk.on(hint(C, LaneHint::Load));
    desk.at(s(1000));
    desk.wants();
    assert_eq!(
        desk.state(C),
        LaneState::Unloaded,
        "there is no room, and nobody may be displaced for a wish"
    );
    desk.on(hint(B, LaneHint::Release));
    desk.on(Event::Hinted { lane: A, hint: None, until: s(0) });
    assert_eq!(desk.wants(), ["unload B"]);
}

#[test]
fn an_unused_lane_is_unloaded_after_its_time() {
    let mut lane = setup(1, 0, 10);
    lane.residency = Residency::OnDemand { preload: true, unload_after: Some(s(300)) };
    let mut desk = Desk::new(vec![lane], 30, rules());
    desk.up(A);
    let ticket = desk.arrive(A);
    desk.at(s(900));
    desk.release(ticket);
    desk.wants();
    desk.at(s(1199));
    assert_eq!(desk.wants(), Vec::<String>::new());
    desk.at(s(1201));
    assert_eq!(desk.wants(), ["unload A"]);
}
