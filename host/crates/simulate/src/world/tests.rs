//! What holds for any simulation, and what comes out of some whose outcome can be worked out by hand.

mod arbitrary;

use std::collections::BTreeMap;

use pointsman_domain::dispatch::{
    BackOff, GroupSetup, LaneSetup, QueueLimits, Residency, Rules, SwitchReport,
};
use pointsman_domain::{AttemptResult, BuiltIn, EngineKind, LaneInfo, PlanLimits, PolicyRef};

use super::*;
use crate::fault::{Trouble, When};
use crate::fleet::{EngineModel, Lane, Service};
use crate::observe::{Ended, How};
use crate::random::Spread;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ask(at: Duration, model: &str) -> Ask {
    Ask { prompt_tokens: 50, output_tokens: 30, ..Ask::plain(at, model) }
}

/// Requests that are known beforehand; whoever is answered asks again so often.
#[derive(Default)]
struct Asks {
    asks: VecDeque<Ask>,
    again: u32,
}

impl Asks {
    fn of(asks: impl IntoIterator<Item = Ask>) -> Self {
        Self { asks: asks.into_iter().collect(), again: 0 }
    }
}

impl Traffic for Asks {
    fn classes(&self) -> &[String] {
        &[]
    }

    fn next(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    fn after(&mut self, ask: &Ask, ended: Duration) -> Option<Ask> {
        (ask.turn < self.again).then(|| Ask { at: ended + s(1), turn: ask.turn + 1, ..ask.clone() })
    }
}

/// How a request ended: when, how, its wait, its first byte, its tries, and why.
type End = (Duration, How, Duration, Option<Duration>, Vec<AttemptResult>, Option<String>);

/// Writes down everything that is to be seen.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: Vec<End>,
    switches: usize,
    loads: usize,
    last: Duration,
}

impl Log {
    fn line(&mut self, at: Duration, line: String) {
        assert!(at >= self.last, "times go back: {line}");
        self.last = at;
        self.lines.push(format!("{} {line}", at.as_micros()));
    }
}

impl Observer for Log {
    fn decided(&mut self, ask: &Ask, first: Option<LaneId>, by: &[PolicyRef]) {
        self.line(self.last.max(ask.at), format!("decided {first:?} {by:?}"));
    }

