//! Any fleet, any traffic, any failures, any advice.

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{
    Advice, Advisor, Allow, Edit, Facts, FailureReport as FailedTry, FallbackAdvice, FallbackStep,
    LaneAdvice, LaneScore, Merge, Merged, OnConflict, OnTimeout, Outcome, QueueAdvice, Recovery,
    Rejection, Switching, Trace, Triggers, permit,
};
use proptest::prelude::*;

use super::*;
use crate::advisor::Hinted;
use crate::fleet::Decode;
use crate::random::Random;

/// Says anything, the same about the same request.
#[derive(Debug, Default)]
struct Anything {
    lanes: u64,
    heard: u64,
    ticks: u64,
}

impl Anything {
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

impl Advisor for Anything {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Merged {
        let mut random = Random::new(facts.seed, "advice");
        let mut advice = self.advice(&mut random);
        permit(&mut advice, &Allow { priority: (0, 5), ..Allow::default() });
        let mut merge = Merge::new(fleet, facts.request.model());
        merge.add(&PolicyRef::new("anything", "1"), 1000, advice);
        merge.finish(OnConflict::Refuse)
    }

    fn learns(&self) -> bool {
        true
    }

    fn recovers(&self) -> bool {
        true
    }

    fn recover(
        &self,
        facts: &Facts,
        _: &Arc<FleetView>,
        failed: &FailedTry,
        _: &mut Trace,
    ) -> Recovery {
        assert!(facts.attempt > 0 && failed.sent_bytes == 0);
        let mut random = Random::new(facts.seed, &format!("recovery {}", facts.attempt));
        match random.below(6) {
            0 => Recovery::Retry(FallbackStep { lane: self.lane(&mut random), edits: Vec::new() }),
            1 => Recovery::GiveUp(Rejection {
                status: 503,
                code: "x".into(),
                message: "enough".into(),
                retry_after_s: None,
            }),
            _ => Recovery::Planned,
        }
    }
}

/// The same, which also has wishes.
struct Wishing(Anything);

impl Deciders for Wishing {
    fn advisor(&self) -> &dyn Advisor {
        &self.0
    }

    fn learn(&mut self, _: &Arc<FleetView>, _: u64, ended: &[Outcome]) {
        assert!((1..=256).contains(&ended.len()) && ended.iter().all(|outcome| outcome.tries > 0));
        self.0.heard += ended.len() as u64;
    }

    fn next_tick(&self) -> Option<Duration> {
        Some(s(7 * self.0.ticks))
    }

    fn tick(&mut self, _: &Arc<FleetView>, now: Duration, _: u64) -> Vec<Hinted> {
        assert!(now >= s(7 * self.0.ticks));
        self.0.ticks += 1;
        let mut random = Random::new(self.0.ticks, "wishes");
        let hints = [None, Some(LaneHint::Load), Some(LaneHint::Keep), Some(LaneHint::Release)];
        let hint = hints[random.below(4) as usize];
        vec![Hinted { lane: self.0.lane(&mut random), hint, lasts: s(random.below(60)) }]
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
        (0.0..3.0, 0.0..9.0).prop_map(|(first, rest)| Service::Fixed {
            first: Spread::Exponential { mean: first },
            rest: Spread::Fixed(rest),
            recorded: false,
        }),
        (0.0..0.2, 50.0..5000.0, 1.0..50.0, 50.0..300.0).prop_map(
            |(overhead, prefill, one, many)| {
                Service::Rates {
                    overhead: Spread::Fixed(overhead),
                    prefill,
                    decode: Decode(vec![(1, one), (8, many)]),
                }
            }
        ),
    ];
    let setup = (1u32..5, 0usize..3, 1u64..25, residency, 0u32..4);
    let engine =
        (0.0..60.0, 0.0..9.0, service, prop::option::of(100u64..3000), any::<bool>(), 1u64..40);
    let rest = (
        prop::sample::subsequence(vec!["m", "n"], 1..=2),
        1u64..60,
        prop_oneof![Just(0u32), 50u32..2000],
    );
    (setup, engine, rest).prop_map(|(setup, engine, (models, first_byte, max_context))| {
        let (slots, group, need, residency, give_up) = setup;
        let (load, stop, service, kv_tokens, prefix_cache, notices) = engine;
        let mut lane = lane("x", &models);
        lane.info.slots = slots;
        lane.info.max_context = max_context;
        let back_off = BackOff { give_up, ..lane.setup.back_off };
        lane.setup = LaneSetup { slots, group, need, residency, back_off, ..lane.setup };
        lane.first_byte = s(first_byte);
        let (load, stop) = (Spread::Exponential { mean: load }, Spread::Uniform(0.0, stop));
        lane.engine =
            EngineModel { load, stop, service, kv_tokens, prefix_cache, notices_hang: s(notices) };
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
                deadline: s(deadline),
            }
        })
}

fn any_asks() -> impl Strategy<Value = Vec<Ask>> {
    let sizes = (0u32..3000, 0u32..400, 0u32..500, prop::option::of(0u32..400));
    let one = (0u64..4000, sizes, prop::option::of(0u64..90), any::<bool>(), 0usize..9, 0u64..4);
    prop::collection::vec(one, 1..80).prop_map(|asks| {
        let mut at = 0;
        let ask = |(gap, sizes, patience, stream, what, session): (
            u64,
            (u32, u32, u32, Option<u32>),
            _,
            _,
            usize,
            _,
        )| {
            let (prompt_tokens, output_tokens, shared_tokens, max_tokens) = sizes;
            at += gap;
            Ask {
                prompt_tokens,
                output_tokens,
                shared_tokens,
                max_tokens,
                stream,
                session,
                tenant: (what > 3).then(|| "acme".into()),
                patience: Option::<u64>::map(patience, s),
                ..ask(
                    Duration::from_millis(at),
                    ["m", "n", "m", "n", "m", "n", "m", "n", "?"][what],
                )
            }
        };
        asks.into_iter().map(ask).collect()
    })
}

