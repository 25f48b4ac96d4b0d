//! Simulations whose outcome can be worked out by hand, and invariants of arbitrary ones.

mod arbitrary;

use std::collections::BTreeMap;

use pointsman_domain::dispatch::{
    Backoff, GroupSetup, LaneSetup, QueueLimits, Residency, Rules, SwitchReport,
};
use pointsman_domain::{AttemptResult, BuiltIn, EngineKind, LaneInfo, PlanLimits, PolicyRef};

use super::*;
use crate::fault::{FaultKind, Schedule};
use crate::fleet::{EngineModel, Lane, ServiceModel};
use crate::observe::{FinishedRequest, RequestResult};
use crate::random::Distribution;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn request(at: Duration, model: &str) -> SimRequest {
    SimRequest { prompt_tokens: 50, output_tokens: 30, ..SimRequest::plain(at, model) }
}

/// A fixed list of requests, each followed by a number of further turns.
#[derive(Default)]
struct FixedTraffic {
    requests: VecDeque<SimRequest>,
    follow_ups: u32,
}

impl FixedTraffic {
    fn new(requests: impl IntoIterator<Item = SimRequest>) -> Self {
        Self { requests: requests.into_iter().collect(), follow_ups: 0 }
    }
}

impl Traffic for FixedTraffic {
    fn classes(&self) -> &[String] {
        &[]
    }

    fn next(&mut self) -> Option<SimRequest> {
        self.requests.pop_front()
    }

    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        (request.turn < self.follow_ups).then(|| SimRequest {
            at: ended_at + s(1),
            turn: request.turn + 1,
            ..request.clone()
        })
    }
}

/// The end of a request.
struct End {
    tenant: Option<Arc<str>>,
    at: Duration,
    result: RequestResult,
    wait: Duration,
    first_byte: Option<Duration>,
    attempts: Vec<AttemptResult>,
    reason: Option<String>,
}

/// An observer that records all events.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ends: Vec<End>,
    switches: usize,
    loads: usize,
    last: Duration,
}

impl Log {
    fn line(&mut self, at: Duration, line: String) {
        assert!(at >= self.last, "time goes back: {line}");
        self.last = at;
        self.lines.push(format!("{} {line}", at.as_micros()));
    }

    /// Returns the end of each request as seconds and result.
    fn ends_in_s(&self) -> Vec<(u64, RequestResult)> {
        self.ends.iter().map(|end| (end.at.as_secs(), end.result)).collect()
    }

    /// Returns the end of each request as milliseconds and result.
    fn ends_in_ms(&self) -> Vec<(u128, RequestResult)> {
        self.ends.iter().map(|end| (end.at.as_millis(), end.result)).collect()
    }
}

impl Observer for Log {
    fn decided(&mut self, request: &SimRequest, first: Option<LaneId>, by: &[PolicyRef]) {
        self.line(self.last.max(request.at), format!("decided {first:?} {by:?}"));
    }

    fn granted(&mut self, at: Duration, _: &SimRequest, lane: LaneId) {
        self.line(at, format!("granted {lane}"));
    }

    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        self.ends.push(End {
            tenant: ended.request.tenant.clone(),
            at: ended.at,
            result: ended.result,
            wait: ended.wait,
            first_byte: ended.first_byte,
            attempts: ended.attempts.iter().map(|attempt| attempt.result).collect(),
            reason: ended.reason.map(str::to_owned),
        });
        self.line(ended.at, format!("{ended:?}"));
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        self.loads += usize::from(state == EngineState::Starting);
        self.line(at, format!("engine {lane} {}", state.label()));
    }

    fn load(&mut self, at: Duration, lane: LaneId, waiting: usize, running: u32) {
        self.line(at, format!("load {lane} {waiting} {running}"));
    }

    fn switched(&mut self, at: Duration, report: &SwitchReport) {
        self.switches += 1;
        self.line(at, format!("{report:?}"));
    }
}

