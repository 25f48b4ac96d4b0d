//! Invariants of simulations with arbitrary fleets, traffic, faults and advice.

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{
    Advice, Advised, Advisor, Allow, Edit, Facts, FailureReport, FallbackAdvice, FallbackStep,
    LaneAdvice, LaneScore, Merge, OnConflict, OnTimeout, Outcome, QueueAdvice, Recovered, Recovery,
    Rejection, Switching, Trace, Triggers, enforce_allow,
};
use proptest::prelude::*;

use super::*;
use crate::advisor::TimedHint;
use crate::fleet::DecodeRates;
use crate::random::Random;

/// An advisor with arbitrary advice that only depends on the request.
#[derive(Debug, Default)]
struct ArbitraryAdvisor {
    lanes: u64,
    outcomes: u64,
    ticks: u64,
}

impl ArbitraryAdvisor {
    /// Returns any lane, or one that does not exist.
    fn lane(&self, random: &mut Random) -> LaneId {
        LaneId(random.below(self.lanes + 1) as u32)
    }

    fn advice(&self, random: &mut Random) -> Advice {
        let lanes: Vec<LaneId> = (0..random.below(4)).map(|_| self.lane(random)).collect();
        let rejection = || Rejection {
            status: 429,
            code: "no".into(),
            message: "no".into(),
            retry_after_s: None,
        };
        let step = |random: &mut Random| FallbackStep {
            lane: self.lane(random),
            edits: vec![Edit::CapOutputTokens(random.below(50) as u32)],
        };
        let time = |random: &mut Random| (random.below(2) > 0).then(|| s(random.below(90)));
        Advice {
            reject: (random.below(20) == 0).then(rejection),
            lanes: match random.below(4) {
                0 => LaneAdvice::Avoid(lanes),
                1 => LaneAdvice::Ordered(lanes),
                2 => LaneAdvice::Scores(
                    lanes.iter().map(|lane| LaneScore { lane: *lane, score: 500 }).collect(),
                ),
                _ => LaneAdvice::Any,
            },
            switching: [
                None,
                Some(Switching::Never),
                Some(Switching::WhenIdle),
                Some(Switching::Allow),
            ][random.below(4) as usize],
            queue: (random.below(2) > 0).then(|| QueueAdvice {
                priority: random.below(5) as i32,
                flow: None,
                max_wait: time(random),
                on_timeout: if random.below(2) > 0 {
                    OnTimeout::FallBack
                } else {
                    OnTimeout::Reject
                },
            }),
            fallback: (random.below(2) > 0).then(|| FallbackAdvice {
                on: Triggers::EVERY.into_iter().filter(|_| random.below(3) > 0).collect(),
                steps: (0..random.below(4)).map(|_| step(random)).collect(),
                first_token: time(random),
            }),
            edits: vec![Edit::CapOutputTokens(1 + random.below(200) as u32)],
            ..Advice::default()
        }
    }
}

impl Advisor for ArbitraryAdvisor {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Advised {
        let mut random = Random::new(facts.seed, "advice");
        let mut advice = self.advice(&mut random);
        enforce_allow(&mut advice, &Allow { priority: (0, 5), ..Allow::default() });
        let endpoint = facts.request.info().endpoint;
        let mut merge = Merge::new(fleet, facts.request.model(), endpoint);
        merge.add(&PolicyRef::new("anything", "1"), 1000, advice);
        merge.finish(OnConflict::Refuse).into()
    }

    fn observes_outcomes(&self) -> bool {
        true
    }

    fn has_recovery(&self) -> bool {
        true
    }

    fn recover(
        &self,
        facts: &Facts,
        _: &Arc<FleetView>,
        failure: &FailureReport,
        _: &mut Trace,
    ) -> Recovered {
        assert!(facts.attempt > 0 && failure.sent_bytes == 0);
        let mut random = Random::new(facts.seed, &format!("recovery {}", facts.attempt));
        let recovery = match random.below(6) {
            0 => Recovery::Retry(FallbackStep { lane: self.lane(&mut random), edits: Vec::new() }),
            1 => Recovery::GiveUp(Rejection {
                status: 503,
                code: "x".into(),
                message: "enough".into(),
                retry_after_s: None,
            }),
            _ => Recovery::Planned,
        };
        Recovered { recovery, by: None }
    }
}