    fn granted(&mut self, at: Duration, _: &Ask, lane: LaneId) {
        self.line(at, format!("granted {lane}"));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let results = ended.tries.iter().map(|tried| tried.result).collect();
        let problem = ended.problem.map(str::to_owned);
        self.ended.push((ended.at, ended.how, ended.wait, ended.first_byte, results, problem));
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

/// A lane that loads in 40 s, stops in 5 s and serves a request in 4 s.
fn lane(name: &str, models: &[&str]) -> Lane {
    Lane {
        info: LaneInfo {
            id: LaneId(0),
            name: name.to_owned(),
            engine: EngineKind::Vllm,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            labels: Vec::new(),
            max_context: 0,
            slots: 8,
            group: 1,
            cost_milli: 0,
        },
        setup: LaneSetup {
            slots: 8,
            group: 0,
            need: 20,
            asleep: 0,
            residency: Residency::OnDemand { preload: false, unload_after: None },
            expected_load: s(40),
            back_off: BackOff {
                first: s(1),
                most: s(60),
                reset_after: s(60),
                give_up: 3,
                failed_retry: s(600),
            },
        },
        first_byte: s(300),
        engine: EngineModel {
            load: Spread::Fixed(40.0),
            stop: Spread::Fixed(5.0),
            service: Service::Fixed {
                first: Spread::Fixed(1.0),
                rest: Spread::Fixed(3.0),
                recorded: false,
            },
            kv_tokens: None,
            prefix_cache: false,
            notices_hang: s(30),
        },
    }
}

fn fleet(lanes: Vec<Lane>) -> Fleet {
    Fleet {
        lanes,
        groups: vec![GroupSetup { budget: 30 }],
        rules: Rules { queue: QueueLimits { per_lane: 1000, total: 1000 }, ..Rules::default() },
        limits: PlanLimits { max_wait: s(1_000_000), max_steps: 8 },
        deadline: s(1_000_000),
    }
}

fn simulate(fleet: &Fleet, failures: &[Failure], mut asks: Asks) -> (Books, Log) {
    let setting = Setting { fleet, failures, begins_ms: 1_767_571_200_000, seed: 1 };
    let mut log = Log::default();
    let books = run(&setting, &mut BuiltIn, &mut asks, &mut log);
    assert_eq!((books.live(), books.accepted), (0, log.ended.len() as u64));
    (books, log)
}

fn fails(lane: u32, what: Trouble, at: u64) -> Vec<Failure> {
    vec![Failure { lanes: vec![LaneId(lane)], what, when: When::At(vec![s(at)]) }]
}

#[test]
fn three_lanes_take_turns_as_they_do_in_the_bench_of_turns() {
    let names = ["orchestrator", "coder", "fast_rag"];
    let fleet = fleet(names.iter().map(|name| lane(name, &[name])).collect());
    let asks = (0..300).map(|index| ask(s(index), names[index as usize % 3]));
    let (books, log) = simulate(&fleet, &[], Asks::of(asks));
    let longest = log.ended.iter().map(|(_, _, wait, ..)| *wait).max();
    assert_eq!(
        (books.answered, log.loads, books.ended_at, longest),
        (300, 6, s(475), Some(s(234)))
    );
}

#[test]
fn a_crash_is_a_failed_try_before_the_first_byte_and_an_error_after_it() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let asks = || Asks::of([ask(s(0), "m"), ask(s(44), "m"), ask(s(45), "m"), ask(s(46), "m")]);
    // Up at 40 s. At 45.5 s the first one has been answered, the second one has its first byte, and the third one has not.
    let when = When::At(vec![Duration::from_millis(45_500)]);
    let crash = vec![Failure { lanes: vec![LaneId(0)], what: Trouble::Crash, when }];
    let (books, log) = simulate(&fleet, &crash, asks());
    assert_eq!((books.answered, books.errors), (2, 2));
    let ended: Vec<_> = log.ended.iter().map(|(at, how, ..)| (at.as_millis(), *how)).collect();
    // After a second's pause and 40 s of loading the last one is served.
    let expected = [
        (44_000, How::Answered),
        (45_500, How::Error),
        (45_500, How::Error),
        (90_500, How::Answered),
    ];
    assert_eq!(ended, expected);
    assert_eq!(log.ended[1].3, Some(s(1)), "it had begun");
    assert_eq!((log.ended[2].3, &log.ended[2].4[..]), (None, &[AttemptResult::ServerError][..]));
}

#[test]
fn whoever_can_goes_elsewhere_when_an_engine_crashes() {
    let other = LaneSetup { group: 9, ..lane("b", &[]).setup };
    let fleet = fleet(vec![lane("a", &["m"]), Lane { setup: other, ..lane("b", &["m"]) }]);
    let asks = Asks::of([ask(s(0), "m"), Ask { tenant: Some("acme".into()), ..ask(s(1), "m") }]);
    let failures = fails(0, Trouble::Crash, 40)
        .into_iter()
        .chain(fails(1, Trouble::Crash, 10))
        .collect::<Vec<_>>();
    let (books, log) = simulate(&fleet, &failures, asks);
    assert_eq!(books.answered + books.fell_back, 2, "{:#?}", log.lines);
}

#[test]
fn a_hang_is_noticed_and_ends_the_engine() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let (books, log) = simulate(
        &fleet,
        &fails(0, Trouble::Hang(Spread::Fixed(300.0)), 42),
        Asks::of([ask(s(0), "m"), ask(s(50), "m"), ask(s(73), "m")]),
    );
    // The first one had its first byte at 41 s. It and the second one break off at 72 s; the third one waits until all of
    // the engine is gone at 77 s, and for a pause and a load.
    let ended: Vec<_> = log.ended.iter().map(|(at, how, ..)| (at.as_secs(), *how)).collect();
    assert_eq!(ended, [(72, How::Error), (72, How::Error), (122, How::Answered)]);
    assert_eq!(books.errors, 2);
    // A short one only takes its time.
    let asks = Asks::of([ask(s(0), "m")]);
    let (_, log) = simulate(&fleet, &fails(0, Trouble::Hang(Spread::Fixed(20.0)), 42), asks);
    assert_eq!(log.ended[0].0, s(64));
}

#[test]
fn an_order_to_stop_what_has_just_crashed_is_nothing_new() {
    let mut supervisor = Supervisor::new(&lane("a", &["m"]), 1);
    let mut said = Vec::new();
    supervisor.load(s(0));
    supervisor.go_on(s(40), &mut said);
    supervisor.suffer(&Trouble::Crash, s(50), &mut said);
    // The lane was draining, and its last answer has broken off: so the dispatcher, which has not heard of the end yet.
    supervisor.unload(s(50));
    assert_eq!((supervisor.exists(), supervisor.next()), (false, None), "{said:?}");
}

#[test]
fn loads_that_fail_and_loads_that_are_slow() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let asks = || Asks::of([ask(s(0), "m"), ask(s(39), "m"), ask(s(42), "m")]);
    let failures = fails(0, Trouble::LoadsFail(Spread::Fixed(30.0)), 0);
    let (books, log) = simulate(&fleet, &failures, asks());
    assert_eq!((books.errors, books.answered, books.ended_at), (2, 1, s(86)));
    assert!(
        log.ended[0].5.as_deref().is_some_and(|why| why.contains("could not be loaded")),
        "{:?}",
        log.ended[0]
    );
    let slow = Trouble::SlowLoads { times: 3.0, lasts: Spread::Fixed(30.0) };
    assert_eq!(simulate(&fleet, &fails(0, slow, 0), asks()).0.ended_at, s(124));
    let slow = Trouble::SlowDown { part: 0.5, lasts: Spread::Fixed(1000.0) };
    assert_eq!(simulate(&fleet, &fails(0, slow, 10), asks()).0.ended_at, s(50));
}