fn any_failures() -> impl Strategy<Value = Vec<Failure>> {
    let lasts = || (0.0..60.0).prop_map(Spread::Fixed);
    let what = prop_oneof![
        2 => Just(Trouble::Crash),
        2 => lasts().prop_map(Trouble::Hang),
        1 => lasts().prop_map(Trouble::LoadsFail),
        1 => (0.0..5.0, lasts()).prop_map(|(times, lasts)| Trouble::SlowLoads { times, lasts }),
        1 => (0.0..2.0, lasts()).prop_map(|(part, lasts)| Trouble::SlowDown { part, lasts }),
    ];
    let when = prop_oneof![
        prop::collection::vec((0u64..200).prop_map(s), 0..4).prop_map(When::At),
        (20.0..200.0).prop_map(|mean| When::Every(Spread::Exponential { mean })),
    ];
    let one = (prop::collection::vec((0u32..5).prop_map(LaneId), 1..3), what, when);
    let one = one.prop_map(|(lanes, what, when)| Failure { lanes, what, when });
    prop::collection::vec(one, 0..4)
}

/// What has to be so whenever nothing is going on.
fn check(world: &World<'_>, fleet: &Fleet) {
    assert!(world.effects.is_empty());
    assert!(world.limits.len() <= world.crowd.len(), "limits of requests that have ended are kept");
    assert_eq!(world.waiting.iter().sum::<usize>(), world.dispatcher.queued());
    assert_eq!(world.books.live(), world.crowd.len() as u64);
    let mut held: BTreeMap<usize, u64> = BTreeMap::new();
    for (lane, supervisor) in fleet.lanes.iter().zip(&world.supervisors) {
        // Of an engine that is not ours and was taken for lost, leases of the life before go on beside those of this one.
        let external = lane.setup.residency == Residency::External;
        assert!(
            external || supervisor.busy() <= lane.setup.slots as usize,
            "more leases than slots"
        );
        assert!(supervisor.busy() == 0 || supervisor.serves(), "an answer without an engine");
        if supervisor.exists() && lane.setup.group < fleet.groups.len() {
            *held.entry(lane.setup.group).or_default() += lane.setup.need;
        }
    }
    let busy: usize = world.supervisors.iter().map(Supervisor::busy).sum();
    assert_eq!(busy + world.dispatcher.queued(), world.crowd.len(), "a request that is nowhere");
    for (group, held) in held {
        let always =
            |lane: &&Lane| lane.setup.group == group && lane.setup.residency == Residency::Always;
        let of_always: u64 = fleet.lanes.iter().filter(always).map(|lane| lane.setup.need).sum();
        assert!(held <= fleet.groups[group].budget.max(of_always), "more memory than there is");
    }
}

fn simulate_any(
    fleet: &Fleet,
    failures: &[Failure],
    asks: Vec<Ask>,
    again: u32,
    advised: bool,
) -> (Books, Log, u64) {
    let setting = Setting { fleet, failures, begins_ms: 0, seed: 7 };
    let mut asks = Asks { again, ..Asks::of(asks) };
    let mut log = Log::default();
    let mut built_in = BuiltIn;
    let mut wishing = Wishing(Anything { lanes: fleet.lanes.len() as u64, ..Anything::default() });
    let deciders: &mut dyn Deciders = if advised { &mut wishing } else { &mut built_in };
    let mut world = World::new(&setting, deciders, &mut asks, &mut log);
    world.begin();
    while let Some(next) = world.next() {
        assert!(next >= world.now, "time goes back");
        world.go_to(next);
        check(&world, fleet);
        assert!(world.books.moments < 500_000, "it does not end");
    }
    world.learn();
    let books = world.books;
    (books, log, wishing.0.heard)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_request_ends_once(
        fleet in any_fleet(),
        failures in any_failures(),
        asks in any_asks(),
        again in 0u32..3,
        advised: bool,
    ) {
        let (books, log, heard) = simulate_any(&fleet, &failures, asks.clone(), again, advised);
        prop_assert_eq!((books.live(), books.ended()), (0, log.ended.len() as u64));
        prop_assert!(books.accepted >= asks.len() as u64 && books.accepted <= asks.len() as u64 * u64::from(again + 1));
        let tried = log.ended.iter().filter(|ended| !ended.4.is_empty()).count() as u64;
        prop_assert_eq!(heard, if advised { tried } else { 0 });
        for (_, how, _, first_byte, results, _) in &log.ended {
            let ok = results.last() == Some(&AttemptResult::Ok);
            prop_assert!(how.is_answer() == ok && (!ok || first_byte.is_some()), "{how:?} {results:?}");
            let cut_off = *how == How::Error && first_byte.is_some() && results.last() != Some(&AttemptResult::Other);
            prop_assert!(
                !cut_off || !failures.is_empty() || fleet.rules.drain_timeout.is_some(),
                "a switch has cut a stream"
            );
        }
        let (again_books, again_log, _) = simulate_any(&fleet, &failures, asks, again, advised);
        prop_assert_eq!(books, again_books);
        prop_assert_eq!(log.lines, again_log.lines);
    }
}
