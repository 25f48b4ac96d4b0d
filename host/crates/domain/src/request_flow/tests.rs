mod invariants;

use super::*;
use crate::advice::{
    FallbackStep, Note, OnTimeout, Rejection, Scalar, Switching, Trigger, Triggers,
};
use crate::fleet_view::{EngineKind, LaneInfo, LaneState, Topology};
use crate::plan::{Plan, Step};
use crate::policy_ref::PolicyRef;

const DEADLINE: Duration = Duration::from_secs(100);
const LANE_LIMIT: Duration = Duration::from_secs(60);
const LIMITS: PlanLimits = PlanLimits { max_wait: Duration::from_secs(50), max_steps: 3 };

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn plan(lanes: &[u32]) -> Plan {
    Plan {
        steps: lanes
            .iter()
            .map(|lane| Step { lane: LaneId(*lane), edits: Vec::new(), context: 0 })
            .collect(),
        on: Triggers::ALL,
        priority: 0,
        flow: None,
        max_wait: LIMITS.max_wait,
        on_timeout: OnTimeout::FallBack,
        first_token: None,
        switching: Switching::Allow,
    }
}

/// Returns a fleet whose last lane is down.
fn fleet(lanes: usize) -> FleetView {
    let info = |index: usize| LaneInfo {
        id: LaneId(0),
        name: format!("lane-{index}"),
        engine: EngineKind::Other,
        models: vec!["m".into()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: crate::EndpointSet::all(),
        slots: 1,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    };
    let topology = Topology::new(1, (0..lanes).map(info).collect());
    let mut fleet = FleetView::idle(topology.into(), LaneState::Ready);
    if let Some(last) = fleet.stats_mut().last_mut() {
        last.state = LaneState::Down;
    }
    fleet
}

/// The policy that decides what follows a failed attempt.
fn decider() -> PolicyRef {
    PolicyRef::new("decider", "1")
}

fn decided_by_policy(recovery: Recovery) -> Recovered {
    Recovered { recovery, by: Some(decider()) }
}

fn retry(lane: u32) -> Recovery {
    Recovery::Retry(FallbackStep { lane: LaneId(lane), edits: Vec::new() })
}

fn decided(plan: Plan, has_recovery: bool) -> Event<'static> {
    Event::Decided { decision: Decision::Route(plan), has_recovery }
}

fn granted(is_streaming: bool) -> Event<'static> {
    Event::Granted { first_byte_timeout: LANE_LIMIT, is_streaming }
}

/// Returns a flow that waits for the first lane of a plan.
fn queued(plan: Plan, has_recovery: bool) -> RequestFlow {
    let mut flow = RequestFlow::new(Deadline::new(DEADLINE), &LIMITS);
    let effects =
        flow.on(Event::Accepted { tenant: Some("acme"), share: QueueShare::default() }, ms(1));
    assert_eq!(effects.action, Action::Advise);
    let lane = plan.steps[0].lane;
    let effects = flow.on(decided(plan, has_recovery), ms(2));
    let Action::Acquire(request) = effects.action else { panic!("{effects:?}") };
    assert_eq!((request.lane, request.flow), (lane, FlowId::from_name("acme")));
    flow
}

fn subject() -> OutcomeSubject {
    OutcomeSubject {
        request_id: "id".into(),
        tenant: None,
        model: "m".into(),
        topology: 1,
        prompt_tokens: 7,
        notes: vec![(decider(), note())],
    }
}

fn note() -> Note {
    Note { key: "session".to_owned(), value: Scalar::Int(7) }
}

/// Returns the lane of the next attempt.
#[track_caller]
fn acquires(effects: &Effects) -> u32 {
    match &effects.action {
        Action::Acquire(request) => request.lane.0,
        _ => panic!("{effects:?}"),
    }
}

#[track_caller]
fn end(effects: Effects) -> End {
    match effects.action {
        Action::End(end) => end,
        _ => panic!("{effects:?}"),
    }
}