/// Returns a lane that loads in 40 s, stops in 5 s and serves a request in 4 s.
fn lane(name: &str, models: &[&str]) -> Lane {
    Lane {
        info: LaneInfo {
            id: LaneId(0),
            name: name.to_owned(),
            engine: EngineKind::Vllm,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            names: Default::default(),
            labels: Vec::new(),
            max_context: 0,
            endpoints: pointsman_domain::EndpointSet::all(),
            slots: 8,
            group: 1,
            cost_milli: 0,
            is_peer: false,
        },
        setup: LaneSetup {
            slots: 8,
            group: 0,
            need: 20,
            asleep: 0,
            residency: Residency::OnDemand { preload: false, unload_after: None },
            expected_load: s(40),
            backoff: Backoff {
                first: s(1),
                most: s(60),
                reset_after: s(60),
                max_failures: 3,
                retry_failed_after: s(600),
            },
        },
        first_byte_timeout: s(300),
        engine: EngineModel {
            load_time: Distribution::Fixed(40.0),
            stop_time: Distribution::Fixed(5.0),
            service: ServiceModel::Fixed {
                first_token: Distribution::Fixed(1.0),
                rest: Distribution::Fixed(3.0),
                use_recorded: false,
            },
            kv_tokens: None,
            prefix_cache: false,
            hang_detection_time: s(30),
        },
    }
}

fn fleet(lanes: Vec<Lane>) -> Fleet {
    Fleet {
        lanes,
        groups: vec![GroupSetup { budget: 30 }],
        rules: Rules { queue: QueueLimits { per_lane: 1000, total: 1000 }, ..Rules::default() },
        limits: PlanLimits { max_wait: s(1_000_000), max_steps: 8 },
        guards: Default::default(),
        deadline: s(1_000_000),
        weights: Default::default(),
    }
}

fn simulate(
    fleet: &Fleet,
    faults: &[InjectedFault],
    requests: impl IntoIterator<Item = SimRequest>,
) -> (Totals, Log) {
    let config = RunConfig { fleet, faults, start_ms: 1_767_571_200_000, seed: 1 };
    let mut log = Log::default();
    let mut traffic = FixedTraffic::new(requests);
    let totals = run(&config, &mut BuiltIn, &mut traffic, &mut log);
    assert_eq!((totals.in_flight(), totals.accepted), (0, log.ends.len() as u64));
    (totals, log)
}

fn fault_at(lane: u32, kind: FaultKind, at: Duration) -> Vec<InjectedFault> {
    vec![InjectedFault { lanes: vec![LaneId(lane)], kind, schedule: Schedule::At(vec![at]) }]
}

#[test]
fn three_lanes_switch_like_in_the_dispatcher_benchmark() {
    let names = ["orchestrator", "coder", "fast_rag"];
    let fleet = fleet(names.iter().map(|name| lane(name, &[name])).collect());
    let requests = (0..300).map(|index| request(s(index), names[index as usize % 3]));
    let (totals, log) = simulate(&fleet, &[], requests);
    let max_wait = log.ends.iter().map(|end| end.wait).max();
    assert_eq!(
        (totals.answered, log.loads, totals.ended_at, max_wait),
        (300, 6, s(475), Some(s(234)))
    );
}

#[test]
fn crash_fails_the_attempt_before_the_first_byte_and_the_request_after_it() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let requests =
        [request(s(0), "m"), request(s(44), "m"), request(s(45), "m"), request(s(46), "m")];
    // Ready at 40 s. At 45.5 s the first request is done, the second one has its first byte, and
    // the third one does not.
    let crash = fault_at(0, FaultKind::Crash, Duration::from_millis(45_500));
    let (totals, log) = simulate(&fleet, &crash, requests);
    assert_eq!((totals.answered, totals.errors), (2, 2));
    // After a backoff of one second and a load of 40 s the last one is served.
    let expected = [
        (44_000, RequestResult::Answered),
        (45_500, RequestResult::Error),
        (45_500, RequestResult::Error),
        (90_500, RequestResult::Answered),
    ];
    assert_eq!(log.ends_in_ms(), expected);
    assert_eq!(log.ends[1].first_byte, Some(s(1)));
    let third = &log.ends[2];
    assert_eq!((third.first_byte, &third.attempts[..]), (None, &[AttemptResult::ServerError][..]));
}

#[test]
fn requests_fall_back_when_an_engine_crashes() {
    let other = LaneSetup { group: 9, ..lane("b", &[]).setup };
    let fleet = fleet(vec![lane("a", &["m"]), Lane { setup: other, ..lane("b", &["m"]) }]);
    let requests =
        [request(s(0), "m"), SimRequest { tenant: Some("acme".into()), ..request(s(1), "m") }];
    let faults = fault_at(0, FaultKind::Crash, s(40))
        .into_iter()
        .chain(fault_at(1, FaultKind::Crash, s(10)))
        .collect::<Vec<_>>();
    let (totals, log) = simulate(&fleet, &faults, requests);
    assert_eq!(totals.answered + totals.fell_back, 2, "{:#?}", log.lines);
}

