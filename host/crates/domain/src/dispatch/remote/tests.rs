use super::*;
use crate::dispatch::tests::{rules, s, setup};
use crate::dispatch::{
    AcquireError, Effect, EngineEvent, Enqueue, Event, FlowId, GroupSetup, LaneSetup, Ticket,
};

const LANE: LaneId = LaneId(0);

fn remote(state: LaneState) -> RemoteLane {
    RemoteLane {
        state,
        slots: 3,
        est_wait: Duration::ZERO,
        ready_in: Duration::ZERO,
        displaces: 0,
        silent: None,
    }
}

fn dispatcher(remote: RemoteLane) -> Dispatcher {
    let lane = LaneSetup { residency: Residency::External, ..setup(1, 0, 0) };
    let mut dispatcher = Dispatcher::new(vec![lane], &[GroupSetup::ALONE], rules());
    let mut effects = Vec::new();
    for event in [
        Event::Remote { lane: LANE, remote },
        Event::Engine { lane: LANE, news: EngineEvent::Ready },
    ] {
        dispatcher.on(event, Duration::ZERO, &mut effects);
    }
    assert!(effects.is_empty());
    dispatcher
}

fn request(ticket: u64, has_fallback: bool, switching: Switching) -> Enqueue {
    Enqueue {
        ticket: Ticket(ticket),
        lane: LANE,
        priority: 0,
        flow: FlowId(0),
        weight: 1,
        deadline: s(60),
        switching,
        has_fallback,
        has_begun: false,
    }
}

/// Returns the error of a request; `None` if it has a slot.
fn arrive(dispatcher: &mut Dispatcher, request: Enqueue) -> Option<AcquireError> {
    let mut effects = Vec::new();
    dispatcher.on(Event::Arrived(request), Duration::ZERO, &mut effects);
    match effects.pop() {
        Some(Effect::Grant { .. }) => None,
        Some(Effect::Reject { refusal, .. }) => Some(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lane_that_another_host_has_not_loaded_gets_requests() {
    let unloaded = RemoteLane { ready_in: s(20), displaces: 4, ..remote(LaneState::Unloaded) };
    let mut dispatcher = dispatcher(unloaded);
    let stat = dispatcher.stats(Duration::ZERO)[0];
    assert_eq!((stat.state, stat.ready_in_ms, stat.displaces), (LaneState::Unloaded, 20_000, 4));
    for ticket in 0..3 {
        let request = request(ticket, false, Switching::Allow);
        assert_eq!(arrive(&mut dispatcher, request), None, "as many as may be there");
    }
    let mut effects = Vec::new();
    let fourth = Event::Arrived(request(3, false, Switching::Allow));
    dispatcher.on(fourth, Duration::ZERO, &mut effects);
    assert_eq!((effects.len(), dispatcher.queued()), (0, 1));
    let more = RemoteLane { slots: 4, ..unloaded };
    dispatcher.on(Event::Remote { lane: LANE, remote: more }, s(1), &mut effects);
    assert!(matches!(effects[..], [Effect::Grant { ticket: Ticket(3), .. }]), "{effects:?}");
}

#[test]
fn requests_do_not_wait_there_in_vain() {
    let unloaded = RemoteLane { ready_in: s(90), ..remote(LaneState::Unloaded) };
    let mut dispatcher = dispatcher(unloaded);
    let never = request(0, false, Switching::Never);
    assert_eq!(arrive(&mut dispatcher, never), Some(AcquireError::NotLoaded));
    let late = arrive(&mut dispatcher, request(1, true, Switching::Allow));
    assert_eq!(late, Some(AcquireError::DeadlineTooEarly { estimate: s(90) }));
    assert_eq!(arrive(&mut dispatcher, request(2, false, Switching::Allow)), None);
}

#[test]
fn silent_host_gets_only_requests_without_a_fallback() {
    let silent = RemoteLane { silent: Some(s(4)), ..remote(LaneState::Ready) };
    let mut dispatcher = dispatcher(silent);
    let stat = dispatcher.stats(Duration::ZERO)[0];
    assert_eq!((stat.state, stat.ready_in_ms), (LaneState::Degraded, 4000));
    let refused = arrive(&mut dispatcher, request(0, true, Switching::Allow));
    assert_eq!(refused, Some(AcquireError::CircuitOpen { retry_in: s(4) }));
    assert_eq!(arrive(&mut dispatcher, request(1, false, Switching::Allow)), None);
}

#[test]
fn lane_of_this_host_is_not_changed() {
    let mut dispatcher = Dispatcher::new(vec![setup(1, 0, 1)], &[GroupSetup::ALONE], rules());
    let before = dispatcher.stats(Duration::ZERO);
    let event = Event::Remote { lane: LANE, remote: remote(LaneState::Ready) };
    dispatcher.on(event, Duration::ZERO, &mut Vec::new());
    assert_eq!(dispatcher.stats(Duration::ZERO), before);
}