/// An [`ArbitraryAdvisor`] with a tick hook that returns arbitrary hints.
struct HintingAdvisor(ArbitraryAdvisor);

impl SimAdvisor for HintingAdvisor {
    fn advisor(&self) -> &dyn Advisor {
        &self.0
    }

    fn observe(&mut self, _: &Arc<FleetView>, _: u64, outcomes: &[Outcome]) {
        assert!((1..=256).contains(&outcomes.len()));
        assert!(outcomes.iter().all(|outcome| outcome.tries > 0));
        self.0.outcomes += outcomes.len() as u64;
    }

    fn next_tick(&self) -> Option<Duration> {
        Some(s(7 * self.0.ticks))
    }

    fn tick(&mut self, _: &Arc<FleetView>, now: Duration, _: u64) -> Vec<TimedHint> {
        assert!(now >= s(7 * self.0.ticks));
        self.0.ticks += 1;
        let mut random = Random::new(self.0.ticks, "wishes");
        let hints = [None, Some(LaneHint::Load), Some(LaneHint::Keep), Some(LaneHint::Release)];
        let hint = hints[random.below(4) as usize];
        vec![TimedHint { lane: self.0.lane(&mut random), hint, duration: s(random.below(60)) }]
    }
}

fn any_lane() -> impl Strategy<Value = Lane> {
    let residency = prop_oneof![
        4 => (any::<bool>(), prop::option::of(1u64..60)).prop_map(|(preload, after)| {
            Residency::OnDemand { preload, unload_after: after.map(s) }
        }),
        1 => Just(Residency::Always),
        1 => Just(Residency::External),
    ];
    let service = prop_oneof![
        (0.0..3.0, 0.0..9.0).prop_map(|(first, rest)| ServiceModel::Fixed {
            first_token: Distribution::Exponential { mean: first },
            rest: Distribution::Fixed(rest),
            use_recorded: false,
        }),
        (0.0..0.2, 50.0..5000.0, 1.0..50.0, 50.0..300.0).prop_map(
            |(overhead, prefill, one, many)| {
                ServiceModel::Rates {
                    overhead: Distribution::Fixed(overhead),
                    prefill,
                    decode: DecodeRates(vec![(1, one), (8, many)]),
                }
            }
        ),
    ];
    let setup = (1u32..5, 0usize..3, 1u64..25, residency, 0u32..4);
    let engine =
        (0.0..60.0, 0.0..9.0, service, prop::option::of(100u64..3000), any::<bool>(), 1u64..40);
    let others = (
        prop::sample::subsequence(vec!["m", "n"], 1..=2),
        1u64..60,
        prop_oneof![Just(0u32), 50u32..2000],
    );
    (setup, engine, others).prop_map(|(setup, engine, (models, first_byte, max_context))| {
        let (slots, group, need, residency, max_failures) = setup;
        let (load_mean, max_stop, service, kv_tokens, prefix_cache, hang_detection) = engine;
        let mut lane = lane("x", &models);
        lane.info.slots = slots;
        lane.info.max_context = max_context;
        let backoff = Backoff { max_failures, ..lane.setup.backoff };
        lane.setup = LaneSetup { slots, group, need, residency, backoff, ..lane.setup };
        lane.first_byte_timeout = s(first_byte);
        lane.engine = EngineModel {
            load_time: Distribution::Exponential { mean: load_mean },
            stop_time: Distribution::Uniform(0.0, max_stop),
            service,
            kv_tokens,
            prefix_cache,
            hang_detection_time: s(hang_detection),
        };
        lane
    })
}