#[test]
fn detected_hang_kills_the_engine() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let hang = |seconds| FaultKind::Hang(Distribution::Fixed(seconds));
    let requests = [request(s(0), "m"), request(s(50), "m"), request(s(73), "m")];
    let (totals, log) = simulate(&fleet, &fault_at(0, hang(300.0), s(42)), requests);
    // The first request has its first byte at 41 s. It and the second one are aborted at 72 s; the
    // third one waits until the engine is gone at 77 s, and for a backoff and a load.
    let expected =
        [(72, RequestResult::Error), (72, RequestResult::Error), (122, RequestResult::Answered)];
    assert_eq!(log.ends_in_s(), expected);
    assert_eq!(totals.errors, 2);
    // A hang that is not detected only delays requests.
    let (_, log) = simulate(&fleet, &fault_at(0, hang(20.0), s(42)), [request(s(0), "m")]);
    assert_eq!(log.ends[0].at, s(64));
}

#[test]
fn stop_command_for_a_crashed_engine_is_ignored() {
    let mut supervisor = Supervisor::new(&lane("a", &["m"]), 1);
    let mut signals = Vec::new();
    supervisor.load(s(0));
    supervisor.advance(s(40), &mut signals);
    supervisor.inject(&FaultKind::Crash, s(50), &mut signals);
    // The lane was draining and its last response was lost, so the dispatcher stops the engine
    // before it learns of the crash.
    supervisor.unload(s(50));
    assert_eq!((supervisor.holds_memory(), supervisor.next_event()), (false, None), "{signals:?}");
}

#[test]
fn loads_fail_or_are_slow_during_injected_faults() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let run = |kind, at| {
        let requests = [request(s(0), "m"), request(s(39), "m"), request(s(42), "m")];
        simulate(&fleet, &fault_at(0, kind, at), requests)
    };
    let (totals, log) = run(FaultKind::LoadFailure(Distribution::Fixed(30.0)), s(0));
    assert_eq!((totals.errors, totals.answered, totals.ended_at), (2, 1, s(86)));
    let reason = log.ends[0].reason.as_deref();
    assert!(reason.is_some_and(|reason| reason.contains("injected load failure")), "{reason:?}");
    let duration = Distribution::Fixed(30.0);
    let slow = FaultKind::SlowLoad { load_time_factor: 3.0, duration };
    assert_eq!(run(slow, s(0)).0.ended_at, s(124));
    let duration = Distribution::Fixed(1000.0);
    let slow = FaultKind::Slowdown { speed_factor: 0.5, duration };
    assert_eq!(run(slow, s(10)).0.ended_at, s(50));
}

#[test]
fn external_engine_recovers_by_itself() {
    let mut external = lane("a", &["m"]);
    external.setup.residency = Residency::External;
    let fleet = fleet(vec![external]);
    let requests =
        [request(s(0), "m"), request(s(9), "m"), request(s(12), "m"), request(s(50), "m")];
    let (totals, log) = simulate(&fleet, &fault_at(0, FaultKind::Crash, s(10)), requests);
    assert_eq!((totals.answered, totals.errors), (2, 2), "{:#?}", log.lines);
    assert_eq!(log.ends[0].at, s(4), "the engine serves from the start");
    // A hanging engine gets no new requests, and continues with its current ones afterwards.
    let requests = [request(s(9), "m"), request(s(41), "m"), request(s(71), "m")];
    let hang = FaultKind::Hang(Distribution::Fixed(60.0));
    let (_, log) = simulate(&fleet, &fault_at(0, hang, s(10)), requests);
    let expected =
        [(41, RequestResult::Error), (73, RequestResult::Answered), (75, RequestResult::Answered)];
    assert_eq!(log.ends_in_s(), expected);
}