#[test]
fn share_of_the_key_bounds_priorities_also_for_retries_and_flows_of_policies() {
    let share = QueueShare { weight: 3, priority: (-10, 5) };
    for (advised, expected) in [(9, 5), (i32::MAX, 5), (5, 5), (0, 0), (-99, -10)] {
        let mut flow = RequestFlow::new(Deadline::new(DEADLINE), &LIMITS);
        drop(flow.on(Event::Accepted { tenant: Some("acme"), share }, ms(1)));
        let plan = Plan { priority: advised, flow: Some("urgent".into()), ..plan(&[0, 1]) };
        let mut effects = flow.on(decided(plan, true), ms(2));
        for lane in [0, 1] {
            let Action::Acquire(request) = effects.action else { panic!("{effects:?}") };
            let flow_of_policy = FlowId::from_name("urgent");
            assert_eq!((request.lane, request.flow), (LaneId(lane), flow_of_policy));
            assert_eq!((request.priority, request.weight), (expected, 3));
            drop(flow.on(granted(true), ms(3)));
            drop(flow.on(Event::Failed(EngineFailure::Broken), ms(4)));
            let (fleet, endpoint) = (&fleet(3), Endpoint::ChatCompletions);
            let recovered = decided_by_policy(retry(1));
            effects = flow.on(Event::Recovered { recovered, fleet, endpoint }, ms(5));
        }
    }
}

#[test]
fn outcome_of_a_fallback_has_times_and_tokens_of_all_attempts() {
    let mut flow = queued(plan(&[0, 1]), false);
    assert_eq!(flow.outcome(subject()), None);
    assert_eq!(flow.on(granted(true), ms(12)).action, Action::Send { timeout: LANE_LIMIT });
    let effects = flow.on(Event::Failed(EngineFailure::Broken), ms(20));
    assert_eq!(effects.release, Some(Release::Lease(LeaseEnd { failed: true, severed: true })));
    assert_eq!(acquires(&effects), 1);
    drop(flow.on(granted(true), ms(25)));
    assert_eq!(flow.on(Event::FirstByte { status: 200 }, ms(40)).action, Action::Respond);
    let counts = TokenCounts { prompt: 0, cached: 3, output: 9 };
    drop(flow.on(Event::Usage(counts), ms(50)));
    let effects = flow.on(Event::Completed, ms(60));
    assert_eq!(effects.release, Some(Release::Lease(LeaseEnd::default())));
    let (result, last) = (RequestResult::FellBack, AttemptResult::Ok);
    assert_eq!(end(effects), End { result, last, answer: None });
    let outcome = flow.outcome(subject()).unwrap();
    assert_eq!(outcome.attempts, flow.attempts().copied().collect::<Vec<_>>());
    assert_eq!(outcome.notes, [(decider(), note())]);
    assert_eq!((outcome.lane, outcome.tries, outcome.ended), (LaneId(1), 2, AttemptResult::Ok));
    assert_eq!((outcome.queue, outcome.ttft, outcome.total), (ms(15), ms(40), ms(60)));
    let tokens = (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens);
    assert_eq!(tokens, (7, 3, 9));
    let attempts: Vec<Attempt> = flow.attempts().copied().collect();
    let failed = Attempt { result: AttemptResult::ServerError, ..Attempt::new(LaneId(0), ms(2)) };
    let served = Attempt { status: 200, ..Attempt::new(LaneId(1), ms(20)) };
    let served = Attempt { result: AttemptResult::Ok, queue: ms(5), took: ms(40), ..served };
    assert_eq!(attempts, [Attempt { queue: ms(10), took: ms(18), ..failed }, served]);
}

#[test]
fn only_streams_are_limited_to_their_first_token() {
    for (is_streaming, age, expected) in [
        (true, 2, ms(500)),
        // Any other response is computed before its first byte: the deadline is its only limit.
        (false, 2, ms(99_998)),
        (false, 99_990, ms(10)),
        (true, 200_000, ms(0)),
    ] {
        let mut flow = queued(Plan { first_token: Some(ms(500)), ..plan(&[0]) }, false);
        let effects = flow.on(granted(is_streaming), ms(age));
        assert_eq!(effects.action, Action::Send { timeout: expected });
    }
}

#[test]
fn request_that_no_engine_supports_is_the_clients_failure() {
    let mut flow = queued(plan(&[0, 1]), true);
    drop(flow.on(granted(false), ms(12)));
    let effects = flow.on(Event::Failed(EngineFailure::Unsupported(501)), ms(20));
    assert_eq!(effects.release, Some(Release::Lease(LeaseEnd { failed: false, severed: false })));
    let (result, last) = (RequestResult::Error, AttemptResult::Other);
    assert_eq!(end(effects), End { result, last, answer: Some(ErrorAnswer::Failed) });
    assert_eq!(flow.attempts().last().unwrap().status, 501);
}