fn any_fleet() -> impl Strategy<Value = Fleet> {
    let queue =
        (1usize..20, 1usize..40).prop_map(|(per_lane, total)| QueueLimits { per_lane, total });
    (
        prop::collection::vec(any_lane(), 1..5),
        queue,
        prop::option::of(1u64..30),
        1u64..200,
        1u64..300,
    )
        .prop_map(|(mut lanes, queue, drain_timeout, max_wait, deadline)| {
            for (index, lane) in lanes.iter_mut().enumerate() {
                lane.info.name = format!("lane {index}");
            }
            Fleet {
                lanes,
                groups: vec![GroupSetup { budget: 30 }, GroupSetup { budget: 12 }],
                rules: Rules { queue, drain_timeout: drain_timeout.map(s), ..Rules::default() },
                limits: PlanLimits { max_wait: s(max_wait), max_steps: 4 },
                guards: Default::default(),
                deadline: s(deadline),
                weights: [("acme".to_owned(), 3)].into(),
            }
        })
}

fn any_requests() -> impl Strategy<Value = Vec<SimRequest>> {
    let sizes = (0u32..3000, 0u32..400, 0u32..500, prop::option::of(0u32..400));
    let one = (0u64..4000, sizes, prop::option::of(0u64..90), any::<bool>(), 0usize..9, 0u64..4);
    prop::collection::vec(one, 1..80).prop_map(|requests| {
        let mut at = 0;
        let sim_request = |(gap, sizes, client_timeout, stream, kind, session): (
            u64,
            (u32, u32, u32, Option<u32>),
            _,
            _,
            usize,
            _,
        )| {
            let (prompt_tokens, output_tokens, shared_tokens, max_tokens) = sizes;
            at += gap;
            SimRequest {
                prompt_tokens,
                output_tokens,
                shared_tokens,
                max_tokens,
                stream,
                session,
                tenant: (kind > 3).then(|| "acme".into()),
                client_timeout: Option::<u64>::map(client_timeout, s),
                ..request(
                    Duration::from_millis(at),
                    ["m", "n", "m", "n", "m", "n", "m", "n", "?"][kind],
                )
            }
        };
        requests.into_iter().map(sim_request).collect()
    })
}

fn any_faults() -> impl Strategy<Value = Vec<InjectedFault>> {
    let duration = || (0.0..60.0).prop_map(Distribution::Fixed);
    let kind = prop_oneof![
        2 => Just(FaultKind::Crash),
        2 => duration().prop_map(FaultKind::Hang),
        1 => duration().prop_map(FaultKind::LoadFailure),
        1 => (0.0..5.0, duration()).prop_map(|(load_time_factor, duration)| {
            FaultKind::SlowLoad { load_time_factor, duration }
        }),
        1 => (0.0..2.0, duration()).prop_map(|(speed_factor, duration)| {
            FaultKind::Slowdown { speed_factor, duration }
        }),
    ];
    let schedule = prop_oneof![
        prop::collection::vec((0u64..200).prop_map(s), 0..4).prop_map(Schedule::At),
        (20.0..200.0).prop_map(|mean| Schedule::Every(Distribution::Exponential { mean })),
    ];
    let one = (prop::collection::vec((0u32..5).prop_map(LaneId), 1..3), kind, schedule);
    let one = one.prop_map(|(lanes, kind, schedule)| InjectedFault { lanes, kind, schedule });
    prop::collection::vec(one, 0..4)
}