#[test]
fn client_and_first_byte_timeouts_expire() {
    let first_byte_timeout = Duration::from_millis(1500);
    let fleet = fleet(vec![Lane { first_byte_timeout, ..lane("a", &["m"]) }]);
    let with_timeout = |at: u64, timeout: u64, stream| SimRequest {
        client_timeout: Some(s(timeout)),
        stream,
        ..request(s(at), "m")
    };
    let requests = [
        with_timeout(0, 10, true),
        with_timeout(1, 60, true),
        request(s(2), "m"),
        // A response that is not streamed has its first byte when it is complete: too late for the
        // client of the first of these. The lane's limit is for streams only.
        with_timeout(60, 1, false),
        with_timeout(61, 9, false),
    ];
    let (totals, log) = simulate(&fleet, &[], requests);
    let expected = [
        (10_000, RequestResult::ClientGone),
        (44_000, RequestResult::Answered),
        (44_000, RequestResult::Answered),
        (61_000, RequestResult::ClientGone),
        (65_000, RequestResult::Answered),
    ];
    assert_eq!(log.ends_in_ms(), expected);
    assert_eq!(totals.client_gone, 2);
    let first_byte_timeout = Duration::from_millis(500);
    let fleet = self::fleet(vec![Lane { first_byte_timeout, ..lane("a", &["m"]) }]);
    let (_, log) = simulate(&fleet, &[], [with_timeout(0, 60, true)]);
    assert_eq!(log.ends_in_ms(), [(40_500, RequestResult::Error)]);
    assert_eq!(log.ends[0].attempts[0], AttemptResult::FirstTokenTimeout);
}

#[test]
fn tenants_share_a_lane_by_their_weights() {
    let mut lane = lane("a", &["m"]);
    (lane.setup.slots, lane.info.slots) = (1, 1);
    let mut fleet = fleet(vec![lane]);
    fleet.weights.insert("heavy".to_owned(), 3);
    let of = |tenant: &str| SimRequest { tenant: Some(tenant.into()), ..request(s(0), "m") };
    let (_, log) = simulate(&fleet, &[], (0..8).flat_map(|_| [of("light"), of("heavy")]));
    let tenants: Vec<&str> = log.ends.iter().filter_map(|end| end.tenant.as_deref()).collect();
    assert_eq!(tenants.len(), 16);
    let heavy = tenants[..8].iter().filter(|tenant| **tenant == "heavy").count();
    assert_eq!(heavy, 6, "{tenants:?}");
}

#[test]
fn unservable_requests_end_with_an_error() {
    let mut short = lane("a", &["m"]);
    short.info.max_context = 100;
    let requests = [
        request(s(0), "unknown"),
        SimRequest { body: Some("not JSON".into()), ..request(s(1), "m") },
        SimRequest { prompt_tokens: 100, ..request(s(2), "m") },
        SimRequest { prompt_tokens: 90, ..request(s(3), "m") },
    ];
    let (totals, log) = simulate(&fleet(vec![short]), &[], requests);
    assert_eq!((totals.errors, totals.answered), (3, 1));
    let reasons: Vec<_> =
        log.ends.iter().map(|end| end.reason.clone().unwrap_or_default()).collect();
    assert!(
        reasons[0].contains("`unknown`")
            && reasons[1].contains("must be a JSON object")
            && reasons[2].contains("maximum context"),
        "{reasons:?}"
    );
    // Only the prompt that is too long reaches an engine.
    let attempts: Vec<usize> = log.ends.iter().map(|end| end.attempts.len()).collect();
    assert_eq!(attempts, [0, 0, 1, 1]);
}

#[test]
fn sessions_continue_and_memory_stays_bounded() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let mut traffic = FixedTraffic {
        follow_ups: 500,
        ..FixedTraffic::new([request(s(0), "m"), request(s(1), "m")])
    };
    let config = RunConfig { fleet: &fleet, faults: &[], start_ms: 0, seed: 1 };
    let (mut log, mut advisor) = (Log::default(), BuiltIn);
    let mut world = World::new(&config, &mut advisor, &mut traffic, &mut log);
    world.start();
    while let Some(next) = world.next_step() {
        world.advance_to(next);
        assert!(world.timers.len() <= world.in_flight.len() && world.follow_ups.len() <= 2);
    }
    assert_eq!((world.totals.answered, world.totals.max_in_flight), (1002, 2));
    let ends: BTreeMap<u128, usize> =
        log.ends.iter().map(|end| (end.at.as_secs() as u128, 1)).collect();
    // The first responses end at 44 s; after that each client gets one every five seconds.
    assert_eq!((ends.len(), log.last), (501, s(44 + 5 * 500)));
}