#[test]
fn an_engine_that_is_not_ours_comes_back_by_itself() {
    let mut external = lane("a", &["m"]);
    external.setup.residency = Residency::External;
    let fleet = fleet(vec![external]);
    let asks = Asks::of([ask(s(0), "m"), ask(s(9), "m"), ask(s(12), "m"), ask(s(50), "m")]);
    let (books, log) = simulate(&fleet, &fails(0, Trouble::Crash, 10), asks);
    assert_eq!((books.answered, books.errors), (2, 2), "{:#?}", log.lines);
    assert_eq!(log.ended[0].0, s(4), "it served from the begin");
    // While it hangs nobody is sent there; what it works on goes on after that.
    let asks = Asks::of([ask(s(9), "m"), ask(s(41), "m"), ask(s(71), "m")]);
    let (_, log) = simulate(&fleet, &fails(0, Trouble::Hang(Spread::Fixed(60.0)), 10), asks);
    let ended: Vec<_> = log.ended.iter().map(|(at, how, ..)| (at.as_secs(), *how)).collect();
    assert_eq!(ended, [(41, How::Error), (73, How::Answered), (75, How::Answered)]);
}

#[test]
fn clients_lose_their_patience_and_engines_their_time() {
    let fleet = fleet(vec![Lane { first_byte: Duration::from_millis(1500), ..lane("a", &["m"]) }]);
    let patient = |at: u64, patience: u64, stream| Ask {
        patience: Some(s(patience)),
        stream,
        ..ask(s(at), "m")
    };
    let asks = [
        patient(0, 10, true),
        patient(1, 60, true),
        ask(s(2), "m"),
        // What is no stream is there when all of it is: too late for the lane, and for the client.
        patient(60, 1, false),
        patient(61, 9, false),
    ];
    let (books, log) = simulate(&fleet, &[], Asks::of(asks));
    let ended: Vec<_> = log.ended.iter().map(|(at, how, ..)| (at.as_millis(), *how)).collect();
    let expected = [
        (10_000, How::ClientGone),
        (44_000, How::Answered),
        (44_000, How::Answered),
        (61_000, How::ClientGone),
        (62_500, How::Error),
    ];
    assert_eq!(ended, expected);
    assert_eq!((books.client_gone, log.ended[4].4[0]), (2, AttemptResult::FirstTokenTimeout));
}

#[test]
fn what_is_nobodys_business_never_gets_to_a_lane() {
    let mut short = lane("a", &["m"]);
    short.info.max_context = 100;
    let asks = [
        ask(s(0), "who"),
        Ask { body: Some("nonsense".into()), ..ask(s(1), "m") },
        Ask { prompt_tokens: 100, ..ask(s(2), "m") },
        Ask { prompt_tokens: 90, ..ask(s(3), "m") },
    ];
    let (books, log) = simulate(&fleet(vec![short]), &[], Asks::of(asks));
    assert_eq!((books.errors, books.answered), (3, 1));
    let problems: Vec<_> =
        log.ended.iter().map(|ended| ended.5.clone().unwrap_or_default()).collect();
    assert_eq!(problems[0], "no lane answers to the model `who`");
    assert!(
        problems[1].contains("must be a JSON object") && problems[2].contains("longer than"),
        "{problems:?}"
    );
}

#[test]
fn sessions_go_on_after_their_answers_and_memory_does_not_grow() {
    let fleet = fleet(vec![lane("a", &["m"])]);
    let asks = Asks { again: 500, ..Asks::of([ask(s(0), "m"), ask(s(1), "m")]) };
    let setting = Setting { fleet: &fleet, failures: &[], begins_ms: 0, seed: 1 };
    let (mut asks, mut log, mut nobody) = (asks, Log::default(), BuiltIn);
    let mut world = World::new(&setting, &mut nobody, &mut asks, &mut log);
    world.begin();
    while let Some(next) = world.next() {
        world.go_to(next);
        assert!(world.limits.len() <= world.crowd.len() && world.later.len() <= 2);
    }
    assert_eq!((world.books.answered, world.books.most_live), (1002, 2));
    let ends: BTreeMap<u128, usize> =
        log.ended.iter().map(|(at, ..)| (at.as_secs() as u128, 1)).collect();
    // The first answers come at 44 s; after that each client gets one every five seconds.
    assert_eq!((ends.len(), log.last), (501, s(44 + 5 * 500)));
}