/// Asserts the invariants that hold between two steps.
fn check_invariants(world: &World<'_>, fleet: &Fleet) {
    assert!(world.effects.is_empty());
    assert!(world.timers.len() <= world.in_flight.len(), "timers of ended requests remain");
    assert_eq!(world.waiting.iter().sum::<usize>(), world.dispatcher.queued());
    assert_eq!(world.totals.in_flight(), world.in_flight.len() as u64);
    let mut held: BTreeMap<usize, u64> = BTreeMap::new();
    for (lane, supervisor) in fleet.lanes.iter().zip(&world.supervisors) {
        // An external engine that was reported as lost keeps the leases of its previous generation
        // beside those of the current one.
        let external = lane.setup.residency == Residency::External;
        assert!(
            external || supervisor.busy() <= lane.setup.slots as usize,
            "more leases than slots"
        );
        assert!(supervisor.busy() == 0 || supervisor.is_serving(), "a response without an engine");
        if supervisor.holds_memory() && lane.setup.group < fleet.groups.len() {
            *held.entry(lane.setup.group).or_default() += lane.setup.need;
        }
    }
    let busy: usize = world.supervisors.iter().map(Supervisor::busy).sum();
    assert_eq!(busy + world.dispatcher.queued(), world.in_flight.len(), "a request is nowhere");
    for (group, held) in held {
        let is_always =
            |lane: &&Lane| lane.setup.group == group && lane.setup.residency == Residency::Always;
        let always: u64 = fleet.lanes.iter().filter(is_always).map(|lane| lane.setup.need).sum();
        assert!(held <= fleet.groups[group].budget.max(always), "more memory than the budget");
    }
}

/// Runs a simulation and returns its totals, its log and the number of reported outcomes.
fn simulate_any(
    fleet: &Fleet,
    faults: &[InjectedFault],
    requests: Vec<SimRequest>,
    follow_ups: u32,
    is_advised: bool,
) -> (Totals, Log, u64) {
    let config = RunConfig { fleet, faults, start_ms: 0, seed: 7 };
    let mut traffic = FixedTraffic { follow_ups, ..FixedTraffic::new(requests) };
    let mut log = Log::default();
    let mut built_in = BuiltIn;
    let lanes = fleet.lanes.len() as u64;
    let mut hinting = HintingAdvisor(ArbitraryAdvisor { lanes, ..ArbitraryAdvisor::default() });
    let advisor: &mut dyn SimAdvisor = if is_advised { &mut hinting } else { &mut built_in };
    let mut world = World::new(&config, advisor, &mut traffic, &mut log);
    world.start();
    while let Some(next) = world.next_step() {
        assert!(next >= world.now, "time goes back");
        world.advance_to(next);
        check_invariants(&world, fleet);
        assert!(world.totals.steps < 500_000, "the simulation does not end");
    }
    world.report_outcomes();
    let totals = world.totals;
    (totals, log, hinting.0.outcomes)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_ends_exactly_once(
        fleet in any_fleet(),
        faults in any_faults(),
        requests in any_requests(),
        follow_ups in 0u32..3,
        is_advised: bool,
    ) {
        let count = requests.len() as u64;
        let (totals, log, outcomes) =
            simulate_any(&fleet, &faults, requests.clone(), follow_ups, is_advised);
        prop_assert_eq!((totals.in_flight(), totals.ended()), (0, log.ends.len() as u64));
        let max_accepted = count * u64::from(follow_ups + 1);
        prop_assert!(totals.accepted >= count && totals.accepted <= max_accepted);
        let attempted = log.ends.iter().filter(|end| !end.attempts.is_empty()).count() as u64;
        prop_assert_eq!(outcomes, if is_advised { attempted } else { 0 });
        for end in &log.ends {
            let last = end.attempts.last();
            let is_ok = last == Some(&AttemptResult::Ok);
            prop_assert!(
                end.result.is_success() == is_ok && (!is_ok || end.first_byte.is_some()),
                "{:?} {:?}", end.result, end.attempts
            );
            let is_aborted = end.result == RequestResult::Error
                && end.first_byte.is_some()
                && last != Some(&AttemptResult::Other);
            prop_assert!(
                !is_aborted || !faults.is_empty() || fleet.rules.drain_timeout.is_some(),
                "a switch aborted a stream"
            );
        }
        let (again, again_log, _) =
            simulate_any(&fleet, &faults, requests, follow_ups, is_advised);
        prop_assert_eq!(totals, again);
        prop_assert_eq!(log.lines, again_log.lines);
    }
}