#[test]
fn declined_request_continues_or_gets_the_response_that_was_kept() {
    let declined = |status, reason| Event::Failed(EngineFailure::Declined { status, reason });
    let configured = Declined::Configured(Trigger::ServerError);
    for (status, reason, failed) in [
        (404, configured, false),
        (402, configured, true),
        (400, Declined::TooLong { max_context: 1000 }, false),
    ] {
        let mut plan = plan(&[0, 1]);
        plan.steps[1].context = 4000;
        let mut flow = queued(plan, false);
        drop(flow.on(granted(false), ms(3)));
        let effects = flow.on(declined(status, reason), ms(4));
        assert_eq!(effects.release, Some(Release::Lease(LeaseEnd { failed, severed: false })));
        assert_eq!(acquires(&effects), 1);
        drop(flow.on(granted(false), ms(5)));
        let effects = flow.on(declined(status, reason), ms(6));
        assert_eq!((effects.release, effects.action), (None, Action::Respond));
        assert_eq!(flow.ttft(), Some(ms(6)));
        let effects = flow.on(Event::Completed, ms(7));
        assert_eq!(effects.release, Some(Release::Lease(LeaseEnd::default())));
        let (result, last) = (RequestResult::Error, AttemptResult::Other);
        assert_eq!(end(effects), End { result, last, answer: None });
        assert_eq!(flow.attempts().last().unwrap().status, status);
    }
}

#[test]
fn policies_are_asked_about_a_configured_status_while_the_response_is_kept() {
    let reason = Declined::Configured(Trigger::Overloaded);
    let fleet = fleet(3);
    for (recovery, lane) in [(Recovery::Planned, None), (retry(1), Some(1))] {
        let mut flow = queued(plan(&[0]), true);
        drop(flow.on(granted(false), ms(3)));
        let effects =
            flow.on(Event::Failed(EngineFailure::Declined { status: 409, reason }), ms(4));
        assert_eq!(effects.release, None);
        let Action::Recover(report) = effects.action else { panic!("{effects:?}") };
        assert_eq!((report.what, report.status), (AttemptResult::Overloaded, 409));
        let effects = flow.on(
            Event::Recovered {
                recovered: decided_by_policy(recovery),
                fleet: &fleet,
                endpoint: Endpoint::ChatCompletions,
            },
            ms(5),
        );
        match lane {
            Some(lane) => {
                assert_eq!(effects.release, Some(Release::Lease(LeaseEnd::default())));
                assert_eq!(acquires(&effects), lane);
            }
            None => assert_eq!((effects.release, effects.action), (None, Action::Respond)),
        }
    }
}

#[test]
fn only_responses_and_client_errors_are_passed_on() {
    let passed = |status: &u16| !EngineFailure::is_failed_status(*status);
    let all = [101, 200, 204, 299, 301, 304, 307, 400, 404, 428, 429, 499, 500, 503, 600, 999];
    let passed: Vec<u16> = all.into_iter().filter(passed).collect();
    assert_eq!(passed, [200, 204, 299, 400, 404, 428, 499]);
}

#[test]
fn policies_decide_after_a_failed_attempt() {
    let fleet = fleet(3);
    let rejection = Rejection {
        status: 429,
        code: "later".into(),
        message: String::new(),
        retry_after_s: None,
    };
    let give_up = Recovery::GiveUp(rejection.clone());
    for (recovery, lane, ignored) in [
        (Recovery::Planned, Some(1), None),
        (retry(0), Some(0), None),
        (retry(2), Some(1), Some("the lane is down or unknown")),
        (give_up, None, None),
    ] {
        let mut flow = queued(plan(&[0, 1]), true);
        drop(flow.on(granted(false), ms(3)));
        let effects = flow.on(Event::Failed(EngineFailure::Status(503)), ms(10));
        let Action::Recover(report) = effects.action else { panic!("{effects:?}") };
        let what = AttemptResult::Overloaded;
        assert_eq!((report.what, report.status, report.elapsed), (what, 503, ms(8)));
        assert_eq!(report.attempts_left, 2);
        let effects = flow.on(
            Event::Recovered {
                recovered: decided_by_policy(recovery),
                fleet: &fleet,
                endpoint: Endpoint::ChatCompletions,
            },
            ms(11),
        );
        assert_eq!(effects.ignored_retry, ignored);
        match lane {
            Some(lane) => assert_eq!(acquires(&effects), lane),
            None => {
                let end = end(effects);
                assert_eq!((end.result, end.last), (RequestResult::Rejected, AttemptResult::Other));
                // The attempt keeps its own result.
                assert_eq!(flow.attempts().next().unwrap().result, what);
                let policy = Some(decider());
                let answer = ErrorAnswer::Rejected { policy, rejection: rejection.clone() };
                assert_eq!(end.answer, Some(answer));
            }
        }
    }
}

#[test]
fn unreached_lane_is_attempted_once_more() {
    let mut flow = queued(plan(&[0]), false);
    for is_last in [false, true] {
        drop(flow.on(granted(false), ms(3)));
        let effects = flow.on(Event::Failed(EngineFailure::Connect), ms(4));
        if is_last {
            let end = end(effects);
            assert_eq!(
                (end.last, end.answer),
                (AttemptResult::ConnectError, Some(ErrorAnswer::Failed))
            );
        } else {
            assert_eq!(acquires(&effects), 0);
        }
    }
}

#[test]
fn nothing_is_attempted_after_the_deadline() {
    let mut flow = queued(plan(&[0, 1]), true);
    let error = AcquireError::DeadlineTooEarly { estimate: ms(1) };
    let effects = flow.on(Event::Denied(&error), DEADLINE);
    let Action::Recover(report) = effects.action else { panic!("{effects:?}") };
    assert_eq!(report.attempts_left, 0);
    let recovered = Event::Recovered {
        recovered: decided_by_policy(retry(1)),
        fleet: &fleet(3),
        endpoint: Endpoint::ChatCompletions,
    };
    let effects = flow.on(recovered, DEADLINE);
    assert_eq!(effects.ignored_retry, Some("no attempts left"));
    let end = end(effects);
    assert_eq!((end.last, end.answer), (AttemptResult::QueueTimeout, Some(ErrorAnswer::Failed)));
}

#[test]
fn engine_responses_that_are_errors_end_the_request() {
    for (status, last, failed) in
        [(404, AttemptResult::Other, false), (302, AttemptResult::ServerError, true)]
    {
        let mut flow = queued(plan(&[0, 1]), true);
        drop(flow.on(granted(false), ms(3)));
        drop(flow.on(Event::FirstByte { status }, ms(4)));
        let effects = flow.on(Event::Completed, ms(5));
        assert_eq!(effects.release, Some(Release::Lease(LeaseEnd { failed, severed: false })));
        assert_eq!(end(effects), End { result: RequestResult::Error, last, answer: None });
    }
}

#[test]
fn end_in_the_middle_gives_back_what_the_request_holds() {
    let stages: [(&str, Option<Release>); 4] = [
        ("deciding", None),
        ("queued", Some(Release::Ticket)),
        ("sent", Some(Release::Lease(LeaseEnd::default()))),
        ("responding", Some(Release::Lease(LeaseEnd::default()))),
    ];
    for (stage, release) in stages {
        for event in [Event::ClientGone, Event::Stopping] {
            let mut flow = match stage {
                "deciding" => RequestFlow::new(Deadline::new(DEADLINE), &LIMITS),
                _ => queued(plan(&[0, 1]), true),
            };
            if matches!(stage, "sent" | "responding") {
                drop(flow.on(granted(true), ms(3)));
            }
            if stage == "responding" {
                drop(flow.on(Event::FirstByte { status: 200 }, ms(4)));
            }
            let is_client = matches!(event, Event::ClientGone);
            let effects = flow.on(event, ms(9));
            assert_eq!(effects.release, release, "{stage}");
            let end = end(effects);
            let expected = match is_client {
                true => (RequestResult::ClientGone, AttemptResult::ClientGone),
                false => (RequestResult::Error, AttemptResult::Other),
            };
            assert_eq!((end.result, end.last), expected, "{stage}");
            let is_answered = is_client || stage == "responding";
            assert_eq!(end.answer, (!is_answered).then_some(ErrorAnswer::Stopping), "{stage}");
            if stage == "queued" {
                assert_eq!(flow.outcome(subject()).unwrap().queue, ms(7));
            }
        }
    }
}
